// The model in a thread of its own, so that the page answers while it thinks. One call at a time, in order.

import './settings.js';
import { MemoryFull } from './memory.js';
import { Model } from './model.js';
import { Refused, decode } from './preprocess.js';
import { UnknownTokenizer } from './tokenizer.js';

const pictures = new Map();                                            // id to {pixels, feature}
let model = null;
let last = null;                                                       // {id, seen} of the picture of the last call

async function openOnnxruntime() {
  const folder = new URL(self.settings.onnxruntime, import.meta.url);
  const ort = await import(new URL('ort.wasm.min.mjs', folder).href);
  ort.env.wasm.numThreads = 1;                                         // more would need special headers of the server
  ort.env.wasm.wasmPaths = folder.href;
  ort.env.logLevel = 'error';
  return ort;
}

async function look(id) {
  if (last?.id !== id) last = { id, seen: await model.look(pictures.get(id).pixels) };
  return last.seen;
}

// Whether something that was kept by the browser is an item of this model
function isItem(item) {
  const { slot, text, code } = item ?? {};
  const isSlot = Number.isInteger(slot) && slot >= 0 && slot < model.memory.slots;
  const isCode = Array.isArray(code) && code.length === model.memory.width && code.every(Number.isFinite);
  return isSlot && typeof text === 'string' && isCode;
}

const plain = () => model.items().map(({ slot, text, code }) => ({ slot, text, code: Array.from(code) }));

const calls = {
  async load(_, tell) {
    const base = new URL('../', import.meta.url);
    model = await Model.load(await openOnnxruntime(), base, (done, total) => tell([done, total]));
    const { kind, files } = model.manifest;
    const remembers = model.memory !== null;
    const names = ['image.onnx', 'text.onnx', 'weights.bin', 'memory.bin'].filter((name) => files[name]);
    return {
      kind,
      canMatch: model.canMatch,
      slots: remembers ? model.memory.slots : 0,
      items: remembers ? plain() : [],
      identity: names.map((name) => files[name].sha256.slice(0, 16)).join(' '),  // whose features the items are
    };
  },

  async see({ id, bytes }) {
    const pixels = model.preprocess(await decode(new Uint8Array(bytes)));
    const seen = await model.look(pixels);
    pictures.set(id, { pixels, feature: seen.feature.data });
    last = { id, seen };
  },

  async caption({ id }, tell) { return model.caption(await look(id), tell); },

  async match({ id, texts }) { return model.match(await look(id), texts); },

  async search({ query }) {
    const ids = [...pictures.keys()];
    const found = await model.search(ids.map((id) => pictures.get(id).feature), query);
    return found.map(([i, cosine]) => [ids[i], cosine]);
  },

  restore({ items }) {
    const areItems = Array.isArray(items) && items.every(isItem);
    const slots = new Set(areItems ? items.map(({ slot }) => slot) : []);
    if (!areItems || slots.size !== items.length) throw new Refused('What this browser kept of earlier lessons cannot be read, so it was left out.');
    model.restore(items);
    return plain();
  },

  async remember({ id, text }) {
    const slot = await model.remember(pictures.get(id).feature, text);
    return { slot, items: plain() };
  },

  forget({ slot }) {
    model.forget(slot);
    return plain();
  },

  recall({ id }) { return model.recall(pictures.get(id).feature); },
};

async function answer({ id, name, given }) {
  try {
    postMessage({ id, result: await calls[name](given, (part) => postMessage({ id, part })) });
  } catch (error) {
    const isForUser = [Refused, MemoryFull, UnknownTokenizer].some((kind) => error instanceof kind);
    postMessage({ id, error: error.message, isForUser });
  }
}

let queue = Promise.resolve();
addEventListener('message', ({ data }) => { queue = queue.then(() => answer(data)); });
