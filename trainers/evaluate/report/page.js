"use strict";
(async () => {
  const ROW = 62; // pixels of an entry of the list, as in the style sheet
  const FILTERS = [
    ["all", "All"],
    ["right", "Right"],
    ["wrong", "Wrong"],
    ["format", "Format"],
    ["error", "Error"],
    ["differ", "Differ"],
  ];
  const VERDICTS = { right: "right", wrong: "wrong", format: "format error", error: "error" };
  const byId = (id) => document.getElementById(id);

  function make(tag, className = "", ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.filter((child) => child !== null)); // strings become text, never markup
    return node;
  }

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  let data;
  try {
    data = await unpack(byId("data").textContent);
  } catch (error) {
    byId("rollout").append(make("p", "nothing", `The answers cannot be unpacked by this browser (${error}); they are in rows.jsonl.`));
    data = { datasets: [], systems: [], questions: [], note: "" };
  }

  // data.questions: {d: data set, id, q, a: [answers], h: hops, g: [gold ids], r: {system: row}}
  const state = { dataset: -1, left: data.reference, right: -1, filter: "all", words: "", selected: -1 };
  let shown = []; // numbers of the questions that the filters leave
  for (const question of data.questions) {
    const answers = Object.values(question.r).map((row) => row.p);
    question.words = [question.q, ...question.a, ...answers].join("\n").toLowerCase();
  }

  const rowOf = (question, system) => (system < 0 ? undefined : question.r[system]);

  function passes(question) {
    if (state.dataset >= 0 && question.d !== state.dataset) return false;
    const row = rowOf(question, state.left);
    if (!row) return false;
    if (state.words && !question.words.includes(state.words)) return false;
    if (state.filter === "all") return true;
    if (state.filter !== "differ") return row.v === state.filter;
    const other = rowOf(question, state.right);
    return Boolean(other) && (other.v === "right") !== (row.v === "right");
  }

  function countVerdicts() {
    const filter = state.filter;
    const counts = {};
    for (const [name] of FILTERS) {
      state.filter = name;
      counts[name] = data.questions.filter(passes).length;
    }
    state.filter = filter;
    return counts;
  }

  function refilter() {
    shown = [];
    data.questions.forEach((question, number) => passes(question) && shown.push(number));
    const counts = countVerdicts();
    for (const button of byId("filters").children) {
      button.setAttribute("aria-pressed", String(button.dataset.filter === state.filter));
      button.querySelector(".count").textContent = counts[button.dataset.filter].toLocaleString("en");
      button.hidden = button.dataset.filter === "differ" && state.right < 0;
    }
    byId("space").style.height = `${shown.length * ROW}px`;
    byId("count").textContent = `${shown.length.toLocaleString("en")} of ${data.questions.length.toLocaleString("en")} questions${data.note ? `; ${data.note}` : ""}`;
    if (!shown.includes(state.selected)) {
      state.selected = shown.length ? shown[0] : -1;
      byId("list").scrollTop = 0;
    }
    drawList();
    render();
  }

  function drawList() {
    const list = byId("list");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(shown.length, first + Math.ceil((list.clientHeight || 600) / ROW) + 8);
    const entries = [];
    for (let place = first; place < last; place++) entries.push(entry(shown[place], place));
    byId("space").replaceChildren(...entries);
  }

  function entry(number, place) {
    const question = data.questions[number];
    const row = rowOf(question, state.left);
    const other = rowOf(question, state.right);
    const said = make("div", "said", make("span", `dot ${row.v}`), row.p || "no answer");
    if (other) said.append(make("span", `dot ${other.v}`), other.p || "no answer");
    const node = make("div", "entry", make("p", "", question.q), said);
    node.style.top = `${place * ROW}px`;
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", String(number === state.selected));
    node.addEventListener("click", () => select(number));
    return node;
  }

  function select(number) {
    state.selected = number;
    const place = shown.indexOf(number);
    const list = byId("list");
    if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
    else if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
    history.replaceState(null, "", `#${number + 1}`);
    drawList();
    render();
  }

  function move(by) {
    const target = shown[shown.indexOf(state.selected) + by];
    if (target !== undefined) select(target);
  }

  function badge(name, value, className = "") {
    return make("li", className, value === null ? name : `${name} `, value === null ? null : make("b", "", value));
  }

  function badges(row) {
    const list = make("ul", "badges", badge(VERDICTS[row.v], null, row.v));
    if (row.v === "error") return list;
    const number = (x) => (x === null || x === undefined ? "\u2013" : Number(x).toFixed(2));
    list.append(
      badge("EM", number(row.m[0])),
      badge("F1", number(row.m[1])),
      badge("searches", String(row.m[2])),
      badge("finished", (row.f || "unknown").replaceAll("_", " ")),
      badge("tokens", `${row.m[3]} written, ${row.m[4] ?? "\u2013"} read`),
    );
    if (row.e) list.append(badge(row.e, null, "format"));
    for (const [judge, said] of Object.entries(row.j || {})) {
      list.append(badge(judge, said === null ? "failed" : said ? "right" : "wrong", said === null ? "format" : said ? "right" : ""));
    }
    return list;
  }

  // Gold answers of three letters and more are marked where they stand in a text.
  function marked(text, answers) {
    const wanted = answers.filter((a) => a.trim().length > 2).map((a) => a.toLowerCase());
    const out = make("span");
    const lower = text.toLowerCase();
    let at = 0;
    while (at < text.length) {
      let next = -1;
      let length = 0;
      for (const answer of wanted) {
        const place = lower.indexOf(answer, at);
        if (place >= 0 && (next < 0 || place < next)) [next, length] = [place, answer.length];
      }
      if (next < 0 || lower.length !== text.length) break;
      out.append(text.slice(at, next), make("mark", "found", text.slice(next, next + length)));
      at = next + length;
    }
    out.append(text.slice(at));
    return out;
  }

  function turn(text, question) {
    const parts = [];
    const block = /<(think|search|answer)>([\s\S]*?)(?:<\/\1>|$)/g;
    let at = 0;
    const loose = (t) => t.trim() && parts.push(part("text", t.trim(), question));
    for (let match; (match = block.exec(text)); ) {
      loose(text.slice(at, match.index));
      parts.push(part(match[1], match[2].trim(), question));
      at = match.index + match[0].length;
      if (match[0] === "") break;
    }
    loose(text.slice(at));
    return parts;
  }

  function part(kind, text, question) {
    const name = kind === "text" ? "writes" : kind === "result" ? "reads" : kind;
    const said = make("div", "said", kind === "search" || kind === "think" ? text : marked(text, question.a));
    return make("section", `part ${kind}`, make("span", "kind", name), said);
  }

  function side(question, system) {
    const row = rowOf(question, system);
    const box = make("div", "side");
    if (!row) {
      box.append(make("h3", "", data.systems[system]), make("p", "nothing", "Not asked."));
      return box;
    }
    box.append(make("h3", "", make("span", `dot ${row.v}`), data.systems[system]), badges(row));
    const predicted = make("p", "gold", "Answer ", make("b", "predicted", row.p || "none"));
    box.append(predicted);
    if (row.v === "error") {
      box.append(make("section", "part problem", make("span", "kind", "error"), make("div", "said", row.x)));
      return box;
    }
    for (const [role, text] of row.s) {
      if (role === "m") box.append(...turn(text, question));
      else box.append(part("result", text.replace(/^\s*<result>\n?|\n?<\/result>\s*$/g, ""), question));
    }
    if (row.t.length) {
      const gold = new Set(question.g);
      const list = make("ol", "titles");
      for (const [query, found] of row.t) {
        const item = make("li", "", `${query}: `);
        found.forEach(([id, title], i) => {
          item.append(i ? ", " : "", title);
          if (gold.has(id)) item.append(make("span", "flag", "supporting"));
        });
        list.append(item);
      }
      box.append(make("p", "gold", "Searches and what they found"), list);
    }
    return box;
  }

  function render() {
    const view = byId("rollout");
    const question = data.questions[state.selected];
    if (!question) {
      view.replaceChildren(make("p", "nothing", data.questions.length ? "Nothing to show: choose another filter." : "There are no answers."));
      return;
    }
    const at = shown.indexOf(state.selected) + 1;
    const place = make("div", "place", make("span", "at", `${at.toLocaleString("en")} of ${shown.length.toLocaleString("en")}`), make("span", "", `${data.datasets[question.d]}, ${question.id}`));
    if (question.h) place.append(make("span", "", `${question.h}-hop`));
    place.append(make("span", "grow"));
    for (const [id, label, by] of [["previous", "\u2190 Previous", -1], ["next", "Next \u2192", 1]]) {
      const button = make("button", "", label);
      button.type = "button";
      button.id = id;
      button.addEventListener("click", () => move(by));
      place.append(button);
    }
    const gold = make("p", "gold", question.a.length > 1 ? "Gold answers " : "Gold answer ");
    question.a.forEach((answer, i) => gold.append(i ? " or " : "", make("b", "", answer)));
    const two = state.right >= 0;
    const sides = [side(question, state.left), ...(two ? [side(question, state.right)] : [])];
    view.replaceChildren(make("div", two ? "sheet two" : "sheet", place, make("h2", "", question.q), gold, make("div", "pair", ...sides)));
    view.scrollTop = 0;
  }

  function fill(select, names, first, value, change) {
    if (first !== null) select.append(new Option(first, "-1"));
    names.forEach((name, i) => select.append(new Option(name, String(i))));
    select.value = String(value);
    select.addEventListener("change", () => {
      change(Number(select.value));
      refilter();
    });
  }

  function showTab(name) {
    byId("overview").hidden = name !== "summary";
    byId("reader").hidden = name !== "rollouts";
    byId("tab-summary").setAttribute("aria-selected", String(name === "summary"));
    byId("tab-rollouts").setAttribute("aria-selected", String(name === "rollouts"));
    if (name === "rollouts") drawList();
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("reader").hidden) return;
    if (event.target === byId("words")) {
      if (event.key === "Escape" || event.key === "Enter") event.target.blur();
      return;
    }
    if (event.target.tagName === "SELECT") return;
    const actions = { ArrowDown: () => move(1), ArrowUp: () => move(-1), ArrowRight: () => move(1), ArrowLeft: () => move(-1), j: () => move(1), k: () => move(-1), "/": () => byId("words").focus() };
    if (actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    }
  }

  fill(byId("dataset"), data.datasets, "all", -1, (value) => (state.dataset = value));
  fill(byId("left"), data.systems, null, state.left, (value) => (state.left = value));
  fill(byId("right"), data.systems, "none", -1, (value) => {
    state.right = value;
    if (value < 0 && state.filter === "differ") state.filter = "all";
  });
  for (const [name, label] of FILTERS) {
    const button = make("button", "", `${label} `, make("span", "count", ""));
    button.type = "button";
    button.dataset.filter = name;
    button.addEventListener("click", () => {
      state.filter = name;
      refilter();
    });
    byId("filters").append(button);
  }
  byId("words").addEventListener("input", (event) => {
    state.words = event.target.value.trim().toLowerCase();
    refilter();
  });
  byId("list").addEventListener("scroll", drawList);
  addEventListener("resize", drawList);
  document.addEventListener("keydown", onKey);
  byId("tab-summary").addEventListener("click", () => showTab("summary"));
  byId("tab-rollouts").addEventListener("click", () => showTab("rollouts"));
  const named = Number(location.hash.slice(1)) - 1;
  if (data.questions[named]) state.selected = named;
  refilter();
  showTab(data.questions[named] ? "rollouts" : "summary");
  document.documentElement.dataset.ready = "true";
})();
