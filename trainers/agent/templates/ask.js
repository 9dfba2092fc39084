// Asks the server of this page and shows what it tells, a line of JSON an event.
// All that comes from outside becomes text nodes, never markup.
const form = byId("form");
const box = byId("question");
const go = byId("go");
let asking = null; // what stops the question under way

const words = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function own(tag, className, text) {
  const node = make(tag, className, text);
  node.dir = "auto"; // each text has its own direction and cannot turn that of others
  return node;
}

function say(text, className = "") {
  byId("status").className = className;
  if (byId("status").textContent !== text) byId("status").textContent = text; // is read out
}

function fold(className, open, ...heads) {
  const node = make("details", className, make("summary", "", ...heads));
  node.open = open;
  return node;
}

function passageItem(passage, answer = "", open = false) {
  const heads = [own("span", "name", passage.title || passage.id)];
  if (passage.source) heads.push(own("span", "source", passage.source));
  if (passage.holds_answer) heads.push(make("span", "flag", "holds the answer"));
  const node = fold("", open, ...heads);
  const text = make("p", "text", marked(passage.text, answer ? [answer] : []));
  text.dir = "auto";
  node.append(text);
  return make("li", "", node);
}

const passageList = (items) => make("ul", "passages", ...items);

// One question on the page: the way to its answer, which folds, and the answer.
class Asked {
  constructor(question) {
    this.way = fold("way", true, "On the way");
    this.steps = make("div");
    this.way.append(this.steps);
    this.way.hidden = true;
    this.turns = [];
    this.node = make("article", "", own("h2", "", question), this.way);
  }

  turn(number) {
    while (this.turns.length <= number) {
      const node = make("div");
      this.steps.append(node);
      this.turns.push({ node, parts: [] });
    }
    this.way.hidden = false;
    return this.turns[number];
  }

  note(event) {
    this.way.before(own("p", "note", event.text));
  }

  part(event) {
    const turn = this.turn(event.turn);
    for (const old of turn.parts.splice(event.part)) old.node.remove();
    const last = turn.parts.at(-1);
    if (last && last.fold) last.fold.open = false; // a thought that is over folds
    const part = { text: own("div", "said", event.text), fold: null, begin: null };
    if (event.kind === "think") {
      part.begin = own("span", "", "");
      part.fold = fold("", true, part.begin);
      part.fold.addEventListener("toggle", () => this.begin(part));
      part.fold.append(part.text);
      part.node = make("div", "part think", make("span", "kind", "thought"), part.fold);
      this.begin(part);
    } else {
      part.node = make("div", `part ${event.kind}`, make("span", "kind", event.kind), part.text);
    }
    turn.node.append(part.node);
    turn.parts[event.part] = part;
    say({ search: "Searching", answer: "Answering" }[event.kind] || "Thinking", "busy");
  }

  begin(part) {
    // what is seen of a folded thought; open, its text says it
    part.begin.textContent = part.fold.open ? "Fold this thought" : part.text.textContent.slice(0, 200);
  }

  more(event) {
    const part = this.turn(event.turn).parts[event.part];
    part.text.append(event.text);
    if (part.fold && !part.fold.open) this.begin(part);
  }

  result(event) {
    const turn = this.turn(event.turn);
    const last = turn.parts.at(-1);
    if (last && last.fold) last.fold.open = false;
    const node = make("div", "part result");
    for (const search of event.searches) {
      const found = search.passages.length;
      node.append(own("p", "of", `${words(found, "passage")} for \u201c${search.query}\u201d`));
      node.append(passageList(search.passages.map((passage) => passageItem(passage))));
    }
    if (!event.searches.some((search) => search.passages.length)) node.append(own("div", "said", event.text));
    turn.node.append(node);
    say("Reading what was found", "busy");
  }

  answer(event) {
    const none = event.answer === "";
    const said = none ? `${sentence(event.no_answer)}.` : event.answer;
    const final = make("div", none ? "final none" : "final", make("span", "kind", none ? "no answer" : "answer"), own("p", "said", said));
    this.end(event);
    this.node.append(final);
    const used = event.passages.filter((passage) => passage.holds_answer);
    if (used.length) {
      this.node.append(make("h3", "", used.length === 1 ? "The passage that holds the answer" : "Passages that hold the answer"));
      this.node.append(passageList(used.map((passage, i) => passageItem({ ...passage, holds_answer: false }, event.answer, i === 0))));
    } else if (!none && event.passages.length) {
      this.node.append(make("p", "cost", "The words of the answer stand in no passage that was found: it is drawn from them, or from the model alone."));
    } else if (!none) {
      this.node.append(make("p", "cost", "No passage was found: the answer is the model\u2019s alone."));
    }
    const cost = [`${count(event.usage.completion_tokens)} tokens written`, `${event.seconds.toFixed(1)} s`];
    this.node.append(make("p", "cost", cost.join(" \u00b7 ")));
    say(none ? "No answer." : `Answered: ${event.answer}`); // why stands in its box
  }

  end(event) {
    const way = ["no search"];
    if (event.searches.length) way.splice(0, 1, words(event.searches.length, "search", "searches"), words(event.passages.length, "passage"));
    if (this.turns.some((turn) => turn.parts.some((part) => part.fold && part.text.textContent.trim()))) way.push("with the thoughts");
    this.way.querySelector("summary").textContent = `The way there: ${way.join(", ")}`;
    this.way.open = false;
    for (const turn of this.turns) for (const part of turn.parts) if (part.fold) part.fold.open = false;
  }

  fail(message) {
    this.node.append(make("div", "final none", make("span", "kind", "no answer"), own("p", "said", message)));
    say(message, "error");
  }
}

async function* lines(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const whole = rest.split("\n");
    rest = whole.pop();
    yield* whole.filter((line) => line);
  }
}

async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answers with status ${response.status}`;
  }
}

async function ask(question) {
  const asked = new Asked(question);
  byId("answers").prepend(asked.node);
  asking = new AbortController();
  go.textContent = "Stop";
  go.className = "stop";
  say("Waiting for the model", "busy");
  try {
    const headers = { "Content-Type": "application/json" };
    const key = byId("key");
    if (key && key.value) headers.Authorization = `Bearer ${key.value}`;
    const response = await fetch("ask", { method: "POST", headers, body: JSON.stringify({ question }), signal: asking.signal });
    if (!response.ok) {
      asked.fail(await refusal(response));
      if (response.status === 401 && key) key.focus();
      return;
    }
    let ended = false;
    for await (const line of lines(response)) {
      const event = JSON.parse(line);
      if (event.event === "error") asked.fail(event.message);
      else asked[event.event](event);
      ended = event.event === "answer" || event.event === "error";
    }
    if (!ended) asked.fail("the server ended before the answer was there");
  } catch (error) {
    if (asking.signal.aborted) asked.fail("stopped");
    else asked.fail(`the server does not answer (${error.message})`);
  } finally {
    asking = null;
    go.textContent = "Ask";
    go.className = "";
  }
}

function grow() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (asking) {
    asking.abort();
    return;
  }
  const question = box.value.trim();
  if (question) ask(question);
  else box.focus();
});
box.addEventListener("input", grow);
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!asking) form.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && asking) asking.abort();
});
