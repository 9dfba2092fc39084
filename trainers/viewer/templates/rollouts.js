(() => {
  const data = JSON.parse(byId("data").textContent);
  const FILTERS = [["all", "All"], ["right", "Right"], ["wrong", "Wrong"], ["format", "Format"]];
  const all = []; // every rollout with its group and its place in it
  for (const group of data.groups) {
    group.rollouts.forEach((rollout, place) => all.push({ group, rollout, place }));
  }
  const ORDERS = [
    ["as asked", null],
    ["reward, best first", (r) => -r.reward],
    ["reward, worst first", (r) => r.reward],
    ["longest first", (r) => -length(r)],
    ["shortest first", (r) => length(r)],
    ["most searches first", (r) => -r.searches],
  ];
  const state = { filter: "all", words: "", order: 0, selected: null, tokens: false, open: false };
  const counts = Object.fromEntries(FILTERS.map(([name]) => [name, all.filter((e) => name === "all" || e.rollout.verdict === name).length]));
  let shown = all; // what the filter leaves, in the order of the list
  let ordered = all; // all of them in that order
  const length = (r) => (r.sampled === null ? r.parts.reduce((sum, [, text]) => sum + text.length, 0) : r.sampled);

  function mean(name) {
    const known = all.map((entry) => entry.rollout[name]).filter((x) => x !== null);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  }

  function showSummary() {
    const share = (name) => (all.length ? `${Math.round((100 * counts[name]) / all.length)}\u202f%` : "\u2013");
    const facts = [
      ["questions", data.groups.length],
      ["rollouts", all.length],
      ["reward", number(mean("reward"))],
      ["F1", number(mean("f1"))],
      ["right", share("right")],
      ["format error", share("format")],
      ["searches", number(mean("searches"))],
    ];
    byId("summary").append(...facts.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", String(value)))));
  }

  function chip(entry) {
    const { rollout } = entry;
    entry.chip = button(() => select(entry), `chip ${rollout.verdict}`, number(rollout.reward));
    entry.chip.title = `${VERDICTS[rollout.verdict]}, ${rollout.searches} searches`;
    return entry.chip;
  }

  function buildList() {
    for (const group of data.groups) {
      group.chips = make("div", "chips");
      group.item = make("li", "", make("p", "", group.question), group.chips);
      byId("questions").append(group.item);
    }
    for (const entry of all) entry.group.chips.append(chip(entry));
    const none = make("li", "nothing", "No rollout is like this.");
    none.id = "nothing";
    byId("questions").append(none);
  }

  function passes(entry) {
    const fits = state.filter === "all" || entry.rollout.verdict === state.filter;
    if (!fits || !state.words) return fits;
    entry.words = entry.words || wordsOf(entry.group, entry.rollout);
    return entry.words.includes(state.words);
  }

  // Questions by the mean of their rollouts, and each one's rollouts among themselves.
  function reorder() {
    const key = ORDERS[state.order][1];
    const groups = data.groups.map((group) => ({ group, entries: [] }));
    const place = new Map(groups.map((one) => [one.group, one]));
    for (const entry of all) place.get(entry.group).entries.push(entry);
    if (key) {
      for (const one of groups) {
        one.entries.sort((a, b) => key(a.rollout) - key(b.rollout));
        one.mean = one.entries.reduce((sum, entry) => sum + key(entry.rollout), 0) / one.entries.length;
      }
      groups.sort((a, b) => a.mean - b.mean);
    }
    for (const { group, entries } of groups) {
      group.chips.append(...entries.map((entry) => entry.chip));
      byId("questions").append(group.item);
    }
    byId("questions").append(byId("nothing"));
    ordered = groups.flatMap((one) => one.entries);
    refilter();
  }

  function refilter() {
    shown = ordered.filter(passes);
    const visible = new Set(shown);
    const groups = new Set(shown.map((entry) => entry.group));
    for (const entry of all) entry.chip.hidden = !visible.has(entry);
    for (const group of data.groups) group.item.hidden = !groups.has(group);
    byId("nothing").hidden = shown.length > 0;
    showFilters(state.filter, counts);
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
    const key = " was written by the policy and is in the loss (the redder, the less likely it was); the rest was retrieved and is not.";
    return [box, make("p", "key", make("span", "", "underlined"), key)];
  }

  function tokensButton() {
    const toggle = button(toggleTokens, "", "Tokens");
    toggle.title = "Show every token (t)";
    toggle.setAttribute("aria-pressed", String(state.tokens));
    toggle.id = "tokens";
    return toggle;
  }

  function toggleTokens() {
    state.tokens = !state.tokens;
    render();
  }

  function toggleFolds() {
    state.open = !state.open;
    render();
  }

  function keysLine() {
    const line = make("p", "keys");
    const keys = [["\u2190 \u2192", "rollout"], ["\u2191 \u2193", "question"], ["1\u20134", "filter"], ["/", "find"], ["f", "fold"], ["t", "tokens"]];
    for (const [key, what] of keys) line.append(make("kbd", "", key), ` ${what}   `);
    return line;
  }

  function render() {
    const view = byId("rollout");
    const entry = state.selected;
    if (!entry) {
      view.replaceChildren(nothing(all.length, "rollouts"));
      return;
    }
    const { group, rollout, place } = entry;
    const of = group.rollouts.length;
    const facts = [`question ${group.id}`, ...(group.hops ? [`${group.hops}-hop`] : []), ...(of > 1 ? [`rollout ${place + 1} of ${of}`] : [])];
    const gold = goldLine(group.answers);
    if (rollout.prediction) gold.append(" \u00b7 predicted ", make("b", "", rollout.prediction));
    const line = placeLine(shown, entry, facts, move, ...(rollout.ids ? [tokensButton()] : []));
    const body = state.tokens && rollout.ids ? tokens(rollout) : rolloutParts(rollout, group, state.words, state.open);
    view.replaceChildren(make("div", "sheet", line, make("h2", "", group.question), gold, rolloutBadges(rollout), ...body, keysLine()));
    view.scrollTop = 0;
  }

  showSummary();
  makeFilters(FILTERS, setFilter);
  buildList();
  fill(byId("order"), ORDERS.map(([name]) => name), null, 0, (value) => {
    state.order = value;
    reorder();
  });
  onWords((words) => {
    state.words = words;
    refilter();
  });
  onKeys({
    ArrowRight: () => move(1),
    ArrowLeft: () => move(-1),
    j: () => move(1),
    k: () => move(-1),
    ArrowDown: () => moveQuestion(1),
    ArrowUp: () => moveQuestion(-1),
    t: toggleTokens,
    f: toggleFolds,
    "/": () => byId("words").focus(),
    ...Object.fromEntries(FILTERS.map(([name], i) => [i + 1, () => setFilter(name)])),
  });
  state.selected = all[Number(location.hash.slice(1)) - 1] || null;
  refilter();
})();
