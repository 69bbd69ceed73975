"Sphinx's settings for the pages that `build.py` lays out"
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(here.parent/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

project, author, release, copyright = cfg['title'], cfg['author'], cfg['version'], cfg['copyright']
extensions = ['myst_nb', 'sphinx.ext.mathjax', 'sphinx-mathjax-offline']
exclude_patterns = ['jupyter_execute']

# A notebook is shown with the outputs it was committed with.
nb_execution_mode = 'off'
nb_merge_streams = True
nb_ipywidgets_js = {}  # no bar is kept in a notebook; the default asks a server for the scripts of bars
myst_enable_extensions = ['dollarmath', 'amsmath', 'fieldlist']
myst_dmath_double_inline = True
myst_heading_anchors = 4
suppress_warnings = ['myst.header']  # a section may start with a small heading

html_theme = 'furo'
html_title = f'{project} {release}'
html_baseurl = f"{cfg['doc_host']}{cfg['doc_baseurl']}/"
html_static_path = ['static']
html_favicon = 'static/favicon.svg'
html_css_files = ['site.css']
html_copy_source = False
html_show_sphinx = False
python_maximum_signature_line_length = 60
add_module_names = False
toc_object_entries_show_parents = 'hide'


def link_names(app, doctree, docname):
    "A public name in backticks becomes a link to its entry in the API pages"
    objects = app.env.get_domain('py').objects
    found = {}
    for full, entry in objects.items():
        _, _, short = full.split('.', 2) if full.count('.') > 1 else ('', '', full)
        found.setdefault(short, set()).add((full, entry))
        found.setdefault(full, set()).add((full, entry))
    for literal in list(doctree.findall(nodes.literal)):
        within = literal.parent
        while within is not None and not isinstance(within, (nodes.reference, nodes.title)): within = within.parent
        hits = found.get(literal.astext().removesuffix('()'), ())
        if within is not None or len(hits) != 1: continue
        full, entry = next(iter(hits))
        uri = app.builder.get_relative_uri(docname, entry.docname) + '#' + entry.node_id
        reference = nodes.reference('', '', internal=True, refuri=uri, reftitle=full)
        literal.replace_self(reference)
        reference += literal


def setup(app): app.connect('doctree-resolved', link_names)
