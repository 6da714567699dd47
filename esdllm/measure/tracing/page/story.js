"use strict";
/* A token's story: when it was computed, what the model would have put there, when it was decided. */

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

const forwards = (n) => `${n} forward${n === 1 ? "" : "s"}`;

function storyLines(trace, found) {
  const { column } = found, name = JSON.stringify(trace.text(found.token)), forward = (step) => step + 1;
  const lines = [];
  if (found.given) lines.push("Given by the prompt.");
  else if (!found.committedAt.length) lines.push("Never decided.");
  else lines.push(`Decided as ${name} at forward ${found.committedAt.map(forward).join(", ")}.`);
  if (found.revokedAt.length) lines.push(`Made a mask again at forward ${found.revokedAt.map(forward).join(", ")}.`);
  if (trace.shift && !found.given) lines.push(`Its candidates come from position ${column - trace.shift}.`);
  const none = trace.count - found.full.length - found.part.length;
  lines.push(found.full.length ? `Computed in all layers at ${forwards(found.full.length)}: ${ranges(found.full.map(forward))}.`
    : "Never computed in all layers.");
  if (found.part.length) {
    const depths = found.part.map(([, depth]) => depth);
    const least = Math.min(...depths), most = Math.max(...depths);
    lines.push(`In its first ${least === most ? least : `${least} to ${most}`} layers only at ${forwards(found.part.length)}: `
      + `${ranges(found.part.map(([step]) => forward(step)))}.`);
  }
  if (none) lines.push(`Read from the cache alone at ${forwards(none)} of ${trace.count}.`);
  return lines;
}

function storyTable(trace, found, step) {
  const body = make("tbody");
  for (const one of found.candidates) {
    const others = one.best.filter(([token, share]) => token !== one.token && share >= 0.005)
      .map(([token, share]) => `${label(trace.text(token))} (${percent(share)})`).join(", ");
    const taken = found.committedAt.includes(one.step) ? " ✓ decided" : "";
    body.append(make("tr", { className: one.step === step ? "now" : "" },
      make("td", { className: "number", textContent: one.step + 1 }),
      make("td", {}, make("code", { textContent: label(trace.text(one.token)) }), taken),
      make("td", { className: "number", textContent: percent(one.confidence, 1) }),
      make("td", { textContent: others })));
  }
  const head = make("tr", {}, ...["forward", "candidate", "confidence", "next best"].map((text, i) =>
    make("th", { textContent: text, scope: "col", className: i === 0 || i === 2 ? "number" : "" })));
  return make("div", { className: "scroll", tabIndex: 0, ariaLabel: "Candidates by forward", role: "region" },
    make("table", {}, make("thead", {}, head), body));
}

function showStory(element, trace, column, step) {
  if (column === null || column >= trace.length) {
    element.replaceChildren(make("p", { className: "facts", textContent: "Tap a token to read its story." }));
    return;
  }
  const found = trace.story(column);
  const text = storyLines(trace, found).join(" ");
  element.replaceChildren(make("p", {}, make("b", { textContent: `Position ${column} ` }),
    make("code", { textContent: label(trace.text(found.token)) })), make("p", { textContent: text }));
  if (found.candidates.length) element.append(storyTable(trace, found, step));
}
