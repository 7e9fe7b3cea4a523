"use strict";
// The model: its file and the runtime are read from beside the page, or from within it, and asked one batch after the other.

const Assets = (() => {
  const held = (name) => document.getElementById(`asset:${name}`);

  // The bytes of a file: of the page itself where it holds them (gzip in base64), or else of the file beside it.
  async function bytes(name) {
    const block = held(name);
    if (!block) {
      const response = await fetch(name);
      if (!response.ok) throw new Error(`${name} is not there (status ${response.status})`);
      return new Uint8Array(await response.arrayBuffer());
    }
    const text = atob(block.textContent);
    const packed = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k += 1) packed[k] = text.charCodeAt(k);
    block.remove(); // it is asked for once
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // An address from which a module can be imported.
  async function address(name) {
    if (!held(name)) return new URL(name, document.baseURI).href;
    return URL.createObjectURL(new Blob([await bytes(name)], { type: "text/javascript" }));
  }

  return { bytes, address };
})();

const Model = (() => {
  const argmax = (row) => row.reduce((best, value, k) => (value > row[best] ? k : best), 0);
  const DECIDE = { // from the scores, as in training: probabilities of a sure model round to the same 1
    multiclass: argmax,
    binary: (row) => (row[0] > 0 ? 1 : 0),
    multilabel: (row) => Array.from(row, (value) => (value > 0 ? 1 : 0)),
  };
  let about = null;
  let session = null;
  let last = Promise.resolve();

  async function describe() {
    about = JSON.parse(new TextDecoder().decode(await Assets.bytes("page.json")));
    return about;
  }

  // Reads and compiles the runtime and the model; what is asked meanwhile waits for it.
  function load() {
    last = compile();
    return last;
  }

  async function compile() {
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = 1; // more need a page that is isolated from others, which no file from disk is
    const [loader, wasm, onnx] = await Promise.all([
      Assets.address(about.runtime.loader), Assets.bytes(about.runtime.wasm), Assets.bytes(about.onnx),
    ]);
    ort.env.wasm.wasmPaths = { mjs: loader };
    ort.env.wasm.wasmBinary = wasm.buffer;
    session = await ort.InferenceSession.create(onnx, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  }

  // The answers to `count` samples. `inputs` has a tensor for each input: [type, values, shape of one sample].
  // Each is { values, decided, isFinite }: probabilities by class and the class or labels, or predictions and null.
  function ask(inputs, count) {
    const answered = last.then(() => run(inputs, count)); // a session computes one batch at a time
    last = answered.catch((error) => {
      if (!session) throw error;
    });
    return answered;
  }

  async function run(inputs, count) {
    const tensors = inputs.map(([type, values, shape]) => new ort.Tensor(type, values, [count, ...shape]));
    const feeds = Object.fromEntries(session.inputNames.map((name, k) => [name, tensors[k]]));
    const outputs = await session.run(feeds, about.outputs);
    const rows = about.outputs.map((name) => {
      const width = outputs[name].data.length / count;
      return Array.from({ length: count }, (_, k) => outputs[name].data.slice(k * width, (k + 1) * width));
    });
    const decide = DECIDE[about.task];
    return rows[0].map((scores, k) => {
      const values = rows[rows.length - 1][k];
      const isFinite = [...scores, ...values].every(Number.isFinite);
      return { scores, values, decided: decide ? decide(scores) : null, isFinite };
    });
  }

  return { describe, load, ask };
})();
