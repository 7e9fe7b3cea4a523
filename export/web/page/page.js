"use strict";
// Puts the page together as soon as the model is there.

const Page = (() => {
  const FROM_DISK = "This page was opened from disk, where a browser lets it read no file beside it. "
    + "Serve its folder (python -m http.server), or build it with --single_file true.";

  async function start() {
    const about = await Model.describe();
    Show.card(about);
    const loaded = Model.load();
    const place = Show.byId("inputs");
    if (about.is_image) {
      Images.build(place, about);
      if (about.has_pad) Draw.build(place, about);
      await loaded;
      if (!Images.isAsked()) Show.nothing("Give an image.");
    } else {
      await Form.build(place, about);
    }
  }

  const ready = start().catch((error) => {
    const isFromDisk = location.protocol === "file:" && !document.getElementById("asset:page.json");
    Show.problem(isFromDisk ? FROM_DISK : `The model cannot be loaded (${error.message}).`);
    throw error;
  });
  window.addEventListener("unhandledrejection", (event) => {
    if (Show.byId("problem").hidden) Show.problem(`The model cannot answer (${event.reason?.message ?? event.reason}).`);
  });
  return { ready };
})();
