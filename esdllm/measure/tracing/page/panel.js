"use strict";
/* One trace on the page: its canvas, its pictures, and what reads them out. */

const STATES = { computed: "computed in every layer", refreshed: "computed by a refresh", skipped: "skipped", cached: "read from the cache",
  committed: "decided now" };
const KINDS = { refresh: "refresh", skip: "early skipping", reuse: "cache reuse" };

const SHOWN = 48;

const seconds = (ms) => (ms === null ? "" : ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : ms >= 10 ? `${ms.toFixed(0)} ms` : `${ms.toFixed(2)} ms`);

function chooser(name, options, change) {
  const select = make("select", { ariaLabel: name }, ...options.map(([value, text]) => make("option", { value, textContent: text })));
  select.addEventListener("change", change);
  return select;
}

class Panel {
  constructor(trace, index, traces) {
    this.trace = trace;
    this.index = index;
    this.many = traces.length > 1;
    this.longest = Math.max(...traces.map((one) => one.count));
    this.made = 0;
    const edges = [trace.start / trace.length], choose = (column) => select(column);
    this.layers = new Cells({ name: "Layers by positions at this forward", edges, choose, pick: (...cell) => this.readLayers(...cell) });
    this.run = new Cells({ name: "Forwards by positions", edges, pick: (...cell) => this.readRun(...cell),
      choose: (column, step) => { go(this.stopOf(step + 1)); select(column); } });
    this.timed = traces.every((one) => one.seconds !== null);
    const heights = (one) => one.steps.map((step, i) => (this.timed ? step.ms : one.work(i)));
    this.highest = Math.max(...traces.flatMap(heights));
    this.bars = new Bars({ name: this.timed ? "Time of each forward" : "Positions computed at each forward", values: heights(trace),
      highest: this.highest, places: this.longest, kinds: trace.steps.map((step) => step.kind), pick: (i) => this.readBar(i),
      choose: (i) => go(this.stopOf(i + 1)) });
    this.layerMode = chooser("What the picture of the layers shows", [["work", "computed, skipped, refreshed"],
      ["change", "variation of the values"], ["variation", "variation scored"], ["score", "importance"]], () => together("layerMode", this.layerMode.value));
    this.runMode = chooser("What the picture of the run shows", [["work", "computed, skipped, refreshed"],
      ["change", "variation of the values"], ["confidence", "confidence of the candidates"]], () => together("runMode", this.runMode.value));
  }

  /* The slider's first place at which this trace has made so many steps. */
  stopOf(steps) { return places.findIndex((place) => place[this.index] >= steps); }

  sections() {
    const trace = this.trace;
    this.status = make("p", { className: "facts" });
    this.canvas = make("div", { className: "canvas" });
    this.canvas.setAttribute("role", "group");
    this.canvas.setAttribute("aria-label", `Canvas, ${trace.name}`);
    this.chips = Array.from({ length: trace.length }, (_, column) => {
      const chip = make("button", { type: "button", tabIndex: -1, className: "token" });
      chip.addEventListener("click", () => select(column));
      return chip;
    });
    this.canvas.append(...this.chips);
    this.story = make("div", { className: "story" });
    this.story.setAttribute("aria-live", "polite");
    const share = `${percent(trace.share, 1)} of all positions in all layers`;
    const total = trace.seconds === null ? "" : `, ${seconds(1000 * trace.seconds)}`;
    const summary = `${trace.count} forwards${total}, ${share}`;
    [this.layersText, this.runText, this.barText] = [0, 1, 2].map(() => make("p", { className: "facts" }));
    this.layersLegend = make("div", { className: "legend" });
    this.runLegend = make("div", { className: "legend" });
    const axis = (...texts) => make("div", { className: "axis" }, ...texts.map((text) => make("span", { textContent: text })));
    const edge = `left: clamp(5.5em, ${(100 * trace.start) / trace.length}%, 100% - 8em)`;
    const positions = () => axis("0", `${trace.length - 1}`);
    const split = () => { const line = positions(); line.append(make("span", { className: "answer", style: edge, textContent: `answer from ${trace.start}` })); return line; };
    const top = this.timed ? `highest bar ${seconds(this.highest)}` : `highest bar ${percent(this.highest)}`;
    return [
      this.section(trace.name, summary, this.promptTools(), this.status, this.canvas, this.legendOfTokens()),
      this.section("Story", "of the chosen token", [], this.story),
      this.section("This forward", "layers down, positions across", [this.layerMode], this.layers.element, split(), this.layersText, this.layersLegend),
      this.section("The run", "forwards down, positions across", [this.runMode], this.run.element, split(), this.runText, this.runLegend),
      this.section(this.timed ? "Time" : "Work", this.timed ? "of each forward" : "of each forward; times were not taken", [], this.bars.element,
        axis("forward 1", top, `${this.longest}`), this.barText, this.kindTable()),
    ];
  }

  section(title, small, tools, ...content) {
    const said = this.many && title !== this.trace.name ? this.trace.name : small;
    const heading = make("h2", {}, `${title} `, make("small", { textContent: said }));
    const section = make("section", {}, make("div", { className: "head" }, heading, ...tools), ...content);
    section.setAttribute("aria-label", `${title}, ${this.trace.name}`);
    return section;
  }

  /* A long prompt is folded to its last tokens. */
  promptTools() {
    const { start } = this.trace, folded = Math.max(0, start - SHOWN);
    if (!folded) return [];
    const button = make("button", { type: "button" });
    const fold = (hide) => {
      this.chips.slice(0, folded).forEach((chip) => { chip.hidden = hide; });
      button.textContent = hide ? `show all ${start} tokens of the prompt` : "fold the prompt";
      button.setAttribute("aria-expanded", String(!hide));
    };
    button.addEventListener("click", () => fold(!this.chips[0].hidden));
    fold(true);
    return [button];
  }

  legendOfTokens() {
    const item = (name, text) => make("span", {}, make("i", { className: "bar", style: `background: var(--${name})` }), text);
    return make("div", { className: "legend" }, make("span", { textContent: "bar: share of the layers that computed it" }), item("computed", "all"),
      item("refreshed", "all, by a refresh"), item("skipped", "the first ones, then skipped"),
      make("span", {}, make("i", { style: "background: var(--committed)" }), "decided now"), make("span", { textContent: "italic: candidate" }),
      make("span", { textContent: "·  no candidate yet" }), make("span", { textContent: "∎  end of text" }));
  }

  kindTable() {
    const head = make("tr", {}, ...["kind", "forwards", "work", "median time"].map((text, i) => make("th", { scope: "col", textContent: text, className: i ? "number" : "" })));
    const rows = this.trace.kinds().map((row) => make("tr", {}, make("td", {}, make("span", { className: `kind ${row.kind}`, textContent: KINDS[row.kind] })),
      ...[row.steps, percent(row.work, 1), seconds(row.ms)].map((text) => make("td", { className: "number", textContent: text }))));
    return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  }

  show(made) {
    this.made = made;
    this.showStatus();
    this.showCanvas();
    this.drawLayers();
    this.markAll();
  }

  showStatus() {
    const { trace, made } = this;
    if (!made) {
      this.status.replaceChildren("Before the first forward.");
      return;
    }
    const step = trace.steps[made - 1], decided = trace.committed(made - 1).length;
    const bold = (text) => make("b", { textContent: text });
    const layers = step.keep.map(([count, times]) => (times > 1 ? `${count} ×${times}` : `${count}`)).join(", ");
    this.status.replaceChildren(make("span", { className: `kind ${step.kind}`, textContent: KINDS[step.kind] }), " forward ", bold(`${made}`),
      ` of ${trace.count}, block ${step.block + 1}, window ${step.window}, `, bold(percent(trace.work(made - 1), 1)), " of the work, ",
      bold(`${decided}`), " decided", step.ms === null ? "" : `, ${seconds(step.ms)}`, `; layers hand on ${layers}`);
  }

  showCanvas() {
    const { trace, made } = this, { tokens, guesses, confidence } = trace.after(made), step = made - 1;
    const now = new Set(made ? trace.committed(step).map(([column]) => column) : []);
    const back = new Set(made ? trace.steps[step].revoked : []);
    const block = made ? [trace.steps[step].from + trace.shift, trace.steps[step].to + trace.shift] : [0, 0];
    this.chips.forEach((chip, column) => {
      const masked = tokens[column] === trace.mask, token = masked ? guesses[column] : tokens[column];
      const depth = made ? trace.depth(step, column) : 0, state = made ? trace.state(step, column) : "cached";
      const text = token < 0 ? "·" : label(trace.text(token));
      if (chip.textContent !== text) chip.textContent = text;
      const marks = ["token", column < trace.start && !masked ? "prompt" : "", masked ? "masked" : "", { refreshed: "refreshed", skipped: "partial" }[state],
        column >= block[0] && column < block[1] ? "block" : "", now.has(column) ? "committed" : "", back.has(column) ? "revoked" : "",
        column === at.column ? "chosen" : ""];
      chip.className = marks.filter(Boolean).join(" ");
      chip.style.setProperty("--d", depth / trace.layers);
      chip.tabIndex = column === (at.column ?? trace.start) ? 0 : -1;
      const said = masked ? (token < 0 ? "mask" : `mask, candidate ${text}, ${percent(confidence[column])}`) : text;
      chip.setAttribute("aria-label", `position ${column}: ${said}, ${now.has(column) ? "decided now, " : ""}computed in ${depth} of ${trace.layers} layers`);
    });
  }

  drawLayers() {
    const { trace, made } = this, mode = this.layerMode.value, colours = palette(), step = made - 1;
    const height = Math.min(260, Math.max(96, 10 * trace.layers)), levels = trace.scale[2], [low, high] = trace.importance;
    const shades = {
      work: (position, layer) => colours[trace.state(step, position, layer)],
      change: (position, layer) => shade(colours, trace.changeLevel(step, layer, position), levels),
      variation: (position, layer) => shade(colours, trace.variationLevel(step, layer, position), levels),
      score: (position, layer) => {
        const score = trace.score(step, layer, position);
        return score === null ? colours.cached : ramp(colours, (score - low) / (high - low || 1));
      },
    };
    this.layers.draw(trace.length, trace.layers, height, made ? shades[mode] : () => colours.cached);
    this.layers.mark(at.column, null);
    const counts = made ? count(trace, step) : null;
    this.layers.tell(counts ? `Forward ${made}: ${counts}` : "Nothing is computed yet");
    this.layersText.textContent = counts ?? "Nothing is computed yet.";
    const empty = (mode === "variation" || mode === "score") && !trace.scoredLayers.length;
    const range = mode === "score" ? [low, high].map((x) => x.toPrecision(3)) : [`${trace.scale[0]}`, `${trace.scale[1]}`];
    legend(this.layersLegend, mode === "work" ? ["computed", "refreshed", "skipped", "cached"] : empty ? "no layer of this run drops a position" : [...range, mode === "score" ? "grey: not known" : "logarithmic; grey: not known"]);
  }

  drawRun() {
    const { trace } = this, mode = this.runMode.value, colours = palette(), levels = trace.scale[2];
    const height = Math.min(560, Math.max(120, 5 * this.longest));
    const known = new Map();
    for (let step = 0; step < trace.count; step++) {
      if (mode === "work") for (const [column] of trace.committed(step)) known.set(step * trace.length + column, 1);
      if (mode === "confidence") for (const one of trace.candidates(step)) known.set(step * trace.length + one.column, one.confidence);
    }
    const shades = {
      work: (position, step) => {
        const state = trace.state(step, position);
        if (known.has(step * trace.length + position)) return colours.committed;
        return state === "skipped" ? mixed(colours.cached, colours.skipped, 0.25 + (0.75 * trace.depth(step, position)) / trace.layers) : colours[state];
      },
      change: (position, step) => shade(colours, trace.meanLevel(step, position), levels),
      confidence: (position, step) => {
        const found = known.get(step * trace.length + position);
        return found === undefined ? colours.cached : ramp(colours, found);
      },
    };
    this.run.draw(trace.length, this.longest, height, (position, step) => (step < trace.count ? shades[mode](position, step) : colours.paper));
    this.run.tell(trace.kinds().map((row) => `${row.steps} forwards of ${KINDS[row.kind]}`).join(", "));
    if (!this.runText.textContent) this.runText.textContent = "A row is a forward; tap one to go there.";
    const ends = mode === "confidence" ? ["0", "1", "grey: no logits"] : [`${trace.scale[0]}`, `${trace.scale[1]}`, "logarithmic, mean of the layers; grey: not known"];
    legend(this.runLegend, mode === "work" ? ["computed", "refreshed", "skipped", "cached", "committed"] : ends);
    if (mode === "work" && trace.scoredLayers.length) this.runLegend.append(make("span", { textContent: "paler: skipped after fewer layers" }));
  }

  markAll() {
    this.run.mark(at.column, this.made ? this.made - 1 : null);
    this.layers.mark(at.column, null);
    this.bars.mark(this.made ? this.made - 1 : null);
    if (this.made) this.readBar(this.made - 1);
  }

  place(position, step) {
    return `position ${position} ${JSON.stringify(this.standing(position, step))}`;
  }

  standing(position, step) {
    const { tokens, guesses } = this.trace.after(step + 1), token = tokens[position] === this.trace.mask ? guesses[position] : tokens[position];
    return token < 0 ? "·" : label(this.trace.text(token));
  }

  readLayers(position, layer) {
    const { trace, made } = this, step = made - 1;
    if (!made) return;
    const known = [["variation of its values", trace.change(step, layer, position)], ["variation scored", trace.unscaled(trace.variationLevel(step, layer, position))],
      ["importance", trace.score(step, layer, position)]].filter(([, x]) => x !== null).map(([name, x]) => `${name} ${x.toPrecision(2)}`);
    this.layersText.textContent = [`Layer ${layer}, ${this.place(position, step)}`, STATES[trace.state(step, position, layer)].replace(" in every layer", ""), ...known].join(", ");
  }

  readRun(position, step) {
    const { trace } = this;
    if (step >= trace.count) return;
    const one = trace.candidates(step).find((found) => found.column === position);
    const said = one ? `, candidate ${JSON.stringify(label(trace.text(one.token)))} ${percent(one.confidence, 1)}` : "";
    this.runText.textContent = `Forward ${step + 1}, ${this.place(position, step)}, computed in ${trace.depth(step, position)} of ${trace.layers} layers${said}`;
  }

  readBar(i) {
    const step = this.trace.steps[i];
    if (!step) return;
    this.barText.textContent = `Forward ${i + 1}, ${KINDS[step.kind]}: ${step.ms === null ? "" : `${seconds(step.ms)}, `}${percent(this.trace.work(i), 1)} of the work`;
  }
}

function shade(colours, level, levels) { return level ? ramp(colours, (level - 1) / (levels - 1)) : colours.cached; }

/* How many positions a step computed in every layer, in some, in none. */
function count(trace, step) {
  const found = { computed: 0, refreshed: 0, skipped: 0, cached: 0 };
  for (let position = 0; position < trace.length; position++) found[trace.state(step, position)]++;
  return Object.entries(found).filter(([, n]) => n).map(([name, n]) => `${n} ${STATES[name]}`).join(", ") + ".";
}

function legend(element, parts) {
  if (typeof parts === "string") element.textContent = parts;
  else if (parts[0] in STATES)
    element.replaceChildren(...parts.map((name) => make("span", {}, make("i", { style: `background: var(--${name})` }), STATES[name])));
  else element.replaceChildren(make("span", {}, `${parts[0]} `, make("i", { className: "ramp" }), ` ${parts[1]}`), ...parts.slice(2).map((text) => make("span", { textContent: text })));
}
