"use strict";
// What the pages of rollouts and of answers share.
const VERDICTS = { right: "right", wrong: "wrong", format: "format error", error: "error" };
const byId = (id) => document.getElementById(id);
const number = (x, digits = 2) => (x === null || x === undefined ? "\u2013" : x.toFixed(digits));
const count = (x) => x.toLocaleString("en");

function make(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null)); // strings become text, never markup
  return node;
}

function button(action, className, ...children) {
  const node = make("button", className, ...children);
  node.type = "button";
  node.addEventListener("click", action);
  return node;
}

function badge(name, value = null, className = "") {
  return make("li", className, value === null ? name : `${name} `, value === null ? null : make("b", "", value));
}

const finishBadge = (reason) => badge("finished", (reason || "unknown").replaceAll("_", " "));

function goldLine(answers) {
  const line = make("p", "gold", answers.length > 1 ? "Gold answers " : "Gold answer ");
  answers.forEach((answer, i) => line.append(i ? " or " : "", make("b", "", answer)));
  return line;
}

// Where one is in the list, facts about it, and the way to its neighbours; `more` are other buttons.
function placeLine(shown, selected, facts, move, ...more) {
  const line = make("div", "place", make("span", "at", `${count(shown.indexOf(selected) + 1)} of ${count(shown.length)}`));
  const steps = make("span", "steps", ...more);
  for (const [id, label, by] of [["previous", "\u2190 Previous", -1], ["next", "Next \u2192", 1]]) {
    const step = button(() => move(by), "", label);
    step.id = id;
    steps.append(step);
  }
  line.append(...facts.map((fact) => make("span", "", fact)), steps);
  return line;
}

// Data that was deflated, see packed() in html.py.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function fill(select, names, first, value, change) {
  if (first !== null) select.append(new Option(first, "-1"));
  names.forEach((name, i) => select.append(new Option(name, String(i))));
  select.value = String(value);
  select.addEventListener("change", () => change(Number(select.value)));
}

function nothing(some, what) {
  return make("p", "nothing", some ? "Nothing to show: choose another filter." : `There are no ${what}.`);
}

function makeFilters(filters, choose) {
  for (const [name, label] of filters) {
    const node = button(() => choose(name), "", `${label} `, make("span", "count"));
    node.dataset.filter = name;
    byId("filters").append(node);
  }
}

function showFilters(chosen, counts) {
  for (const node of byId("filters").children) {
    node.setAttribute("aria-pressed", String(node.dataset.filter === chosen));
    node.querySelector(".count").textContent = count(counts[node.dataset.filter]);
  }
}

function onWords(change) {
  byId("words").addEventListener("input", (event) => change(event.target.value.trim().toLowerCase()));
}

// Calls the action of a key, unless one is typing, choosing from a list, or `asleep`.
function onKeys(actions, asleep = () => false) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || asleep()) return;
    if (event.target === byId("words")) {
      if (event.key === "Escape" || event.key === "Enter") event.target.blur();
    } else if (event.target.tagName !== "SELECT" && actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    }
  });
}
