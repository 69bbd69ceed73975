// The page: what was clicked, and what is shown. The model is in worker.js.

import { MOST_BYTES } from './preprocess.js';

const $ = (id) => document.getElementById(id);
const show = (element, isShown = true) => { element.hidden = !isShown; };
const make = (tag, given = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), given);
  element.append(...children);
  return element;
};

// ── The model in its thread ─────────────────────────────────────────────────────────────────────────────────────────

// A worker made of a blob has the page's Content-Security-Policy; one made of a file would have none
function startWorker() {
  const file = new URL('./worker.js', import.meta.url).href;
  const source = URL.createObjectURL(new Blob([`import ${JSON.stringify(file)};`], { type: 'text/javascript' }));
  return new Worker(source, { type: 'module' });
}

const waiting = new Map();                                             // number of a call to its promise
let worker = null;
let calls = 0;

function call(name, given = {}, tell = () => {}) {
  return new Promise((done, failed) => {
    calls += 1;
    waiting.set(calls, { done, failed, tell });
    worker.postMessage({ id: calls, name, given });
  });
}

function answered({ data }) {
  const { done, failed, tell } = waiting.get(data.id);
  if ('part' in data) { tell(data.part); return; }
  waiting.delete(data.id);
  if (!('error' in data)) { done(data.result); return; }
  failed(new Error(data.isForUser ? data.error : `Something went wrong (${data.error}). Please reload the page.`));
}

// ── What is known ───────────────────────────────────────────────────────────────────────────────────────────────────

const pictures = new Map();                                            // id to {name, url, item, button, label}
let about = null;                                                      // of the model
let added = 0;                                                         // pictures that were tried
let current = null;                                                    // id of the picture that is shown
let previews = {};                                                     // slot to a small image

function complain(error) {
  $('problem').textContent = error?.message ?? '';
  show($('problem'), Boolean(error));
}

let busy = 0;

// Do something for a click; a problem is told. A screen reader waits with what has changed until all of it has
function acting(action) {
  return async (event) => {
    event?.preventDefault();
    complain(null);
    busy += 1;
    $('main').ariaBusy = 'true';
    try { await action(event); } catch (error) { complain(error); }
    busy -= 1;
    if (!busy) $('main').ariaBusy = 'false';
  };
}

// ── Pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────

async function add(file) {
  if (file.size > MOST_BYTES) {                                        // not even read
    throw new Error(`${file.name}: files of over ${MOST_BYTES / 1e6} MB are not opened here. Please choose a smaller one.`);
  }
  added += 1;
  const id = added;
  try {
    await call('see', { id, bytes: await file.arrayBuffer() });
  } catch (error) {
    throw new Error(`${file.name}: ${error.message}`);
  }
  const url = URL.createObjectURL(file);
  const label = make('span', { textContent: '' });
  const button = make('button', { type: 'button' }, make('img', { src: url, alt: file.name }), label);
  button.addEventListener('click', acting(() => present(id)));
  const item = make('li', {}, button);
  $('gallery').append(item);
  pictures.set(id, { name: file.name, url, item, button, label });
  return id;
}

async function addAll(files) {
  const wrong = [];
  let first = null;
  for (const file of files) {
    $('status').textContent = `Looking at ${file.name} …`;
    try {
      const id = await add(file);
      first ??= id;
    } catch (error) { wrong.push(error.message); }
  }
  $('status').textContent = READY;
  if (wrong.length) complain(new Error(wrong.join(' ')));
  if (first !== null) await present(first);
  enable();
}

async function present(id) {
  current = id;
  const { name, url } = pictures.get(id);
  for (const [other, { button }] of pictures) button.setAttribute('aria-current', String(other === id));
  Object.assign($('current'), { src: url, alt: name });
  show($('current'));
  show($('empty'), false);
  show($('recalled'), false);                                           // what was said of another picture
  $('bars').replaceChildren();
  $('drop').classList.add('shown');
  enable();
  await Promise.all([describe(), recall(), compare()]);
}

async function describe() {
  const id = current;
  const line = $('caption');
  const write = (words) => { if (id === current) line.textContent = words; };
  line.textContent = '';
  line.classList.add('writing');
  show(line);
  const caption = await call('caption', { id }, write);
  if (id !== current) return;
  write(caption || 'It has no words for this picture.');
  line.classList.remove('writing');
  $('current').alt = caption || pictures.get(id).name;
}

// ── Sentences and search ────────────────────────────────────────────────────────────────────────────────────────────

const percent = (x) => `${(100 * x).toFixed(x < 0.1 ? 1 : 0)} %`;

function bar(text, fit) {
  const inner = make('div');
  inner.style.width = `${100 * fit}%`;
  const track = make('div', { className: 'track' }, inner);
  track.setAttribute('aria-hidden', 'true');
  const value = make('span', { className: 'value', textContent: percent(fit) });
  return make('li', {}, make('span', { textContent: text }), value, track);
}

async function compare() {
  const texts = $('sentences').value.split('\n').map((x) => x.trim()).filter(Boolean);
  if (!about.canMatch || current === null) return;
  const id = current;
  const fits = texts.length ? await call('match', { id, texts }) : [];
  if (id === current) $('bars').replaceChildren(...texts.map((text, i) => bar(text, fits[i])));
}

async function search() {
  const query = $('query').value.trim();
  if (!query || !pictures.size) return;
  const found = await call('search', { query });
  for (const [id, cosine] of found) {
    const { item, label } = pictures.get(id);
    label.textContent = cosine.toFixed(2);
    $('gallery').append(item);
  }
  $('found').textContent = `Best first for “${query}”, with the cosine of picture and sentence.`;
}

// ── Memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────

const key = () => `bitgen memory ${location.pathname} ${about.identity}`;

function keep(items) {
  try {
    localStorage.setItem(key(), JSON.stringify({ items, previews }));
  } catch {
    throw new Error('This browser does not keep data for this page, so what you teach is gone after a reload.');
  }
}

function list(items) {
  $('held').textContent = `${items.length} of ${about.slots} places are taken.`;
  $('items').replaceChildren(...items.map(({ slot, text }) => {
    const small = previews[slot];
    const preview = small ? make('img', { src: small, alt: '' }) : make('span', { className: 'blank' });
    const button = make('button', { type: 'button', textContent: 'Forget' });
    button.setAttribute('aria-label', `Forget: ${text}`);
    button.addEventListener('click', acting(() => forget(slot, text)));
    return make('li', {}, preview, make('span', { textContent: text }), button);
  }));
}

// What was kept, or null. A browser that keeps nothing may even refuse to be asked
function kept() {
  let text;
  try { text = localStorage.getItem(key()); } catch { return null; }
  try { return JSON.parse(text); } catch { return { items: [null] }; }  // which is refused like any other wrong item
}

async function restore() {
  list(about.items);
  const saved = kept();
  if (!saved) return;
  const items = await call('restore', { items: saved.items });
  previews = saved.previews ?? {};
  list(items);
}

// A small square of the picture that is shown
async function preview() {
  const side = 96;
  const image = $('current');
  await image.decode();
  const short = Math.min(image.naturalWidth, image.naturalHeight);
  const canvas = make('canvas', { width: side, height: side });
  const [left, top] = [(image.naturalWidth - short) / 2, (image.naturalHeight - short) / 2];
  canvas.getContext('2d').drawImage(image, left, top, short, short, 0, 0, side, side);
  return canvas.toDataURL('image/jpeg', 0.8);
}

async function remember() {
  const text = $('lesson').value.trim();
  if (!text || current === null) return;
  const small = await preview();
  const { slot, items } = await call('remember', { id: current, text });
  previews[slot] = small;
  $('lesson').value = '';
  list(items);
  keep(items);
  await Promise.all([describe(), recall()]);
}

async function forget(slot, text) {
  const items = await call('forget', { slot });
  delete previews[slot];
  list(items);
  $('held').textContent = `Forgotten: “${text}”. ${$('held').textContent}`;
  $('lesson').focus();
  keep(items);
  if (current !== null) await Promise.all([describe(), recall()]);
}

function verdict({ text, slot, novelty, novel }) {
  if (slot < 0) return 'It was taught nothing yet.';
  if (novel === null) {
    return `The nearest that it was taught: “${text}”. It was not calibrated, so it cannot say whether it knows this.`;
  }
  const chance = `Chance that something unknown comes as near: ${percent(novelty)}.`;
  return novel ? `It does not know this. ${chance}` : `It knows this: “${text}”. ${chance}`;
}

async function recall() {
  if (!about.slots || current === null) return;
  const id = current;
  const found = await call('recall', { id });
  if (id !== current) return;
  $('recalled').textContent = verdict(found);
  $('recalled').classList.toggle('known', found.novel === false);
  show($('recalled'));
}

// ── Controls ────────────────────────────────────────────────────────────────────────────────────────────────────────

const READY = 'Ready. The model is on this device.';

function enable() {
  $('choose').disabled = about === null;
  $('take').disabled = about === null;
  for (const id of ['search', 'match', 'teach']) $(id).querySelector('button').disabled = current === null;
}

function listen() {
  for (const [button, input] of [['choose', 'files'], ['take', 'camera']]) {
    $(button).addEventListener('click', () => $(input).click());
    $(input).addEventListener('change', acting(async () => {
      const files = [...$(input).files];
      $(input).value = '';                                             // so that the same file can be chosen again
      await addAll(files);
    }));
  }
  $('search').addEventListener('submit', acting(search));
  $('match').addEventListener('submit', acting(compare));
  $('teach').addEventListener('submit', acting(remember));
  addEventListener('dragover', (event) => { event.preventDefault(); $('drop').classList.add('over'); });
  addEventListener('dragleave', () => $('drop').classList.remove('over'));
  addEventListener('drop', acting(async (event) => {
    $('drop').classList.remove('over');
    if (about !== null) await addAll([...event.dataTransfer.files]);
  }));
}

function hideWhatItCannot() {
  const cannot = [!about.canMatch && 'judge whether a sentence fits', !about.slots && 'be taught'].filter(Boolean);
  show($('match-panel'), about.canMatch);
  show($('memory-panel'), about.slots > 0);
  show($('cannot'), cannot.length > 0);
  $('why').textContent = `A model of kind ${about.kind} describes and finds pictures. `
    + `It cannot ${cannot.join(' or ')}: it was built without the parts for that.`;
}

// ── Without a connection ────────────────────────────────────────────────────────────────────────────────────────────

const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });

function offerUpdate(registration) {
  if (!registration.waiting || !navigator.serviceWorker.controller) return;
  show($('update'));
  $('reload').addEventListener('click', () => {
    navigator.serviceWorker.addEventListener('controllerchange', () => location.reload());
    registration.waiting.postMessage('take over');
  }, { once: true });
}

// On the first visit the service worker must be there before the model is loaded, so that it can keep it
async function prepareOffline() {
  const registration = await navigator.serviceWorker.register('sw.js', { updateViaCache: 'none' });
  offerUpdate(registration);
  registration.addEventListener('updatefound', () => {
    registration.installing.addEventListener('statechange', () => offerUpdate(registration));
  });
  if (navigator.serviceWorker.controller || registration.active) return;
  const claimed = new Promise((done) => {
    navigator.serviceWorker.addEventListener('controllerchange', done, { once: true });
  });
  await Promise.race([claimed, pause(5000)]);
}

// ── Beginning ───────────────────────────────────────────────────────────────────────────────────────────────────────

const megabytes = (n) => (n / 1e6).toFixed(1);

function loading([done, total]) {
  $('status').textContent = `Loading the model: ${megabytes(done)} of ${megabytes(total)} MB`;
  Object.assign($('progress'), { value: done, max: total, hidden: false });
}

const TOO_OLD = 'The model could not be started. This page needs a browser of 2023 or later.';

async function begin() {
  if (!isSecureContext) {
    throw new Error('Please open this page over https, or from this computer itself: elsewhere browsers do not let it '
      + 'check and keep its model.');
  }
  try { await prepareOffline(); } catch { /* a private window may allow none: the page works, but only online */ }
  worker = startWorker();
  worker.addEventListener('message', answered);
  worker.addEventListener('error', () => complain(new Error(TOO_OLD)));
  about = await call('load', {}, loading);
  show($('progress'), false);
  hideWhatItCannot();
  $('status').textContent = READY;
  enable();
  if (about.slots) await restore();
}

listen();
begin().catch((error) => {
  show($('progress'), false);
  if (about === null) $('status').textContent = 'The model is not loaded.';
  complain(error);
});
