"use strict";
/* The page: one panel a trace, its sections laid out beside those of the other, one slider for both. */

const at = { stop: 0, column: null, timer: null };
let places = [], panels = [];

const named = (id) => document.getElementById(id);
function settings(traces) {
  const lines = traces.map((trace) => new Map(flat(trace.config))), names = [...new Set(lines.flatMap((found) => [...found.keys()]))];
  const rows = names.map((name) => {
    const values = lines.map((found) => found.get(name) ?? ""), differs = values.some((value) => value !== values[0]);
    return make("tr", { className: differs ? "differs" : "" }, make("td", {}, make("code", { textContent: name })),
      ...values.map((value) => make("td", {}, make("code", { textContent: value }), differs ? " ≠" : "")));
  });
  const head = make("tr", {}, ...["setting", ...traces.map((trace) => trace.name)].map((text) => make("th", { scope: "col", textContent: text })));
  const answers = traces.map((trace) => make("p", {}, make("b", { textContent: `${trace.name}: ` }), trace.answer));
  const section = make("section", { className: "wide" }, make("h2", { textContent: "Answer" }), ...answers,
    make("details", {}, make("summary", { textContent: "Settings" }), make("table", { className: "settings" }, make("thead", {}, head), make("tbody", {}, ...rows))));
  section.setAttribute("aria-label", "Answer and settings");
  return section;
}

function go(stop) {
  at.stop = Math.min(Math.max(stop, 0), places.length - 1);
  const place = places[at.stop], longest = Math.max(...panels.map((panel) => panel.trace.count));
  named("slider").value = at.stop;
  const said = named("by").value === "time" ? `forwards ${place.join(" and ")}` : `forward ${at.stop} of ${longest}`;
  named("now").textContent = said;
  named("slider").setAttribute("aria-valuetext", said);
  panels.forEach((panel, i) => panel.show(place[i]));
  if (at.column !== null && !at.timer) tellStories();
  if (at.timer && at.stop === places.length - 1) play();
}

/* Sets what the pictures show, in both traces. */
function together(which, value) {
  for (const panel of panels) {
    panel[which].value = value;
    panel.drawLayers();
    panel.drawRun();
    panel.markAll();
  }
}

function tellStories() { panels.forEach((panel) => showStory(panel.story, panel.trace, at.column, panel.made - 1)); }

function select(column) {
  at.column = column;
  panels.forEach((panel) => { panel.showCanvas(); panel.markAll(); });
  tellStories();
}

function play() {
  const button = named("play");
  if (at.timer) {
    clearInterval(at.timer);
    at.timer = null;
    tellStories();
  } else {
    if (at.stop === places.length - 1) go(0);
    at.timer = setInterval(() => go(at.stop + 1), 1000 / Number(named("speed").value));
  }
  button.textContent = at.timer ? "⏸" : "▶";
  button.setAttribute("aria-label", at.timer ? "Pause" : "Play");
}

function realign() {
  const made = panels.map((panel) => panel.made);
  places = stops(panels.map((panel) => panel.trace), named("by").value);
  named("slider").max = places.length - 1;
  const same = places.findIndex((place) => place[0] >= made[0]);
  go(same < 0 ? places.length - 1 : same);
}

function onKey(event) {
  const keys = { ArrowLeft: () => go(at.stop - 1), ArrowRight: () => go(at.stop + 1), Home: () => go(0), End: () => go(places.length - 1),
    ArrowUp: () => move(-1), ArrowDown: () => move(1), " ": play };
  const inside = event.target.closest?.("select, summary, .scroll") || (event.key === " " && event.target.closest?.("button"));
  if (inside || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
}

function move(by) {
  const trace = panels[0].trace, longest = Math.max(...panels.map((panel) => panel.trace.length));
  select(Math.min(longest - 1, Math.max(0, (at.column ?? trace.start - by) + by)));
  const panel = panels.find((found) => found.canvas.contains(document.activeElement));
  if (panel) panel.chips[at.column]?.focus();
}

function connect() {
  const clicks = { first: () => go(0), back: () => go(at.stop - 1), next: () => go(at.stop + 1), last: () => go(places.length - 1), play };
  for (const [id, action] of Object.entries(clicks)) named(id).addEventListener("click", action);
  named("slider").addEventListener("input", (event) => go(Number(event.target.value)));
  named("by").addEventListener("change", realign);
  named("speed").addEventListener("change", () => { if (at.timer) { play(); play(); } });
  document.addEventListener("keydown", onKey);
  const redraw = () => panels.forEach((panel) => { panel.drawLayers(); panel.drawRun(); panel.markAll(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let waiting = null;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 150); });
}

async function open() {
  const told = JSON.parse(named("data").textContent), traces = await Promise.all(told.map((one) => Trace.read(one)));
  const many = traces.length > 1;
  named("prompt").textContent = `${traces[0].prompt}`;
  named("align").hidden = !many || traces.some((trace) => trace.seconds === null);
  panels = traces.map((trace, i) => new Panel(trace, i, traces));
  const sections = panels.map((panel) => panel.sections());
  const main = named("traces");
  main.classList.toggle("two", many);
  main.replaceChildren(...sections[0].flatMap((_, i) => sections.map((found) => found[i])), settings(traces));
  places = stops(traces, "forwards");
  named("slider").max = places.length - 1;
  connect();
  panels.forEach((panel) => panel.drawRun());
  tellStories();
  go(1);
  document.documentElement.dataset.ready = "true";
}

open().catch((error) => {
  named("traces").textContent = `This browser cannot show the page (${error.message}); one of 2023 or later can.`;
});
