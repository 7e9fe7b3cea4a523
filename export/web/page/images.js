"use strict";
// Images: dropped, pasted, chosen, or from a camera. The pixels go to the model as they were decoded.

const Images = (() => {
  const { make, byId } = Show;
  let about = null;
  let asked = 0;

  // The answer to RGBA pixels. A model of one size gets them resized as `predict` does it; otherwise the graph does it.
  async function ask(image) {
    asked += 1;
    const [channels, height, width] = about.shape;
    let pixels = Pixels.planes(image, channels);
    let shape = [channels, image.height, image.width];
    if (!about.any_size && height === width) {
      pixels = Pixels.resize(pixels, shape, height);
      shape = about.shape;
    }
    if (!about.any_size && (shape[1] !== height || shape[2] !== width)) {
      throw new Pixels.BadImage(`is ${image.width}x${image.height}, and the model takes ${width}x${height} alone.`);
    }
    const [found] = await Model.ask([["uint8", pixels, shape]], 1);
    return { ...found, pixels };
  }

  // What a file is answered with.
  async function take(blob) {
    return ask(await Pixels.decode(blob));
  }

  async function show(blob, name) {
    try {
      const found = await take(blob);
      picture(blob, name);
      Show.answer(found, about);
    } catch (error) {
      if (!(error instanceof Pixels.BadImage)) throw error;
      byId("picture").hidden = true;
      Show.problem(`${name || "This"} ${error.message}`);
    }
  }

  function picture(blob, name) {
    const image = byId("picture");
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(blob);
    image.alt = `The image that was given: ${name || "pasted"}`;
    image.hidden = false;
  }

  function build(place, description) {
    about = description;
    const file = make("input", { type: "file", id: "file", accept: "image/jpeg,image/png,image/webp,image/bmp,image/gif" });
    const drop = make("div", { class: "drop", id: "drop" },
      make("label", { for: "file" }, "Choose an image, drop one here, or paste one"), make("div", { class: "row" }, file));
    place.append(drop, make("img", { id: "picture", hidden: "", alt: "" }));
    file.addEventListener("change", () => file.files[0] && show(file.files[0], file.files[0].name));
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    document.addEventListener("dragleave", () => drop.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      received(event.dataTransfer, "dropped");
    });
    document.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) received(event.clipboardData, "pasted");
    });
    return camera(place);
  }

  function received(transfer, how) {
    const [first] = transfer.files;
    if (first) return show(first, first.name);
    return Show.problem(`What was ${how} is no file. Give an image file.`);
  }

  // A camera is offered where there is one; nothing is looked at before its button is pressed.
  async function camera(place) {
    if (!navigator.mediaDevices?.enumerateDevices) return;
    const devices = await navigator.mediaDevices.enumerateDevices().catch(() => []);
    if (!devices.some((device) => device.kind === "videoinput")) return;
    const open = make("button", { type: "button", id: "camera" }, "Use the camera");
    const shoot = make("button", { type: "button", id: "shoot", hidden: "" }, "Take a picture");
    const video = make("video", { playsinline: "", hidden: "", "aria-label": "What the camera sees" });
    video.muted = true;
    place.append(make("div", { class: "row" }, open, shoot), video);
    const isOn = () => video.srcObject !== null;
    const stop = () => {
      for (const track of video.srcObject.getTracks()) track.stop();
      video.srcObject = null;
      set();
    };
    const set = () => {
      open.textContent = isOn() ? "Stop the camera" : "Use the camera";
      shoot.hidden = video.hidden = !isOn();
    };
    open.addEventListener("click", async () => {
      if (isOn()) return stop();
      try {
        video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
      } catch (error) {
        return Show.problem(`The camera cannot be used (${error.name}). Allow it for this page, or choose a file.`);
      }
      await video.play();
      return set();
    });
    shoot.addEventListener("click", async () => {
      const image = Pixels.read(video, video.videoWidth, video.videoHeight);
      stop();
      open.focus();
      Show.answer(await ask(image), about);
    });
  }

  return { build, take, ask, isAsked: () => asked > 0 };
})();
