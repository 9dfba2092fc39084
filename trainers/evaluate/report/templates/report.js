(async () => {
  const ROW = 62; // pixels of an entry of the list, as in the style sheet
  const FILTERS = [["all", "All"], ["right", "Right"], ["wrong", "Wrong"], ["format", "Format"], ["error", "Error"], ["differ", "Differ"]];

  let data;
  try {
    data = await unpack(byId("data").textContent);
  } catch (error) {
    byId("rollout").append(make("p", "nothing", `The answers cannot be unpacked by this browser (${error}); they are in rows.jsonl.`));
    data = { datasets: [], systems: [], questions: [], note: "" };
  }

  // data.questions: {d: data set, id, q, a: [answers], h: hops, g: [gold ids], r: {system: row}}
  const state = { dataset: -1, left: data.reference, right: -1, filter: "all", words: "", selected: -1, open: false };
  let shown = []; // numbers of the questions that the filters leave
  const hasWords = (question) => {
    const said = () => Object.values(question.r).flatMap((row) => [row.p, ...row.s.map(([, text]) => text), ...row.t.map(([query]) => query)]);
    question.words = question.words || [question.q, ...question.a, ...said()].join("\n").toLowerCase();
    return question.words.includes(state.words);
  };

  const rowOf = (question, system) => (system < 0 ? undefined : question.r[system]);

  function passes(question, filter) {
    if (state.dataset >= 0 && question.d !== state.dataset) return false;
    const row = rowOf(question, state.left);
    if (!row) return false;
    if (state.words && !hasWords(question)) return false;
    if (filter === "all") return true;
    if (filter !== "differ") return row.v === filter;
    const other = rowOf(question, state.right);
    return Boolean(other) && (other.v === "right") !== (row.v === "right");
  }

  function refilter() {
    shown = [];
    data.questions.forEach((question, at) => passes(question, state.filter) && shown.push(at));
    showFilters(state.filter, Object.fromEntries(FILTERS.map(([name]) => [name, data.questions.filter((q) => passes(q, name)).length])));
    byId("filters").querySelector("[data-filter=differ]").hidden = state.right < 0;
    byId("filters").querySelector("[data-filter=error]").hidden = !data.questions.some((q) => passes(q, "error"));
    byId("space").style.height = `${shown.length * ROW}px`;
    byId("count").textContent = `${count(shown.length)} of ${count(data.questions.length)} questions${data.note ? `; ${data.note}` : ""}`;
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

  function entry(at, place) {
    const question = data.questions[at];
    const said = make("div", "said");
    for (const row of [rowOf(question, state.left), rowOf(question, state.right)]) {
      if (row) said.append(make("span", `dot ${row.v}`), row.p || "no answer");
    }
    const node = make("div", "entry", make("p", "", question.q), said);
    node.style.top = `${place * ROW}px`;
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", String(at === state.selected));
    node.addEventListener("click", () => select(at));
    return node;
  }

  function select(at) {
    state.selected = at;
    const place = shown.indexOf(at);
    const list = byId("list");
    if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
    else if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
    history.replaceState(null, "", `#${at + 1}`);
    drawList();
    render();
  }

  function move(by) {
    const target = shown[shown.indexOf(state.selected) + by];
    if (target !== undefined) select(target);
  }

  function badges(row) {
    const list = make("ul", "badges", badge(VERDICTS[row.v], null, row.v));
    if (row.v === "error") return list;
    list.append(
      badge("EM", number(row.m[0])),
      badge("F1", number(row.m[1])),
      badge("searches", String(row.m[2])),
      finishBadge(row.f),
      badge("tokens", `${row.m[3]} written, ${row.m[4] ?? "\u2013"} read`),
    );
    if (row.e) list.append(badge(row.e, null, "format"));
    for (const [judge, said] of Object.entries(row.j || {})) {
      list.append(badge(judge, said === null ? "failed" : said ? "right" : "wrong", said === null ? "format" : said ? "right" : ""));
    }
    return list;
  }

  function side(question, system) {
    const row = rowOf(question, system);
    const box = make("div", "side");
    if (!row) {
      box.append(make("h3", "", data.systems[system]), make("p", "nothing", "Not asked."));
      return box;
    }
    box.append(make("h3", "", make("span", `dot ${row.v}`), data.systems[system]), badges(row));
    box.append(make("p", "gold", "Answer ", make("b", "predicted", row.p || "none")));
    if (row.v === "error") {
      box.append(make("section", "part problem", make("span", "kind", "error"), make("div", "said", row.x)));
      return box;
    }
    const about = { verdict: row.v, answers: question.a, words: state.words, open: state.open, names: { text: "writes", result: "reads" } };
    box.append(...row.s.map(([kind, text]) => partNode(kind, text, about)));
    if (row.t.length) {
      const list = make("ol", "titles");
      for (const [query, found] of row.t) {
        const item = make("li", "", `${query}: `);
        found.forEach(([id, title], i) => {
          item.append(i ? ", " : "", title);
          if (question.g.includes(id)) item.append(make("span", "flag", "supporting"));
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
      view.replaceChildren(nothing(data.questions.length, "answers"));
      return;
    }
    const facts = [`${data.datasets[question.d]}, ${question.id}`, ...(question.h ? [`${question.h}-hop`] : [])];
    const line = placeLine(shown, state.selected, facts, move);
    const systems = [state.left, state.right].filter((system) => system >= 0);
    const pair = make("div", "pair", ...systems.map((system) => side(question, system)));
    view.replaceChildren(make("div", systems.length > 1 ? "sheet two" : "sheet", line, make("h2", "", question.q), goldLine(question.a), pair));
    view.scrollTop = 0;
  }

  function choose(id, names, first, value, change) {
    fill(byId(id), names, first, value, (chosen) => {
      change(chosen);
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

  choose("dataset", data.datasets, "all", -1, (value) => (state.dataset = value));
  choose("left", data.systems, null, state.left, (value) => (state.left = value));
  choose("right", data.systems, "none", -1, (value) => {
    state.right = value;
    if (value < 0 && state.filter === "differ") state.filter = "all";
  });
  makeFilters(FILTERS, (name) => {
    state.filter = name;
    refilter();
  });
  onWords((words) => {
    state.words = words;
    refilter();
  });
  const steps = { ArrowDown: 1, ArrowUp: -1, ArrowRight: 1, ArrowLeft: -1, j: 1, k: -1 };
  const keys = Object.entries(steps).map(([key, by]) => [key, () => move(by)]);
  const toggleFolds = () => {
    state.open = !state.open;
    render();
  };
  onKeys({ ...Object.fromEntries(keys), f: toggleFolds, "/": () => byId("words").focus() }, () => byId("reader").hidden);
  byId("list").addEventListener("scroll", drawList);
  addEventListener("resize", drawList);
  byId("tab-summary").addEventListener("click", () => showTab("summary"));
  byId("tab-rollouts").addEventListener("click", () => showTab("rollouts"));
  const named = Number(location.hash.slice(1)) - 1;
  refilter();
  showTab(data.questions[named] ? "rollouts" : "summary");
  if (data.questions[named]) select(named);
  document.documentElement.dataset.ready = "true";
})();
