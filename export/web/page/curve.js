"use strict";
// The predictions of a regression over one of its numbers, all others as they stand in the form.

const Curve = (() => {
  const { make, byId, number } = Show;
  const POINTS = 201;
  const BOX = { left: 62, top: 26, width: 400, height: 220 }; // of the picture, 480 x 290
  const NAMESPACE = "http://www.w3.org/2000/svg";
  let about = null;
  let inputs = null;
  let axis = null; // the choice of the field that x is

  function build(description, makeInputs, changed) {
    const places = description.fields.flatMap((field, k) => (field.kind === "number" ? [k] : []));
    if (description.has_decisions || !places.length) return;
    about = description;
    inputs = makeInputs;
    axis = make("select", { id: "axis" }, ...places.map((k) => make("option", { value: k }, about.fields[k].name)));
    const choice = make("p", { class: "row" }, make("label", { for: "axis" }, "Over"), axis);
    choice.hidden = places.length === 1;
    axis.addEventListener("change", changed);
    byId("curve").append(choice, make("div", { id: "plot" }));
    byId("curve").hidden = false;
  }

  async function update(row) {
    if (!about) return;
    const place = Number(axis.value);
    const field = about.fields[place];
    const here = row[place];
    const low = Math.min(field.low, Number.isNaN(here) ? field.low : here);
    const high = Math.max(field.high, Number.isNaN(here) ? field.high : here);
    const xs = Array.from({ length: POINTS }, (_, k) => low + ((high - low) * k) / (POINTS - 1));
    const samples = [...xs, here].map((x) => row.map((value, k) => (k === place ? x : value)));
    const found = await Model.ask(inputs(samples), samples.length);
    draw(field, xs, found.slice(0, -1), here, found[POINTS]);
  }

  function shape(tag, attributes, ...children) {
    const element = document.createElementNS(NAMESPACE, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function draw(field, xs, found, here, now) {
    const pictures = about.names.map((name, t) => picture(field, xs, found.map((each) => each.values[t]), name,
      Number.isNaN(here) || !now.isFinite ? null : [here, now.values[t]]));
    byId("plot").replaceChildren(...pictures.filter(Boolean));
  }

  // The curve of one target, and a ring where the form stands; nothing where no value is a number.
  function picture(field, xs, ys, name, ring) {
    const finite = ys.filter(Number.isFinite);
    if (!finite.length) return null;
    let [bottom, top] = [Math.min(...finite), Math.max(...finite)];
    if (bottom === top) [bottom, top] = [bottom - 1, top + 1];
    const [first, last] = [xs[0], xs[POINTS - 1]];
    const across = (x) => BOX.left + ((x - first) / (last - first)) * BOX.width;
    const up = (y) => BOX.top + BOX.height - ((y - bottom) / (top - bottom)) * BOX.height;
    const points = xs.flatMap((x, k) => (Number.isFinite(ys[k]) ? [`${across(x).toFixed(1)},${up(ys[k]).toFixed(1)}`] : []));
    const ticks = [0, 1, 2, 3, 4].flatMap((k) => {
      const [x, y] = [first + ((last - first) * k) / 4, bottom + ((top - bottom) * k) / 4];
      return [shape("text", { x: across(x), y: BOX.top + BOX.height + 18, "text-anchor": "middle" }, short(x)),
        shape("text", { x: BOX.left - 6, y: up(y) + 4, "text-anchor": "end" }, short(y))];
    });
    const middle = { x: BOX.left + BOX.width / 2, "text-anchor": "middle" };
    return shape("svg", { viewBox: "0 0 480 290", role: "img", "aria-label": `${name} over ${field.name}, from `
      + `${number(ys[0])} at ${number(first)} to ${number(ys[POINTS - 1])} at ${number(last)}` },
    shape("rect", { class: "frame", x: BOX.left, y: BOX.top, width: BOX.width, height: BOX.height }), ...ticks,
    shape("text", { ...middle, y: 16 }, name), shape("text", { ...middle, y: BOX.top + BOX.height + 36 }, field.name),
    shape("polyline", { points: points.join(" ") }),
    ...(ring ? [shape("circle", { r: 5, cx: across(ring[0]), cy: up(ring[1]) })] : []));
  }

  const short = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1)
    : Number(value.toPrecision(3)).toString());

  return { build, update };
})();
