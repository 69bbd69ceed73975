"""Open every page of the built site in headless Chromium, as wide as a telephone and as a screen: `python docs/browse.py [site] [--shots folder]`.

What a reader would notice is an error: a page that is wider than the window, an image that is missing or wider than the page,
a message in the console, a request that leaves the site, a search that finds nothing.
"""
import argparse
import asyncio
import functools
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

root = Path(__file__).resolve().parent.parent
chromium = Path('/usr/bin/chromium')  # Debian's package of that name
widths = {390: 844, 1440: 900}
at_once = 4
sought = 'bitlinear'  # what the search must find among the API pages
harmless = 'Anchored content block not found'  # Sphinx's search takes the dots in the anchor of a name for classes, and shows the page's first lines instead

ready = """async () => {
  for (const i of document.images) i.loading = 'eager';
  await Promise.all([...document.images].map(i => i.decode().catch(() => null)));
  if (window.MathJax) await MathJax.startup.promise }"""

noticed = """() => {
  const wrong = [], page = document.documentElement, name = e => e.tagName.toLowerCase() + ' ' + e.textContent.trim().slice(0, 40);
  if (page.scrollWidth > page.clientWidth) {
    wrong.push(`the page is ${page.scrollWidth} pixels wide`);
    for (const e of document.querySelectorAll('article *'))
      if (e.getBoundingClientRect().right > page.clientWidth + 1 && !e.closest('pre, .table-wrapper, mjx-container')) wrong.push('beyond the edge: ' + name(e));
  }
  for (const i of document.images) {
    if (!(i.complete && i.naturalWidth)) wrong.push('image not shown: ' + i.src);
    if (i.getBoundingClientRect().width > page.clientWidth) wrong.push('image too wide: ' + i.src);
  }
  if (document.querySelector('mjx-merror')) wrong.push('a formula is not understood: ' + document.querySelector('mjx-merror').textContent);
  return wrong.slice(0, 5) }"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


async def walk(site:Path, address:str, shots:Path|None)->list:
    "What is wrong, page by page"
    from playwright.async_api import async_playwright
    wrong, limit = [], asyncio.Semaphore(at_once)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=str(chromium), args=['--no-sandbox'])

        async def opened(page, after=None):
            async with limit:
                tab, width = await browser.new_page(), None
                said = lambda what: wrong.append(f'{page} at {width}: {what}')
                tab.on('console', lambda m: None if m.text.startswith(harmless) else said(f'console: {m.text}'))
                tab.on('pageerror', lambda e: said(f'error: {e}'))
                tab.on('request', lambda r: None if r.url.startswith((address, 'data:', 'blob:')) else said(f'asks {r.url}'))
                for width, height in widths.items():
                    await tab.set_viewport_size(dict(width=width, height=height))
                    if tab.url == 'about:blank':
                        await tab.goto(f'{address}/{page}', wait_until='load')
                        await tab.evaluate(ready)
                    for what in await tab.evaluate(noticed): said(what)
                    if shots: await tab.screenshot(path=shots/f'{page.replace("/", "_").partition(".html")[0]}_{width}.png')
                if after: await after(tab, said)
                await tab.close()

        async def finds(tab, said):
            await tab.wait_for_selector('ul.search li', timeout=20000)
            if not await tab.locator('ul.search li a[href*="api/"]').count(): said('the search does not find a function')

        pages = sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html') if '_static' not in p.parts)
        await asyncio.gather(*map(opened, pages), opened(f'search.html?q={sought}', finds))
        await browser.close()
    print(f'{len(pages)} pages at {" and ".join(map(str, widths))} pixels')
    return wrong


def browse(site:Path, shots:Path|None=None):
    if not chromium.exists(): return print(f'{chromium} is not there: the site was not looked at')
    if shots: shots.mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wrong = asyncio.run(walk(site, f'http://127.0.0.1:{server.server_port}', shots))
    server.shutdown()
    if wrong: sys.exit('\n'.join(wrong))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('site', nargs='?', type=Path, default=root/'_docs')
    parser.add_argument('--shots', type=Path, help='folder for a screenshot of each page')
    args = parser.parse_args()
    browse(args.site.resolve(), args.shots)
