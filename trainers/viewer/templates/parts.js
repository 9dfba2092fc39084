// What a rollout says, part by part: thoughts fold, an answer has the colour of its verdict.
const LONG = 90; // words of a thought from which it folds
const FIRST = 30; // words of it that are always seen

// Marks gold answers of three letters and more, and the words that one looks for.
function marked(text, answers, words = "") {
  const wanted = [...answers.filter((a) => a.trim().length > 2), ...(words ? [words] : [])];
  if (!wanted.length) return make("span", "", text);
  const escaped = wanted.map((a) => a.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pieces = text.split(new RegExp(`(${escaped.join("|")})`, "i"));
  const isWords = (piece) => words && piece.toLowerCase() === words;
  return make("span", "", ...pieces.map((piece, i) => (i % 2 ? make("mark", isWords(piece) ? "hit" : "found", piece) : piece)));
}

// Balanced braces, as the reward reads the box: \boxed{x_{1}} is one box.
function boxed(text) {
  const out = make("span");
  let rest = text;
  for (let start = rest.indexOf("\\boxed{"); start >= 0; start = rest.indexOf("\\boxed{")) {
    let depth = 1;
    let end = start + 7;
    for (; end < rest.length && depth; end++) depth += rest[end] === "{" ? 1 : rest[end] === "}" ? -1 : 0;
    if (depth) break;
    out.append(rest.slice(0, start), make("span", "boxed", rest.slice(start + 7, end - 1)));
    rest = rest.slice(end);
  }
  out.append(rest);
  return out;
}

function folded(text, words, open) {
  const all = text.split(/\s+/).filter(Boolean);
  const body = () => make("span", "", marked(text, [], words));
  if (all.length <= LONG) return body();
  const node = make("details", "fold");
  node.open = open || Boolean(words && text.toLowerCase().includes(words));
  node.append(make("summary", "", make("span", "first", `${all.slice(0, FIRST).join(" ")} \u2026 `), make("span", "size", `${count(all.length)} words`)), body());
  return node;
}

function passages(text, ids, gold, answers, words) {
  const documents = text.split("\n\n");
  const known = documents.length === ids.length ? ids : [];
  return documents.map((contents, i) => {
    const cut = contents.indexOf("\n");
    const node = make("div", "passage");
    if (cut > 0) node.append(make("span", "name", marked(contents.slice(0, cut), [], words)));
    if (gold.includes(known[i])) node.append(make("span", "flag", "supporting"));
    if (cut > 0) node.append("\n");
    node.append(marked(contents.slice(cut + 1), answers, words));
    if (known[i]) node.title = `passage ${known[i]}`;
    return node;
  });
}

// One part. `about`: {verdict, ids: of a result's passages, gold, answers, words, open, names}
function partNode(kind, text, about) {
  const { verdict = "", ids = [], gold = [], answers = [], words = "", open = false, names = {} } = about;
  const node = make("section", `part ${kind}${kind === "answer" ? ` ${verdict}` : ""}`, make("span", "kind", names[kind] || (kind === "text" ? "no tag" : kind)));
  if (kind === "result") node.append(make("div", "", ...passages(text, ids, gold, answers, words)));
  else if (kind === "answer") node.append(make("div", "said", boxed(text), verdict === "wrong" ? make("span", "flag plain", "wrong") : null));
  else node.append(make("div", "said", kind === "think" ? folded(text, words, open) : marked(text, [], words)));
  return node;
}

const signed = (x) => (x > 0 ? "+" : x < 0 ? "\u2212" : "") + Math.abs(x).toFixed(2);

// The facts of a rollout, its named parts of the reward among them.
function rolloutBadges(rollout) {
  const sign = rollout.advantage > 0 ? "plus" : rollout.advantage < 0 ? "minus" : "";
  const terms = Object.entries(rollout.terms || {}).map(([name, value]) => badge(name, number(value), "term"));
  return make(
    "ul",
    "badges",
    badge(VERDICTS[rollout.verdict], null, rollout.verdict),
    badge("reward", number(rollout.reward)),
    ...terms,
    badge("F1", number(rollout.f1)),
    rollout.advantage === null ? null : badge("advantage", signed(rollout.advantage), sign),
    badge(`${rollout.searches} search${rollout.searches === 1 ? "" : "es"}`),
    finishBadge(rollout.finish_reason),
    rollout.sampled === null ? null : badge("tokens", `${rollout.sampled} written, ${rollout.given} given`),
    rollout.format_error ? badge(rollout.format_error, null, "format") : null,
  );
}

function rolloutParts(rollout, group, words, open) {
  let results = 0;
  const about = { verdict: rollout.verdict, gold: group.gold, answers: group.answers, words, open };
  return rollout.parts.map(([kind, text]) => partNode(kind, text, kind === "result" ? { ...about, ids: rollout.found[results++] || [] } : about));
}

// Everything that can be looked for in a rollout, in small letters.
const wordsOf = (group, rollout) => [group.question, ...group.answers, rollout.prediction || "", ...rollout.parts.map(([, text]) => text)].join("\n").toLowerCase();
