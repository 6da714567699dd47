"use strict";
/* A trace as the page reads it: numbers unpacked, questions answered. Knows nothing of the document. */

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array };

async function unpack({ type, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new TYPES[type](await new Response(stream).arrayBuffer());
}

const SHARES = 65535;

/* Where each step's entries begin in a flat array. */
function offsets(counts) {
  const found = new Uint32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i++) found[i + 1] = found[i] + counts[i];
  return found;
}

class Trace {
  static async read(told) {
    const names = Object.keys(told.arrays);
    const read = await Promise.all(names.map((name) => unpack(told.arrays[name])));
    return new Trace(told, Object.fromEntries(names.map((name, i) => [name, read[i]])));
  }

  constructor(told, arrays) {
    Object.assign(this, told);
    this.a = arrays;
    this.length = arrays.tokens.length;
    this.count = told.steps.length;
    this.committedFrom = offsets(arrays.committedCount);
    this.candidatesFrom = offsets(arrays.candidateCount);
    this.times = [0];
    for (const step of told.steps) this.times.push(this.times[this.times.length - 1] + (step.ms || 0));
  }

  text(token) { return this.pieces[token] ?? String(token); }

  /* Layers that computed a position at a step: the first so many. */
  depth(step, position) { return this.a.depth[step * this.length + position]; }

  state(step, position, layer) {
    const depth = this.depth(step, position);
    if (!depth) return "cached";
    if (layer === undefined ? depth < this.layers : layer >= depth) return "skipped";
    return this.steps[step].kind === "refresh" ? "refreshed" : "computed";
  }

  /* A level's number; null where nothing is known. */
  unscaled(level) {
    if (!level) return null;
    const [least, most, levels] = this.scale;
    return least * (most / least) ** ((level - 1) / (levels - 1));
  }

  changeLevel(step, layer, position) { return this.a.change[(step * this.layers + layer) * this.length + position]; }

  change(step, layer, position) { return this.unscaled(this.changeLevel(step, layer, position)); }

  /* The mean level over the layers that know one; 0 where none does. On the logarithmic scale: a geometric mean. */
  meanLevel(step, position) {
    let sum = 0, known = 0;
    for (let layer = 0; layer < this.layers; layer++) {
      const level = this.changeLevel(step, layer, position);
      if (level) { sum += level; known++; }
    }
    return known ? sum / known : 0;
  }

  scoredIndex(step, layer, position) {
    const row = this.scoredLayers.indexOf(layer);
    return row < 0 ? -1 : (step * this.scoredLayers.length + row) * this.length + position;
  }

  variationLevel(step, layer, position) {
    const i = this.scoredIndex(step, layer, position);
    return i < 0 ? 0 : this.a.variation[i];
  }

  score(step, layer, position) {
    const i = this.scoredIndex(step, layer, position), [low, high, most] = this.importance;
    return i < 0 || !this.a.score[i] ? null : low + ((high - low) * (this.a.score[i] - 1)) / most;
  }

  committed(step) {
    const found = [];
    for (let i = this.committedFrom[step]; i < this.committedFrom[step + 1]; i++)
      found.push([this.a.committedColumn[i], this.a.committedToken[i]]);
    return found;
  }

  candidates(step) {
    const found = [];
    for (let i = this.candidatesFrom[step]; i < this.candidatesFrom[step + 1]; i++) {
      const best = [];
      for (let k = 3 * i; k < 3 * i + 3; k++)
        if (this.a.bestShare[k]) best.push([this.a.bestToken[k], this.a.bestShare[k] / SHARES]);
      found.push({ column: this.a.candidateColumn[i], token: this.a.candidateToken[i],
        confidence: this.a.candidateConfidence[i] / SHARES, best });
    }
    return found;
  }

  /* The canvas after so many steps, and each column's latest candidate (-1: none) with its confidence. */
  after(steps) {
    const tokens = Int32Array.from(this.a.tokens), guesses = new Int32Array(this.length).fill(-1);
    const confidence = new Float32Array(this.length);
    for (let step = 0; step < steps; step++) {
      for (const one of this.candidates(step)) {
        guesses[one.column] = one.token;
        confidence[one.column] = one.confidence;
      }
      for (const column of this.steps[step].revoked) tokens[column] = this.mask;
      for (const [column, token] of this.committed(step)) tokens[column] = token;
    }
    return { tokens, guesses, confidence };
  }

  /* All that happened to a column. */
  story(column) {
    const found = { column, given: this.a.tokens[column] !== this.mask, token: this.a.tokens[column],
      full: [], part: [], candidates: [], committedAt: [], revokedAt: [] };
    for (let step = 0; step < this.count; step++) {
      const depth = this.depth(step, column);
      if (depth === this.layers) found.full.push(step);
      else if (depth) found.part.push([step, depth]);
      for (const one of this.candidates(step))
        if (one.column === column) found.candidates.push({ step, ...one });
      if (this.steps[step].revoked.includes(column)) found.revokedAt.push(step);
      for (const [where, token] of this.committed(step))
        if (where === column) { found.committedAt.push(step); found.token = token; }
    }
    return found;
  }

  /* For each kind of step: how many, their share of all positions in all layers, the median of their times. */
  kinds() {
    return ["refresh", "skip", "reuse"].map((kind) => {
      const steps = this.steps.map((step, i) => i).filter((i) => this.steps[i].kind === kind);
      const times = steps.map((i) => this.steps[i].ms).filter((ms) => ms !== null).sort((a, b) => a - b);
      return { kind, steps: steps.length, work: steps.length ? mean(steps.map((i) => this.work(i))) : 0,
        ms: times.length ? (times[(times.length - 1) >> 1] + times[times.length >> 1]) / 2 : null };
    }).filter((row) => row.steps);
  }

  /* Positions computed in all layers of a step, as a share of all. */
  work(step) {
    let sum = 0;
    for (let position = 0; position < this.length; position++) sum += this.depth(step, position);
    return sum / (this.length * this.layers);
  }
}

function mean(numbers) { return numbers.reduce((a, b) => a + b, 0) / numbers.length; }

/* The places of the slider: for each, how many steps every trace has made. */
function stops(traces, by) {
  if (by === "time") {
    const times = [...new Set(traces.flatMap((trace) => trace.times))].sort((a, b) => a - b);
    return times.map((time) => traces.map((trace) => trace.times.filter((at) => at <= time).length - 1));
  }
  const longest = Math.max(...traces.map((trace) => trace.count));
  return Array.from({ length: longest + 1 }, (_, i) => traces.map((trace) => Math.min(i, trace.count)));
}

/* 1, 2, 3, 7 as "1-3, 7", at most so many ranges. */
function ranges(numbers, most = 12) {
  const found = [];
  for (const n of numbers) {
    const last = found[found.length - 1];
    if (last && last[1] === n - 1) last[1] = n;
    else found.push([n, n]);
  }
  const shown = found.slice(0, most).map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(", ");
  return found.length > most ? `${shown}, and ${found.length - most} more` : shown;
}

/* A settings tree as lines: {a: {b: 1}} is a.b = 1. */
function flat(settings, before = "") {
  return Object.entries(settings).flatMap(([name, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length
      ? flat(value, `${before}${name}.`) : [[before + name, JSON.stringify(value)]]);
}

/* A token as a chip shows it. */
function label(text) {
  const special = /^<\|?([^<>|]+)\|?>$/.exec(text);
  if (special) return /end|eot|eos/i.test(special[1]) ? "∎" : `⟨${special[1]}⟩`;
  if (text === "") return "∅";
  const seen = text.replace(/\n/g, "↵").replace(/\t/g, "⇥");
  return seen.trim() === "" ? seen.replace(/ /g, "␣") : seen;
}

if (typeof module !== "undefined") module.exports = { Trace, stops, ranges, flat, label };
