// Keeps the page and its model, so that both work without a connection after the first visit.
//
// `settings.js` is written by `add_page` and names all files and a version made of their bytes. Small files are kept
// when the page is first opened, large ones as they are loaded. Another version has a cache of its own.

importScripts('page/settings.js');

const { version, small, large } = self.settings;
const { scope } = self.registration;
const PREFIX = `bitgen ${scope} `;                                      // an origin can hold several pages
const NAME = PREFIX + version;
const address = (name) => new URL(name, scope).href;
const known = new Set([...small, ...large].map(address));

async function keepSmall() {
  const cache = await caches.open(NAME);
  await cache.addAll(small.map((name) => new Request(address(name), { cache: 'reload' })));
}

async function dropOthers() {
  const names = await caches.keys();
  const others = names.filter((name) => name.startsWith(PREFIX) && name !== NAME);
  await Promise.all(others.map((name) => caches.delete(name)));
}

// What is kept; else what the server has, which is then kept
async function answer(url, event) {
  const cache = await caches.open(NAME);
  const kept = await cache.match(url);
  if (kept) return kept;
  const fresh = await fetch(url, { cache: 'no-cache' });
  if (fresh.ok) event.waitUntil(cache.put(url, fresh.clone()));
  return fresh;
}

self.addEventListener('install', (event) => event.waitUntil(keepSmall()));
self.addEventListener('activate', (event) => event.waitUntil(dropOthers().then(() => self.clients.claim())));
self.addEventListener('message', ({ data }) => { if (data === 'take over') self.skipWaiting(); });
self.addEventListener('fetch', (event) => {
  const { origin, pathname } = new URL(event.request.url);
  const plain = origin + pathname;                                      // without what follows a ? or #
  const url = plain === scope ? address('index.html') : plain;
  if (event.request.method === 'GET' && known.has(url)) event.respondWith(answer(url, event));
});
