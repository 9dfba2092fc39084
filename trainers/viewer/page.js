"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const FILTERS = [
    ["all", "All"],
    ["right", "Right"],
    ["wrong", "Wrong"],
    ["format", "Format"],
  ];
  const VERDICTS = { right: "right", wrong: "wrong", format: "format error" };
  const all = []; // every rollout with its group and its place in it
  for (const group of data.groups) {
    group.rollouts.forEach((rollout, place) => all.push({ group, rollout, place }));
  }
  const state = { filter: "all", words: "", selected: null, tokens: false };
  let shown = all; // what the filter leaves, in the order of the list

  const byId = (id) => document.getElementById(id);
  const number = (x, digits = 2) => (x === null || x === undefined ? "\u2013" : x.toFixed(digits));
  const signed = (x) => (x > 0 ? "+" : x < 0 ? "\u2212" : "") + Math.abs(x).toFixed(2);

  function make(tag, className = "", ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.filter((child) => child !== null)); // strings become text, never markup
    return node;
  }

  function mean(values) {
    const known = values.filter((x) => x !== null);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  }

  function showSummary() {
    const rollouts = all.map((entry) => entry.rollout);
    const share = (test) => (rollouts.length ? `${Math.round((100 * rollouts.filter(test).length) / rollouts.length)}\u202f%` : "\u2013");
    const facts = [
      ["questions", data.groups.length],
      ["rollouts", all.length],
      ["reward", number(mean(rollouts.map((r) => r.reward)))],
      ["F1", number(mean(rollouts.map((r) => r.f1)))],
      ["right", share((r) => r.verdict === "right")],
      ["format error", share((r) => r.verdict === "format")],
      ["searches", number(mean(rollouts.map((r) => r.searches)))],
    ];
    byId("summary").append(...facts.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", String(value)))));
  }

  function buildFilters() {
    for (const [name, label] of FILTERS) {
      const count = name === "all" ? all.length : all.filter((e) => e.rollout.verdict === name).length;
      const button = make("button", "", `${label} `, make("span", "count", String(count)));
      button.type = "button";
      button.dataset.filter = name;
      button.addEventListener("click", () => setFilter(name));
      byId("filters").append(button);
    }
  }

  function chip(entry) {
    const { rollout } = entry;
    const button = make("button", `chip ${rollout.verdict}`, number(rollout.reward));
    button.type = "button";
    button.title = `${VERDICTS[rollout.verdict]}, ${rollout.searches} searches`;
    button.addEventListener("click", () => select(entry));
    entry.chip = button;
    return button;
  }

  function buildList() {
    for (const group of data.groups) {
      const chips = make("div", "chips");
      group.item = make("li", "", make("p", "", group.question), chips);
      byId("questions").append(group.item);
      group.chips = chips;
    }
    for (const entry of all) entry.group.chips.append(chip(entry));
    const nothing = make("li", "nothing", "No rollout is like this.");
    nothing.id = "nothing";
    byId("questions").append(nothing);
  }

  function passes(entry) {
    const fits = state.filter === "all" || entry.rollout.verdict === state.filter;
    return fits && entry.group.question.toLowerCase().includes(state.words);
  }

  function refilter() {
    shown = all.filter(passes);
    const visible = new Set(shown);
    const groups = new Set(shown.map((entry) => entry.group));
    for (const entry of all) entry.chip.hidden = !visible.has(entry);
    for (const group of data.groups) group.item.hidden = !groups.has(group);
    byId("nothing").hidden = shown.length > 0;
    for (const button of byId("filters").children) {
      button.setAttribute("aria-pressed", String(button.dataset.filter === state.filter));
    }
    select(visible.has(state.selected) ? state.selected : shown[0] || null);
  }

  function setFilter(name) {
    state.filter = name;
    refilter();
  }

  function select(entry) {
    if (state.selected) {
      state.selected.chip.removeAttribute("aria-current");
      state.selected.group.item.classList.remove("current");
    }
    state.selected = entry;
    if (entry) {
      entry.chip.setAttribute("aria-current", "true");
      entry.group.item.classList.add("current");
      entry.group.item.scrollIntoView({ block: "nearest" });
      history.replaceState(null, "", `#${all.indexOf(entry) + 1}`);
    }
    render();
  }

  function move(by) {
    const target = shown[shown.indexOf(state.selected) + by];
    if (target) select(target);
  }

  function moveQuestion(by) {
    const firsts = shown.filter((entry, i) => i === 0 || shown[i - 1].group !== entry.group);
    const at = firsts.findIndex((entry) => state.selected && entry.group === state.selected.group);
    if (firsts[at + by]) select(firsts[at + by]);
  }

  function badge(name, value, className = "") {
    return make("li", className, value === null ? name : `${name} `, value === null ? null : make("b", "", value));
  }

  function badges(rollout) {
    const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "es"}`;
    const sign = rollout.advantage > 0 ? "plus" : rollout.advantage < 0 ? "minus" : "";
    return make(
      "ul",
      "badges",
      badge(VERDICTS[rollout.verdict], null, rollout.verdict),
      badge("reward", number(rollout.reward)),
      badge("F1", number(rollout.f1)),
      rollout.advantage === null ? null : badge("advantage", signed(rollout.advantage), sign),
      badge(plural(rollout.searches, "search"), null),
      badge("finished", (rollout.finish_reason || "unknown").replaceAll("_", " ")),
      badge("tokens", `${rollout.sampled} written, ${rollout.given} given`),
      rollout.format_error ? badge(rollout.format_error, null, "format") : null,
    );
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

  // Marks the gold answers where they stand in a passage.
  function marked(text, answers) {
    const out = make("span");
    const wanted = answers.filter((a) => a.length > 2).map((a) => a.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const pieces = wanted.length ? text.split(new RegExp(`(${wanted.join("|")})`, "i")) : [text];
    pieces.forEach((piece, i) => out.append(i % 2 ? make("span", "found", piece) : piece));
    return out;
  }

  function result(text, ids, group) {
    const documents = text.split("\n\n");
    const known = documents.length === ids.length ? ids : [];
    return documents.map((contents, i) => {
      const cut = contents.indexOf("\n");
      const name = cut < 0 ? "" : contents.slice(0, cut);
      const flag = group.gold.includes(known[i]) ? make("span", "flag", "supporting") : null;
      const node = make("div", "passage");
      if (name) node.append(make("span", "name", name));
      if (flag) node.append(flag);
      if (name) node.append("\n");
      node.append(marked(contents.slice(cut + 1), group.answers));
      if (known[i]) node.title = `passage ${known[i]}`;
      return node;
    });
  }

  function parts({ group, rollout }) {
    let results = 0;
    return rollout.parts.map(([kind, text]) => {
      const node = make("section", `part ${kind}`);
      node.append(make("span", "kind", kind === "text" ? "no tag" : kind));
      if (kind === "result") node.append(make("div", "", ...result(text, rollout.found[results++] || [], group)));
      else node.append(make("div", "said", kind === "answer" ? boxed(text) : text));
      return node;
    });
  }

  function tokens(rollout) {
    const box = make("div", "tokens");
    rollout.ids.forEach((id, i) => {
      const logprob = rollout.logprobs[i];
      const span = make("span", logprob === null ? "given" : "written", data.vocabulary[id]);
      if (logprob !== null) {
        span.style.setProperty("--doubt", `${Math.round(55 * (1 - Math.exp(logprob)))}%`);
        span.title = `token ${id}, probability ${Math.exp(logprob).toFixed(3)}`;
      } else {
        span.title = `token ${id}, retrieved: not in the loss`;
      }
      box.append(span);
    });
    const written = make("span", "", "underlined");
    written.style.boxShadow = "inset 0 -2px var(--search)";
    const key = make("p", "key", written, " was written by the policy and is in the loss (the redder, the less likely it was); the rest was retrieved and is not.");
    return [box, key];
  }

  function button(label, action, title) {
    const node = make("button", "", label);
    node.type = "button";
    node.title = title;
    node.addEventListener("click", action);
    return node;
  }

  function placeLine({ group, rollout, place }) {
    const line = make("div", "place");
    const at = shown.indexOf(state.selected) + 1;
    const of = group.rollouts.length;
    line.append(
      make("span", "", `${at} of ${shown.length}`),
      make("span", "", `question ${group.id}`),
      ...(group.hops ? [make("span", "", `${group.hops}-hop`)] : []),
      ...(of > 1 ? [make("span", "", `rollout ${place + 1} of ${of}`)] : []),
      make("span", "grow"),
    );
    if (rollout.ids) {
      const toggle = button("Tokens", toggleTokens, "Show every token (t)");
      toggle.setAttribute("aria-pressed", String(state.tokens));
      toggle.id = "tokens";
      line.append(toggle);
    }
    const before = button("\u2190 Previous", () => move(-1), "Previous rollout");
    const after = button("Next \u2192", () => move(1), "Next rollout");
    before.id = "previous";
    after.id = "next";
    line.append(before, after);
    return line;
  }

  function toggleTokens() {
    state.tokens = !state.tokens;
    render();
  }

  function keysLine() {
    const line = make("p", "keys");
    const keys = [["\u2190 \u2192", "rollout"], ["\u2191 \u2193", "question"], ["1\u20134", "filter"], ["/", "find"], ["t", "tokens"]];
    for (const [key, what] of keys) line.append(make("kbd", "", key), ` ${what}   `);
    return line;
  }

  function render() {
    const view = byId("rollout");
    const entry = state.selected;
    if (!entry) {
      view.replaceChildren(make("p", "nothing", all.length ? "Nothing to show: choose another filter." : "There are no rollouts."));
      return;
    }
    const { group, rollout } = entry;
    const gold = make("p", "gold", group.answers.length > 1 ? "Gold answers " : "Gold answer ");
    group.answers.forEach((answer, i) => gold.append(i ? " or " : "", make("b", "", answer)));
    if (rollout.prediction) gold.append(" \u00b7 predicted ", make("b", "", rollout.prediction));
    const body = state.tokens && rollout.ids ? tokens(rollout) : parts(entry);
    const top = [placeLine(entry), make("h2", "", group.question), gold, badges(rollout)];
    view.replaceChildren(make("div", "sheet", ...top, ...body, keysLine()));
    view.scrollTop = 0;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === byId("words")) {
      if (event.key === "Escape" || event.key === "Enter") event.target.blur();
      return;
    }
    const actions = {
      ArrowRight: () => move(1),
      ArrowLeft: () => move(-1),
      j: () => move(1),
      k: () => move(-1),
      ArrowDown: () => moveQuestion(1),
      ArrowUp: () => moveQuestion(-1),
      t: toggleTokens,
      "/": () => byId("words").focus(),
    };
    FILTERS.forEach(([name], i) => (actions[String(i + 1)] = () => setFilter(name)));
    if (actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    }
  }

  showSummary();
  buildFilters();
  buildList();
  byId("words").addEventListener("input", (event) => {
    state.words = event.target.value.trim().toLowerCase();
    refilter();
  });
  document.addEventListener("keydown", onKey);
  state.selected = all[Number(location.hash.slice(1)) - 1] || null;
  refilter();
})();
