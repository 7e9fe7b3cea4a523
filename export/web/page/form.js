"use strict";
// A form for the columns of a table or the numbers of a vector, and a text field for every other shape of input.

const Form = (() => {
  const { make } = Show;
  const DAY = 86_400_000; // ms
  let about = null;
  let controls = []; // of each field, a function that returns its value

  class BadValue extends Error {}

  // The model's inputs for rows of values, one value a field; numbers that are not known are NaN, texts "".
  function inputs(rows) {
    if (!about.is_table) return [[about.dtype, numbers(rows.flat()), about.shape]];
    return about.fields.map((field, k) => {
      const values = rows.map((row) => row[k]);
      return field.kind === "category" ? ["string", values, [1]] : ["float64", Float64Array.from(values), [1]];
    });
  }

  const numbers = (values) => (about.dtype === "uint8" ? Uint8Array.from(values) : Float32Array.from(values));

  // What stands in the form: one value a field. Raises BadValue.
  const values = () => controls.map((read) => read());

  function number(field, id, set) {
    const text = make("input", { type: "number", step: "any", id, value: field.start });
    if (about.is_table) text.placeholder = "not known";
    const range = make("input", { type: "range", min: field.low, max: field.high, step: field.step, value: field.start,
      "aria-label": `${field.name}, slider` });
    text.addEventListener("input", () => {
      if (text.value) range.value = text.value;
    });
    range.addEventListener("input", () => {
      text.value = range.value;
      set();
    });
    const read = () => {
      if (text.validity.badInput || (!text.value && !about.is_table)) throw new BadValue(`${field.name} is not a number.`);
      return text.value ? Number(text.value) : NaN;
    };
    return [[text, range], read];
  }

  function choice(id, options, start) {
    const select = make("select", { id }, ...options.map(([label]) => make("option", {}, label)));
    select.selectedIndex = Math.max(0, options.findIndex(([, value]) => Object.is(value, start)));
    return [[select], () => options[select.selectedIndex][1]];
  }

  const KINDS = {
    number,
    boolean: (field, id) => choice(id, [["yes", 1], ["no", 0], ["not known", NaN]], field.start),
    category: (field, id) => choice(id, [
      ...field.categories.map((text) => [text, text]), ["another one", field.other], ["not known", ""],
    ], field.start),
    date: (field, id) => {
      const text = make("input", { type: "date", id, value: field.start });
      const read = () => {
        if (text.validity.badInput) throw new BadValue(`${field.name} is no date.`);
        return text.value ? text.valueAsNumber / DAY : NaN;
      };
      return [[text], read];
    },
  };

  function fields(place, changed) {
    place.append(make("p", { class: "hint" }, about.hint));
    controls = about.fields.map((field, k) => {
      const id = `field-${k}`;
      const [elements, read] = KINDS[field.kind](field, id, changed);
      place.append(make("div", { class: "field" }, make("label", { for: id }, field.name), ...elements));
      return read;
    });
  }

  function text(place) {
    const area = make("textarea", { id: "values", spellcheck: "false", "aria-describedby": "values-hint" });
    const hint = make("p", { class: "hint", id: "values-hint" }, about.hint);
    place.append(make("label", { for: "values" }, "Values of one sample"), hint, area);
    const count = about.shape.reduce((product, size) => product * size, 1);
    controls = [() => {
      const found = area.value.split(/[\s,;[\]()]+/).filter(Boolean).map(Number);
      if (!found.length) throw new BadValue("");
      if (found.some(Number.isNaN)) throw new BadValue("There is something that is not a number.");
      if (found.length !== count) throw new BadValue(`There are ${found.length} numbers, and the model takes ${count}.`);
      if (about.dtype === "uint8" && !found.every((v) => Number.isInteger(v) && v >= 0 && v <= 255)) {
        throw new BadValue("The model takes whole numbers from 0 to 255.");
      }
      return found;
    }];
  }

  async function answer() {
    let row;
    try {
      row = values().flat();
    } catch (error) {
      if (!(error instanceof BadValue)) throw error;
      Show.problem(error.message);
      return;
    }
    const [found] = await Model.ask(inputs([row]), 1);
    Show.answer(found, about);
    await Curve.update(row);
  }

  // Builds the form; every change is answered, the newest at last.
  function build(place, description) {
    about = description;
    let isBusy = false;
    let isStale = false;
    const changed = async () => {
      isStale = true;
      if (isBusy) return;
      isBusy = true;
      try {
        while (isStale) {
          isStale = false;
          await answer();
        }
      } finally {
        isBusy = false;
      }
    };
    if (about.fields.length) fields(place, changed);
    else text(place);
    place.addEventListener("input", changed);
    Curve.build(about, inputs, changed);
    return changed();
  }

  return { build, inputs };
})();
