"use strict";
// What the page shows of a model and of its answers. Names are only ever set as text.

const Show = (() => {
  const MOST = 10; // bars
  const SAID = 3; // predictions that one line holds
  const byId = (id) => document.getElementById(id);

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function card(about) {
    document.title = about.title;
    byId("title").textContent = about.title;
    byId("summary").textContent = about.summary;
    for (const id of ["card", "lineage"]) {
      byId(id).replaceChildren(...about[id].flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
    }
    byId("runtime").textContent = about.runtime.notice;
  }

  function problem(text) {
    byId("problem").textContent = text;
    byId("problem").hidden = !text;
    if (text) nothing("");
  }

  function nothing(text) {
    byId("decision").textContent = text;
    byId("bars").hidden = true;
  }

  const share = (value) => `${(100 * value).toFixed(1)} %`;
  const number = (value) => Number(value.toPrecision(6)).toString();

  function answer(found, about) {
    problem("");
    if (!found.isFinite) return nothing("The model gives no number here (NaN or infinity).");
    if (found.decided === null) {
      const isShort = found.values.length <= SAID;
      const items = Array.from(found.values, (value, k) => [about.names[k], number(value), null, false]);
      byId("decision").textContent = isShort ? items.map(([name, text]) => `${name}: ${text}`).join(", ")
        : `${items.length} predictions`;
      rows(items);
      byId("bars").hidden = isShort;
      return undefined;
    }
    const isChosen = (k) => (Array.isArray(found.decided) ? found.decided[k] === 1 : found.decided === k);
    const chosen = about.names.filter((_, k) => isChosen(k));
    byId("decision").textContent = Array.isArray(found.decided)
      ? chosen.join(", ") || "No label" : `${chosen[0]} (${share(found.values[found.decided])})`;
    let order = about.names.map((_, k) => k);
    if (order.length > MOST) order = order.sort((a, b) => found.values[b] - found.values[a]).slice(0, MOST);
    rows(order.map((k) => [about.names[k], share(found.values[k]), found.values[k], isChosen(k)]));
    byId("bars").hidden = false;
    return undefined;
  }

  function rows(items) {
    byId("bars").replaceChildren(...items.map(([name, text, part, isChosen]) => {
      const row = make("li", { class: isChosen ? "chosen" : "" }, make("span", {}, name), make("span", { class: "share" }, text));
      if (part !== null) {
        const fill = make("div", { class: "fill" });
        fill.style.width = `${100 * part}%`;
        row.append(make("div", { class: "track", "aria-hidden": "true" }, fill));
      }
      return row;
    }));
  }

  return { make, card, problem, nothing, answer, number, byId };
})();
