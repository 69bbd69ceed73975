"""Build the documentation site from the notebooks as they are: `python docs/build.py` writes it to _docs/.

Nothing is listed by hand: every notebook under nbs/ becomes a page, in the order of its number, under the heading of its layer (the tens digit)
or of its folder, and every module of the package becomes a page of the API. Any warning of Sphinx and any link that leads nowhere is an error.
"""
import argparse
import dataclasses
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from fastcore.docments import docments

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
git, branch, lib = cfg['git_url'], cfg['branch'], cfg['lib_name']
colab = git.replace('https://github.com/', 'https://colab.research.google.com/github/')

# The tens digit of a notebook's number is its layer.
layers = {'0': 'Data', '1': 'Layers', '2': 'Models', '3': 'Judging', '4': 'Training', '5': 'Sharing', '6': 'Commands'}
tour = '00_tour'


# ── notebooks ──
def notebooks():
    "Every notebook of the repository, as a path relative to nbs/, in the order of the names"
    return sorted(p.relative_to(nbs) for p in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

def read(page): return json.loads((nbs/page).read_text(encoding='utf-8'))

def module_of(nb):
    "The module that a notebook exports, or None"
    for cell in nb['cells']:
        if found := re.search(r'^#\|\s*default_exp\s+(\S+)', ''.join(cell['source']), re.M): return found[1]

def summary(page):
    "The line below a notebook's title"
    for cell in read(page)['cells']:
        if found := re.search(r'^> (.+)$', ''.join(cell['source']), re.M): return found[1]
    return ''

def local(
    target:str, # What a link in a notebook points to
    page:Path,  # The notebook
)->str:         # The same, as an address that works in the site
    "Own addresses become relative; a file that is no page is shown on GitHub"
    path, fragment = urldefrag(target)
    ours = re.match(rf'({re.escape(git)}/(?:blob|raw)/{branch}|https://raw.githubusercontent.com/{cfg["user"]}/{cfg["repo"]}/{branch})/', path)
    if ours: file = root/unquote(path[ours.end():])
    elif not path or re.match(r'[a-z]+:', path): return target
    else: file = (nbs/page).parent/unquote(path)
    if page.name == cfg['readme_nb'] and not file.exists(): file = root/unquote(path)  # README.md is made of it, one folder up
    file = file.resolve()
    if not file.exists() or not file.is_relative_to(root): return target  # Sphinx will say so
    if file.suffix == '.ipynb' and file.is_relative_to(nbs):
        return '/' + file.relative_to(nbs).as_posix() + (f'#{fragment.lower()}' if fragment else '')
    if file.suffix in ('.png', '.svg', '.jpg', '.gif'): return '/files/' + file.relative_to(root).as_posix()
    return f'{git}/{"tree" if file.is_dir() else "blob"}/{branch}/{file.relative_to(root).as_posix()}'

def linked(text, page):
    "The Markdown text with each of its links made local"
    return re.sub(r'(?<=\]\()([^)\s]+)', lambda m: local(m[1], page), text)

def linked_html(text, page):
    "The same for the Markdown of an output, in which Sphinx resolves nothing"
    up = '../'*(len(page.parts)-1)
    return re.sub(r'\]\(/([^)\s]+)\.ipynb', '](' + up + r'\1.html', linked(text, page))

def prepared(page:Path)->dict:
    "A notebook without its hidden cells, with its links made local and, below its title, a badge that opens it in Colab, and what to install there"
    nb = read(page)
    shown = []
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        if re.search(r'^#\|\s*(hide|default_exp)\b', text, re.M): continue
        if cell['cell_type'] == 'markdown':
            text = re.sub(r'https://colab\.research\.google\.com/assets/colab-badge\.svg', '/files/docs/static/colab.svg', text)
            text = linked(text, page)
        shown.append(cell | {'source': text})
        for output in cell.get('outputs', []):  # a printed model card shows figures of a run that was not kept
            if said := output.get('data', {}).get('text/markdown'):
                output['data']['text/markdown'] = linked_html(re.sub(r'!\[([^\]]*)\]\((?!https?:|data:|attachment:)[^)]+\)', r'*\1*', ''.join(said)), page)
    first = next(c for c in shown if c['cell_type'] == 'markdown')
    if colab not in first['source']:
        address = f'blob/{branch}/nbs/{page.as_posix()}'
        badge = (f'[![Open in Colab](/files/docs/static/colab.svg)]({colab}/{address}) [Source on GitHub]({git}/{address}). '
                 f'In Colab, run `%pip install git+{git}` first.')
        first['source'] = re.sub(r'^(# .*)$', lambda m: f'{m[1]}\n\n{badge}', first['source'], count=1, flags=re.M)
    return nb | {'cells': shown}

def toctree(pages, caption='', depth=1):
    "Sphinx's table of contents: shown in the sidebar only"
    head = f':caption: {caption}\n' if caption else ''
    return f'```{{toctree}}\n:hidden:\n:maxdepth: {depth}\n{head}\n' + '\n'.join(map(str, pages)) + '\n```\n'

def groups(pages):
    "Heading → pages: the tour and the tutorials, then a layer after the other, then the other folders"
    found = {'Start here': [p for p in pages if p.stem == tour] + [p for p in pages if p.parts[0] == 'tutorials']}
    for page in pages:
        if page.stem in (tour, 'index') or page.parts[0] == 'tutorials': continue
        if len(page.parts) > 1: heading = page.parts[0].replace('_', ' ').capitalize()
        elif page.name[0] in layers: heading = layers[page.name[0]]
        else: sys.exit(f'nbs/{page}: its number names no layer; layers are {layers}')
        found.setdefault(heading, []).append(page)
    numbered = [h for h in layers.values() if h in found]
    return {h: found[h] for h in ['Start here', *numbered, *sorted(found.keys()-{'Start here', *numbered})[::-1]] if found[h]}


# ── API ──
def short(value, limit=60):
    "How a default is written; what has no such form is left out"
    said = getattr(value, '__name__', None) or repr(value)
    said = re.sub(r'\s+', ' ', said)
    return '...' if '<' in said or len(said) > limit else said

def type_name(annotation):
    if annotation is inspect.Parameter.empty or annotation is None: return ''
    said = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    said = re.sub(r'Annotated\[([^\[\],]+(?:\[[^\]]*\])?),.*\]$', r'\1', said)
    return re.sub(r'\b(?:[a-z_]\w*\.)+(?=[A-Za-z])', '', said)

def signature(fn, skip_first=False):
    try: found = inspect.signature(fn)
    except (ValueError, TypeError): return '()'
    parameters, empty, said, star = list(found.parameters.values())[skip_first:], inspect.Parameter.empty, [], False
    for p in parameters:
        if p.kind == p.KEYWORD_ONLY and not star: said.append('*')
        star |= p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        name = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '') + p.name
        default = '...' if 'factory' in repr(p.default) else short(p.default)
        said.append(name if p.default is empty else f'{name}={default}')
    return f'({", ".join(said)})'

def described(fn, skip=('self', 'cls')):
    "The comments beside the parameters, as a list of fields"
    try: found = docments(fn, full=True)
    except (TypeError, OSError, ValueError, SyntaxError): return ''
    said = []
    for name, entry in found.items():
        text = re.sub(r'\s+', ' ', entry.docment or '').strip()
        kind = type_name(entry.anno)
        if name in skip or not (text or kind): continue
        kind = f'`{kind}`' if kind else ''
        if name == 'return': said.append(f':returns: {text}{" " if text and kind else ""}{f"({kind})" if text and kind else kind}')
        else: said.append(f':param {name}: {text}{f" ({kind})" if text and kind else kind}')
    return '\n'.join(said)

def prose(thing):
    "A docstring; plain text apart from its backticks"
    text = inspect.getdoc(thing) or ''
    return '\n'.join(re.sub(r'^(#|>|\s{4})', r'\\\1', line) for line in text.splitlines())

def directive(kind, head, *body, fence=4):
    return '`'*fence + f'{{py:{kind}}} {head}\n\n' + '\n\n'.join(b for b in body if b) + '\n' + '`'*fence + '\n'

def methods(cls):
    for name, held in vars(cls).items():
        fn = getattr(held, '__func__', getattr(held, 'fget', held))
        if name.startswith('_') or not inspect.isfunction(fn) or not fn.__module__.startswith(f'{lib}.') or not inspect.getdoc(fn): continue
        if isinstance(held, property): yield directive('property', name, prose(fn), described(fn))
        else:
            flags = ':classmethod:' if isinstance(held, classmethod) else ':staticmethod:' if isinstance(held, staticmethod) else ''
            yield directive('method', name + signature(fn, not isinstance(held, staticmethod)), flags, prose(fn), described(fn))

def entry(name, thing):
    if inspect.isclass(thing):
        own = thing if dataclasses.is_dataclass(thing) else thing.__dict__.get('__init__')
        text = '' if dataclasses.is_dataclass(thing) and (thing.__doc__ or '').startswith(f'{name}(') else prose(thing)
        head = name + (signature(thing) if own else '')
        return directive('class', head, text, described(own) if own else '', *methods(thing), fence=5)
    if callable(thing): return directive('function', name + signature(thing), prose(thing), described(thing))
    return directive('data', name, f'`{said}`' if (said := short(thing, 200)) != '...' and '`' not in said else '')

def api_page(module, page):
    "All public names of a module, in the order of its notebook"
    held = importlib.import_module(f'{lib}.{module}')
    head = f'# {lib}.{module}\n\n{prose(held)}\n\nExplained and tested in [{page.stem}](/{page.as_posix()}).\n'
    names = '\n\n'.join(entry(name, getattr(held, name)) for name in held.__all__)
    return f'{head}\n```{{py:module}} {lib}.{module}\n```\n\n{names}'


# ── links ──
class Page(HTMLParser):
    "What a page points to, and what it can be pointed at"
    def __init__(self, file):
        super().__init__()
        self.targets, self.ids = [], set()
        self.feed(file.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        for key in ('href', 'src'):
            if attrs.get(key): self.targets.append((tag, attrs.get('rel', ''), attrs[key]))

def dead_links(site:Path)->list:
    "Links into the site that lead nowhere, and what a page would fetch from elsewhere"
    site = site.resolve()
    pages = {file: Page(file) for file in site.rglob('*.html')}
    wrong = []
    for file, page in pages.items():
        for tag, rel, target in page.targets:
            path, fragment = urldefrag(target)
            if target.startswith(('data:', 'mailto:')): continue
            if re.match(r'https?:|//', target):
                if tag != 'a' and rel != 'canonical': wrong.append(f'{file.relative_to(site)}: fetches {target}')
                continue
            to = (file.parent/unquote(path.partition('?')[0])).resolve() if path else file
            if to.is_dir(): to /= 'index.html'
            if not to.exists() or fragment and to in pages and unquote(fragment) not in pages[to].ids:
                wrong.append(f'{file.relative_to(site)}: {target} leads nowhere')
    return wrong


def shown_model():
    "A cell of the start page with the model of the package in it"
    frame = '<iframe src="demo/index.html" title="A model that runs in this page" loading="lazy" style="width:100%;height:48rem;border:0"></iframe>'
    text = f'Here it is, in your browser. Give it a drawn scene; nothing leaves your device.\n\n```{{raw}} html\n{frame}\n```\n'
    return dict(cell_type='markdown', id='shownmodel', metadata={}, source=text)

def build(
    site:Path, # Folder to write
    web:str,   # The npm package onnxruntime-web, for the page of a model on the start page; empty: without it
):
    pages = notebooks()
    modules = {m: p for p in pages if (m := module_of(read(p)))}
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        for page in pages:
            to = stage/page
            to.parent.mkdir(parents=True, exist_ok=True)
            nb = prepared(page)
            if page.name == cfg['readme_nb']:
                trees = ''.join(toctree([p.with_suffix('') for p in ps], heading) for heading, ps in groups(pages).items())
                trees += toctree(['api/index', 'genindex'], 'API', 3)
                nb['cells'].append(dict(cell_type='markdown', id='sitenav', metadata={}, source=trees))
                if web: nb['cells'].insert(2, shown_model())       # below its three lines
            to.write_text(json.dumps(nb), encoding='utf-8')
        for file in [*root.glob('index_files/*'), *nbs.rglob('*.png'), root/'docs/static/colab.svg']:
            to = stage/'files'/file.relative_to(root)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
        (stage/'api').mkdir()
        rooms = {}
        for heading, held in groups(pages).items():
            for module in [m for m, p in modules.items() if p in held]:
                rooms.setdefault(heading, []).append(module)
                (stage/f'api/{module}.md').write_text(api_page(module, modules[module]), encoding='utf-8')
        for heading, held in rooms.items():
            lines = '\n'.join(f'- [{lib}.{m}](/api/{m}.md): {summary(modules[m])}' for m in held)
            (stage/f'api/room_{heading.lower()}.md').write_text(f'# {heading}\n\n{lines}\n\n{toctree(held)}', encoding='utf-8')
        said = '\n\n'.join(f'## {heading}\n\n' + '\n'.join(f'- [{lib}.{m}](/api/{m}.md): {summary(modules[m])}' for m in held)
                           for heading, held in rooms.items())
        (stage/'api/index.md').write_text(
            f'# API\n\nEvery public name, with the meaning and the shape of each parameter.\n\n{said}\n\n'
            + toctree([f'room_{h.lower()}' for h in rooms]), encoding='utf-8')
        if site.exists(): shutil.rmtree(site)
        done = subprocess.run([sys.executable, '-m', 'sphinx', '-b', 'html', '-c', str(root/'docs'), '-d', str(stage/'.doctrees'),
                               '-W', '--keep-going', '-q', str(stage), str(site)])
        if done.returncode: sys.exit(done.returncode)
    (site/'.nojekyll').touch()
    if web:
        shutil.copytree(root/lib/'demo', site/'demo')
        importlib.import_module(f'{lib}.page').add_page(site/'demo', web)
    if wrong := dead_links(site): sys.exit('\n'.join(wrong))
    print(f'{len(pages)} notebooks and {len(modules)} modules: {len(list(site.rglob("*.html")))} pages in {site}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('site', nargs='?', type=Path, default=root/cfg['doc_path'], help='folder to write; what it held is removed')
    parser.add_argument('--onnxruntime-web', default='', help='its npm package, to show the model of the package on the start page')
    args = parser.parse_args()
    build(args.site, args.onnxruntime_web)
