"use strict";
/* Pictures: cells on a canvas, bars as SVG, each with marks on top and a line of text below that reads it out. */

const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

/* The page's colours, as [red, green, blue]. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.trim().slice(i, i + 2), 16));
  const found = {};
  for (const name of ["computed", "refreshed", "skipped", "cached", "committed", "paper"])
    found[name] = rgb(style.getPropertyValue(`--${name}`));
  found.ramp = style.getPropertyValue("--ramp").split(",").map(rgb);
  return found;
}

function mixed(a, b, share) { return a.map((x, i) => x + (b[i] - x) * share); }

/* A place on the ramp, from 0 to 1. */
function ramp(colours, share) {
  const at = Math.min(Math.max(share, 0), 1) * (colours.ramp.length - 1), low = Math.min(Math.floor(at), colours.ramp.length - 2);
  return mixed(colours.ramp[low], colours.ramp[low + 1], at - low);
}

/* Cells in columns and rows. `pick` is told of the cell under the pointer, `choose` of one that is clicked. */
class Cells {
  constructor({ name, edges, pick, choose }) {
    this.name = name;
    this.canvas = make("canvas");
    this.at = make("div", { className: "at", hidden: true });
    this.where = make("div", { className: "where", hidden: true });
    this.element = make("div", { className: "chart" }, this.canvas, this.at, this.where);
    this.element.setAttribute("role", "img");
    for (const edge of edges) this.element.append(make("div", { className: "edge", style: `left: ${100 * edge}%` }));
    const cell = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const part = (x, size, n) => Math.min(n - 1, Math.max(0, Math.floor((x / size) * n)));
      return [part(event.clientX - box.left, box.width, this.columns), part(event.clientY - box.top, box.height, this.rows)];
    };
    this.element.addEventListener("pointermove", (event) => pick(...cell(event)));
    this.element.addEventListener("click", (event) => { pick(...cell(event)); choose(...cell(event)); });
  }

  draw(columns, rows, height, colour) {
    this.columns = columns;
    this.rows = rows;
    this.canvas.width = columns;
    this.canvas.height = rows;
    this.element.style.height = `${height}px`;
    const context = this.canvas.getContext("2d"), image = context.createImageData(columns, rows);
    for (let y = 0, i = 0; y < rows; y++)
      for (let x = 0; x < columns; x++, i += 4) {
        const [red, green, blue] = colour(x, y);
        image.data[i] = red; image.data[i + 1] = green; image.data[i + 2] = blue; image.data[i + 3] = 255;
      }
    context.putImageData(image, 0, 0);
    const fits = this.element.clientWidth >= columns && height >= rows;
    this.canvas.style.imageRendering = fits ? "pixelated" : "auto";
  }

  mark(column, row) {
    this.where.hidden = column === null;
    this.at.hidden = row === null;
    if (column !== null) Object.assign(this.where.style, { left: `${(100 * column) / this.columns}%`, width: `${100 / this.columns}%` });
    if (row !== null) Object.assign(this.at.style, { top: `${(100 * row) / this.rows}%`, height: `${100 / this.rows}%` });
  }

  tell(text) { this.element.setAttribute("aria-label", `${this.name}. ${text}`); }
}

/* One bar a step, in so many places, as high as a share of the highest. */
class Bars {
  constructor({ name, values, highest, places, kinds, pick, choose }) {
    const count = places, space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", `0 0 ${count} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("width", "100%");
    svg.setAttribute("height", "100%");
    values.forEach((value, i) => {
      const bar = document.createElementNS(space, "rect");
      const height = value / (highest || 1), place = { x: i + 0.08, y: 1 - height, width: 0.84, height };
      for (const [key, number] of Object.entries(place)) bar.setAttribute(key, number);
      bar.style.fill = `var(--${{ refresh: "refreshed", skip: "skipped", reuse: "computed" }[kinds[i]]})`;
      svg.append(bar);
    });
    this.count = count;
    this.where = make("div", { className: "where", hidden: true });
    this.element = make("div", { className: "chart bars" }, svg, this.where);
    this.element.setAttribute("role", "img");
    this.element.setAttribute("aria-label", name);
    const bar = (event) => {
      const box = this.element.getBoundingClientRect();
      return Math.min(count - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * count)));
    };
    this.element.addEventListener("pointermove", (event) => pick(bar(event)));
    this.element.addEventListener("click", (event) => choose(bar(event)));
  }

  mark(i) {
    this.where.hidden = i === null;
    if (i !== null) Object.assign(this.where.style, { left: `${(100 * i) / this.count}%`, width: `${100 / this.count}%` });
  }
}
