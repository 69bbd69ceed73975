// An exported model: what bitgen.runtime is in Python. Nothing here knows of the page.
//
// The folder's manifest lists every file with its size and SHA-256; a file that is another one is not used.

import { Refused, centerSquare } from './preprocess.js';
import { Tokenizer, plainText, strip } from './tokenizer.js';
import { Memory } from './memory.js';

const REQUIRED = ['tokenizer.json', 'image.onnx', 'text.onnx', 'context.onnx', 'decoder.onnx'];
const hex = (buffer) => Array.from(new Uint8Array(buffer), (b) => b.toString(16).padStart(2, '0')).join('');
const json = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

// The bytes behind an address; `got` is told of each piece
async function fetchBytes(url, got = () => {}) {
  const answer = await fetch(url).catch(() => null);
  const name = url.pathname.split('/').pop();
  if (!answer?.ok) throw new Refused(`${name} could not be loaded. Please check the connection and reload the page.`);
  const pieces = [];
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    got(value.length);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

async function readManifest(base) {
  const manifest = json(await fetchBytes(new URL('manifest.json', base)));
  if (manifest.format !== 1) throw new Refused(`This page reads exports of format 1, not ${manifest.format}.`);
  const missing = REQUIRED.filter((name) => !Object.hasOwn(manifest.files, name));
  if (missing.length) throw new Refused(`The model's manifest lists no ${missing.join(', ')}. Please export it again.`);
  return manifest;
}

async function readFile(base, name, known, got) {
  if (!/^[\w-][\w.-]*$/.test(name)) throw new Refused(`The model's manifest names ${name}, which is not inside.`);
  const bytes = await fetchBytes(new URL(name, base), got);
  const same = bytes.length === known.size && hex(await crypto.subtle.digest('SHA-256', bytes)) === known.sha256;
  if (same) return bytes;
  throw new Refused(`${name} is not the file that was exported. Please reload the page, or copy the folder anew.`);
}

/** {manifest, files} of a folder, checked; `tell(bytes, of)` is called as they come. */
export async function readFolder(base, tell = () => {}) {
  const manifest = await readManifest(base);
  const entries = Object.entries(manifest.files);
  const total = entries.reduce((sum, [, known]) => sum + known.size, 0);
  const files = {};
  let done = 0;
  for (const [name, known] of entries) {
    files[name] = await readFile(base, name, known, (n) => { done += n; tell(done, total); });
  }
  return { manifest, files };
}

/** Sessions by the names of the graphs, which share `weights.bin` where there is one. */
export async function openGraphs(ort, files) {
  const weights = files['weights.bin'];
  const options = { executionProviders: ['wasm'] };
  if (weights) options.externalData = [{ path: 'weights.bin', data: weights }];
  const graphs = {};
  for (const [name, bytes] of Object.entries(files)) {
    if (name.endsWith('.onnx')) graphs[name.slice(0, -5)] = await ort.InferenceSession.create(bytes, options);
  }
  return graphs;
}

// Numbers of memory.bin, whose places the manifest has
function tensor({ tensors }, bytes, name) {
  const kinds = { '<f4': Float32Array, '<f8': Float64Array, '|b1': Uint8Array, '<i8': BigInt64Array };
  const [kind, shape, start] = tensors[name];
  return new kinds[kind](bytes.buffer, bytes.byteOffset + start, shape.reduce((a, b) => a * b, 1));
}

function rowsOf(numbers, width) {
  const count = numbers.length / width;
  return Array.from({ length: count }, (_, i) => Float64Array.from(numbers.subarray(i * width, (i + 1) * width)));
}

/** {memory, items} as they were exported. */
export function readMemory(manifest, bytes) {
  const m = manifest.memory;
  const width = m.tensors.prior[1][1];
  const memory = new Memory({
    prior: rowsOf(tensor(m, bytes, 'prior'), width),
    ridge: m.ridge,
    storeRidge: m.store_ridge,
    strangers: rowsOf(tensor(m, bytes, 'stranger_cosines'), m.tensors.stranger_cosines[1][1]),
    pairs: Number(tensor(m, bytes, 'stranger_pairs')[0]),
  });
  const codes = rowsOf(tensor(m, bytes, 'codes'), width);
  const used = tensor(m, bytes, 'used');
  const items = Object.entries(m.sentences).map(([slot, text], i) => ({ slot: Number(slot), text, code: codes[i] }));
  if (items.length !== used.filter(Boolean).length || items.some(({ slot }) => !used[slot])) {
    throw new Refused("The sentences of the model's memory are not those of its items. Please export it again.");
  }
  return { memory, items };
}

const THRESHOLD = 0.05;                                               // novelty above which a query is unknown
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

function argmax(x) {
  let best = 0;
  for (let i = 1; i < x.length; i += 1) if (x[i] > x[best]) best = i;
  return best;
}

export class Model {
  constructor(ort, manifest, files, graphs) {
    Object.assign(this, { ort, manifest, graphs });
    this.tokenizer = new Tokenizer(json(files['tokenizer.json']));
    this.canMatch = 'match' in graphs;
    this.memory = null;
    this.texts = new Map();                                            // slot to sentence
    if (!manifest.memory) return;
    const { memory, items } = readMemory(manifest, files['memory.bin']);
    this.memory = memory;
    this.#write(items);
  }

  static async load(ort, base, tell) {
    const { manifest, files } = await readFolder(base, tell);
    return new Model(ort, manifest, files, await openGraphs(ort, files));
  }

  // Numbers as a tensor of int64
  #whole(numbers, shape) { return new this.ort.Tensor('int64', BigInt64Array.from(numbers, BigInt), shape); }

  /** Bytes (3,size,size) of a decoded picture. */
  preprocess(picture) {
    const { size, crop_pct: cropPct } = this.manifest.image;
    return centerSquare(picture, size, cropPct);
  }

  /** What the image graph makes of such bytes: tensors `feature`, `image_tokens` and, of a BitGen, `state`. */
  async look(pixels) {
    const { size } = this.manifest.image;
    return this.graphs.image.run({ pixels: new this.ort.Tensor('uint8', pixels, [1, 3, size, size]) });
  }

  /** {tokens, lengths} of sentences. */
  tokenize(texts) {
    const { written, max_length: most, bos_id: bos, eos_id: eos } = this.manifest.text;
    const rows = texts.map((text) => this.tokenizer.encode(plainText(text, written)).slice(0, most - 2));
    const width = Math.max(...rows.map((row) => row.length)) + 2;
    const ids = rows.flatMap((row) => [bos, ...row, ...new Array(width - row.length - 1).fill(eos)]);
    const lengths = rows.map((row) => row.length + 2);
    return { tokens: this.#whole(ids, [rows.length, width]), lengths: this.#whole(lengths, [rows.length]) };
  }

  /** A sentence in the retrieval space. */
  async encodeText(text) { return (await this.graphs.text.run(this.tokenize([text]))).feature.data; }

  /** Probability that a picture and each sentence belong together. */
  async match({ state }, texts) {
    const n = texts.length;
    const data = new Float32Array(n * state.data.length);
    for (let i = 0; i < n; i += 1) data.set(state.data, i * state.data.length);
    const repeated = new this.ort.Tensor('float32', data, [n, ...state.dims.slice(1)]);
    const { score } = await this.graphs.match.run({ state: repeated, ...this.tokenize(texts) });
    return Array.from(score.data, sigmoid);
  }

  // What the decoder hears of the memory: the sentence of the item that is found, as far as it is trusted
  #heard(feature) {
    const heard = new Float32Array(feature.data.length);
    const listens = this.manifest.memory?.listens === true && this.memory.used.length;
    if (listens) {
      const { trust_slope: slope, trust_threshold: threshold } = this.manifest.memory;
      const { slot, cosine } = this.memory.nearest(feature.data, 'image');
      const trust = sigmoid(slope * (cosine - threshold));
      this.memory.side(this.memory.codes[slot], 'text').forEach((x, i) => { heard[i] = trust * x; });
    }
    return new this.ort.Tensor('float32', heard, feature.dims);
  }

  // Keys and values that stay, and those of earlier positions
  async #context({ feature, image_tokens: imageTokens }) {
    const { context, decoder } = this.graphs;
    const given = { image_tokens: imageTokens, heard: this.#heard(feature) };
    const made = await context.run(Object.fromEntries(context.inputNames.map((name) => [name, given[name]])));
    const isPast = ([name]) => name.startsWith('past');
    const fixed = Object.fromEntries(Object.entries(made).filter((x) => !isPast(x)));
    let past = Object.fromEntries(Object.entries(made).filter(isPast));
    if (!Object.keys(past).length) past = this.#nothing(decoder);
    return { fixed, past };
  }

  // Keys and values of no position
  #nothing(decoder) {
    const taken = decoder.inputMetadata.filter(({ name }) => name.startsWith('past'));
    return Object.fromEntries(taken.map(({ name, shape }) => {
      const empty = new this.ort.Tensor('float32', new Float32Array(0), [1, shape[1], 0, shape[3]]);
      return [name, empty];
    }));
  }

  /** A greedy caption; `write` is given all of it after each token. */
  async caption(seen, write = () => {}, maxTokens = 32) {
    const { bos_id: bos, eos_id: eos, first_position: first, longest } = this.manifest.text;
    let { fixed, past } = await this.#context(seen);
    const ids = [];
    for (let id = bos, n = 0; n < Math.min(maxTokens, longest); n += 1) {
      const step = { token: this.#whole([id], [1, 1]), position: this.#whole([first + n], [1]) };
      const { logits, ...made } = await this.graphs.decoder.run({ ...step, ...fixed, ...past });
      past = Object.fromEntries(Object.entries(made).map(([name, x]) => [name.replace('new', 'past'), x]));
      id = argmax(logits.data);
      if (id === eos) break;
      ids.push(id);
      write(strip(this.tokenizer.decode(ids)));
    }
    return strip(this.tokenizer.decode(ids));
  }

  #write(items) {
    for (const { slot, text, code } of items) {
      this.memory.write(slot, code);
      this.texts.set(slot, text);
    }
  }

  /** What the memory holds: a list of {slot, text, code}. */
  items() {
    const { used, codes } = this.memory;
    return used.map((slot) => ({ slot, text: this.texts.get(slot), code: codes[slot] }));
  }

  /** Hold these items and no others. */
  restore(items) {
    for (const slot of this.memory.used) this.forget(slot);
    this.#write(items);
  }

  /** Keep a picture's feature with a sentence; the slot. */
  async remember(feature, text) {
    const said = await this.encodeText(text);
    const slot = this.memory.put(Float64Array.from([...feature, ...said]));
    this.texts.set(slot, text);
    return slot;
  }

  forget(slot) {
    this.memory.drop(slot);
    this.texts.delete(slot);
  }

  /** What a feature retrieves: {text, slot, novelty, novel}; `novel` is null where the model was not calibrated. */
  recall(feature, side = 'image') {
    if (!this.memory.used.length) return { text: '', slot: -1, novelty: 1, novel: true };
    const { slot, cosine } = this.memory.nearest(feature, side);
    const novelty = this.memory.novelty(cosine, side);
    return { text: this.texts.get(slot), slot, novelty, novel: novelty === null ? null : novelty > THRESHOLD };
  }

  /** Numbers of the features that fit a sentence best, with their cosines, best first. */
  async search(features, query) {
    const said = await this.encodeText(query);
    return features.map((feature, i) => [i, dot(feature, said)]).sort((a, b) => b[1] - a[1]);
  }
}
