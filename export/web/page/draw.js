"use strict";
// A pad to draw on, with a mouse, a finger or the keyboard. What is on it goes to the model like any image.

const Draw = (() => {
  const { make, byId } = Show;
  const LARGE = 280; // pixels of the pad, about
  const STEP = 28; // steps of the keyboard from one side to the other

  function build(place, about) {
    const [, side] = about.shape;
    const size = side * Math.max(1, Math.round(LARGE / side));
    const [ground, ink] = about.is_dark ? ["#000", "#fff"] : ["#fff", "#000"];
    const pad = make("canvas", { id: "pad", width: size, height: size, tabindex: "0", role: "img", "aria-describedby": "pad-hint",
      "aria-label": "Drawing pad" });
    const width = make("input", { type: "range", id: "pen", min: "2", max: "20", value: "10" });
    const clear = make("button", { type: "button", id: "clear" }, "Clear");
    const seen = make("canvas", { id: "seen", width: side, height: side, role: "img", "aria-label": "What the model sees" });
    place.append(make("section", { "aria-label": "Draw" }, make("p", { class: "hint", id: "pad-hint" },
      "Or draw, large and in the middle. Keyboard: arrow keys move the pen, space puts it down or lifts it, Escape clears."), pad,
      make("div", { class: "row" }, seen, clear, make("label", { for: "pen" }, "Pen"), make("div", {}, width))));
    const context = pad.getContext("2d", { alpha: false, willReadFrequently: true });
    const pen = { x: size / 2, y: size / 2, isDown: false };
    let waiting = false;

    const changed = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(async () => {
        waiting = false;
        await answer();
      });
    };

    async function answer() {
      const found = await Images.ask(context.getImageData(0, 0, size, size));
      if (!about.any_size) preview(found.pixels);
      byId("picture").hidden = true;
      Show.answer(found, about);
    }

    function preview(pixels) {
      const image = new ImageData(side, side);
      for (let k = 0; k < pixels.length; k += 1) image.data.set([pixels[k], pixels[k], pixels[k], 255], 4 * k);
      seen.getContext("2d").putImageData(image, 0, 0);
    }

    function line(from, to) {
      context.strokeStyle = ink;
      context.lineWidth = (Number(width.value) / 100) * size;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(from.x, from.y);
      context.lineTo(to.x, to.y + 0.01); // a line without length would leave no dot
      context.stroke();
      changed();
    }

    function wipe() {
      context.fillStyle = ground;
      context.fillRect(0, 0, size, size);
      pen.isDown = false;
      if (!about.any_size) preview(new Uint8Array(side * side).fill(about.is_dark ? 0 : 255));
    }

    function at(event) {
      const box = pad.getBoundingClientRect();
      return { x: ((event.clientX - box.left) / box.width) * size, y: ((event.clientY - box.top) / box.height) * size };
    }

    pad.addEventListener("pointerdown", (event) => {
      pad.setPointerCapture(event.pointerId);
      Object.assign(pen, at(event), { isDown: false });
      line(pen, pen);
    });
    pad.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const to = at(event);
      line(pen, to);
      Object.assign(pen, to);
    });
    pad.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Escape") empty();
      else if (event.key === " ") {
        pen.isDown = !pen.isDown;
        if (pen.isDown) line(pen, pen);
      } else if (way) {
        const inside = (value) => Math.min(size, Math.max(0, value));
        const to = { x: inside(pen.x + (way[0] * size) / STEP), y: inside(pen.y + (way[1] * size) / STEP) };
        if (pen.isDown) line(pen, to);
        Object.assign(pen, to);
      } else return;
      pad.setAttribute("aria-label", `Drawing pad, pen ${pen.isDown ? "down" : "up"}, `
        + `${Math.round((100 * pen.x) / size)} % from the left, ${Math.round((100 * pen.y) / size)} % from the top`);
      event.preventDefault();
    });

    function empty() {
      wipe();
      Show.nothing("");
    }

    clear.addEventListener("click", empty);
    seen.hidden = about.any_size;
    wipe();
  }

  return { build };
})();
