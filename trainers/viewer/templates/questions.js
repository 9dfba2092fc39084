(async () => {
  let data;
  try {
    data = await unpack(byId("data").textContent);
  } catch (error) {
    byId("rollout").append(make("p", "nothing", `The rollouts cannot be unpacked by this browser (${error}); they are in rollouts.jsonl.`));
    data = { steps: [], questions: [] };
  }
  const last = data.steps.length - 1;
  const state = { left: 0, right: Math.max(0, last), filter: "all", words: "", selected: null, open: false };
  const FILTERS = [["all", "All"], ["learned", "Learned"], ["lost", "Lost"], ["same", "Same"]];
  let shown = [];

  const lookAt = (question, place) => question.looks[data.steps[place]];
  const right = (question, place) => (lookAt(question, place) || {}).verdict === "right";

  function fits(question, filter) {
    const [before, after] = [right(question, state.left), right(question, state.right)];
    return filter === "all" || filter === (before === after ? "same" : after ? "learned" : "lost");
  }

  function has(question) {
    question.words = question.words || Object.values(question.looks).map((look) => wordsOf(question, look)).join("\n");
    return !state.words || question.words.includes(state.words);
  }

  function entry(question) {
    const trail = make("span", "trail");
    for (const step of data.steps) {
      const look = question.looks[step];
      const mark = make("span", look ? look.verdict : "");
      mark.title = `step ${step}: ${look ? VERDICTS[look.verdict] : "not asked"}`;
      trail.append(mark);
    }
    question.node = button(() => select(question), "", question.question, trail);
    return make("li", "", question.node);
  }

  function refilter() {
    shown = data.questions.filter((question) => fits(question, state.filter) && has(question));
    showFilters(state.filter, Object.fromEntries(FILTERS.map(([name]) => [name, data.questions.filter((q) => fits(q, name)).length])));
    byId("questions").replaceChildren(...shown.map(entry));
    select(shown.includes(state.selected) ? state.selected : shown[0] || null);
  }

  function select(question) {
    if (state.selected && state.selected.node) state.selected.node.removeAttribute("aria-current");
    state.selected = question;
    if (question) {
      question.node.setAttribute("aria-current", "true");
      question.node.scrollIntoView({ block: "nearest" });
      history.replaceState(null, "", `#${data.questions.indexOf(question) + 1}`);
    }
    render();
  }

  function move(by) {
    const target = shown[shown.indexOf(state.selected) + by];
    if (target) select(target);
  }

  function side(question, place) {
    const look = lookAt(question, place);
    const box = make("div", "side", make("h3", "", `step ${data.steps[place]}`));
    if (!look) box.append(make("p", "nothing", "Not asked at this step."));
    else box.append(rolloutBadges(look), ...rolloutParts(look, question, state.words, state.open));
    return box;
  }

  function render() {
    const view = byId("rollout");
    const question = state.selected;
    if (!question) {
      view.replaceChildren(nothing(data.questions.length, "validation rollouts"));
      return;
    }
    const facts = [`question ${question.id}`, ...(question.hops ? [`${question.hops}-hop`] : [])];
    const places = last > 0 ? [state.left, state.right] : [state.left];
    const pair = make("div", last > 0 ? "pair" : "", ...places.map((place) => side(question, place)));
    if (last === 0) pair.prepend(make("p", "soft", `These questions were asked at one step only, step ${data.steps[0]}: there is nothing yet to compare it with.`));
    view.replaceChildren(make("div", last > 0 ? "sheet two" : "sheet", placeLine(shown, question, facts, move), make("h2", "", question.question), goldLine(question.answers), pair));
    view.scrollTop = 0;
  }

  function choose(name, value) {
    state[name] = Math.min(last, Math.max(0, value));
    byId(name).value = String(state[name]);
    refilter();
  }

  if (last === 0) {
    document.querySelector(".selects").hidden = true;
    byId("filters").hidden = true; // nothing can be learned or lost
  }
  const names = data.steps.map((step) => `step ${step}`);
  fill(byId("left"), names, null, state.left, (value) => choose("left", value));
  fill(byId("right"), names, null, state.right, (value) => choose("right", value));
  function setFilter(name) {
    state.filter = name;
    refilter();
  }
  makeFilters(FILTERS, setFilter);
  onWords((words) => {
    state.words = words;
    refilter();
  });
  onKeys({
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    ArrowRight: () => choose("right", state.right + 1),
    ArrowLeft: () => choose("right", state.right - 1),
    f: () => {
      state.open = !state.open;
      render();
    },
    "/": () => byId("words").focus(),
    ...Object.fromEntries(FILTERS.map(([name], i) => [i + 1, () => last > 0 && setFilter(name)])),
  });
  state.selected = data.questions[Number(location.hash.slice(1)) - 1] || null;
  refilter();
  document.documentElement.dataset.ready = "true";
})();
