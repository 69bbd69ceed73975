"""Type stubs for modules whose classes get methods by `@patch`, so that tools which read code find them

    nbdev_export && python make_stubs.py    # writes the `.pyi` files beside the modules
    python make_stubs.py --check            # writes nothing; names stale stubs, and exits with status 1

Modules are read as text and never imported. `completion.ipynb`, beside this file, says why stubs are needed.
"""
import argparse
import ast
import io
import sys
import textwrap
import tokenize
from bisect import bisect_right
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

here = Path(__file__).resolve()
functions = ast.FunctionDef, ast.AsyncFunctionDef
displays = {ast.JoinedStr: 'str', ast.List: 'list', ast.ListComp: 'list', ast.Dict: 'dict', ast.DictComp: 'dict',
            ast.Set: 'set', ast.SetComp: 'set', ast.Tuple: 'tuple', ast.Compare: 'bool'}
registering = 'register_buffer', 'register_parameter'
unknown = 'Incomplete'  # what typeshed calls a type that nobody wrote down yet


# Reading a module

class Module:
    "The text of a module, its syntax tree, and what its names mean"
    def __init__(self,
        path:Path,   # Of the `.py` file
        package:str, # Dotted name of the package it lies in
    ):
        self.path = path
        self.package = package
        self.name = package if path.stem == '__init__' else f'{package}.{path.stem}'
        self.text = path.read_text(encoding='utf-8')
        self.tree = ast.parse(self.text)
        self.lines = self.text.split('\n')
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.comments = dict(self._read_comments())
        self.cells = [n for n, c in self.comments.items() if c.startswith('# %% ') and self.lines[n-1] == c]
        self.classes = {n.name: n for n in self.tree.body if isinstance(n, ast.ClassDef)}
        self.functions = {n.name: n for n in self.tree.body if isinstance(n, functions)}
        self.own = {*self.classes, *self.functions, *assigned_names(self.tree.body)}
        self.imports = dict(self._read_imports(ast.walk(self.tree)))
        self.top_imports = dict(self._read_imports(self.tree.body))

    def _read_comments(self):
        "Number of a line → the comment that ends it"
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string

    def _read_imports(self, nodes):
        "Name → (module it comes from, its name there; None for a module)"
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.asname or alias.name.split('.')[0], (alias.name, None)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield alias.asname or alias.name, (self.absolute(node), alias.name)

    def absolute(self, node):
        "Dotted name of the module that a `from` import names"
        if not node.level:
            return node.module
        parts = self.package.split('.')
        above = parts[:len(parts) - node.level + 1]
        return '.'.join([*above, *filter(None, [node.module])])

    def at(self, line, column):
        "Index in the text of a place as `ast` gives it: lines from 1, columns in UTF-8 bytes"
        return self.starts[line-1] + len(self.lines[line-1].encode()[:column].decode())

    def span(self, node):
        "First and last index of a node in the text"
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def source(self, node):
        "The text of a node"
        start, end = self.span(node)
        return self.text[start:end]

    def comment(self, line):
        "What the comment at the end of a line says"
        return self.comments.get(line, '').lstrip('# ')

    def cell(self, node):
        "The comment with which nbdev opens the cell of a node: notebook and cell"
        i = bisect_right(self.cells, node.lineno)
        return self.comments[self.cells[i-1]] if i else ''

    def refuse(self, node, why):
        "Stop: a stub that leaves something out in silence would be believed"
        raise ValueError(f'{self.path.name}:{node.lineno}: {why}')


def assigned_names(body):
    "Names that the assignments among some statements bind"
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign): targets = [node.target]
        for part in (part for target in targets for part in ast.walk(target)):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store): yield part.id


def read_package(
    folder:Path, # Of the package, which bears its name
)->dict:         # Dotted name → `Module`
    "Every module under a package's folder"
    modules = {}
    for path in sorted(folder.rglob('*.py')):
        module = Module(path, '.'.join([folder.name, *path.relative_to(folder).parts[:-1]]))
        modules[module.name] = module
    return modules


def find(modules, module, name):
    "Module of the package that defines what `name` means in `module`, and its name there; None: it is not ours"
    while module is not None and name not in module.own:
        source, name = module.imports.get(name, ('', None))
        module = modules.get(source) if name else None
    return (module, name) if module else None


def root_name(node):
    "The first name of `a`, `a.b` and `a.b(c)`"
    while not isinstance(node, ast.Name):
        node = getattr(node, 'value', None) or getattr(node, 'func', None)
        if node is None: return ''
    return node.id


def names_in(*nodes):
    "Names that annotations and other expressions mention; a quoted annotation mentions what it quotes"
    for node in filter(None, nodes):
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load): yield part.id
            quoted = [getattr(part, 'annotation', None), getattr(part, 'returns', None), node]
            for said in filter(is_text, quoted): yield from names_in(unquote(said))


def is_text(node): return isinstance(node, ast.Constant) and isinstance(node.value, str)


def unquote(node):
    "The expression that a quoted annotation holds"
    try: return ast.parse(node.value, mode='eval').body
    except SyntaxError: return None  # a string that is a value


# Finding the patches

class Patch:
    "A function that `@patch` or `@patch_to` puts into classes"
    def __init__(self, module, node, decorator):
        call = isinstance(decorator, ast.Call)
        self.module, self.node = module, node
        self.options = {k.arg: ast.literal_eval(k.value) for k in decorator.keywords} if call else {}
        if other := self.options.keys() - {'as_prop', 'cls_method', 'nm'}:
            module.refuse(node, f'no stub is known for a patch with {", ".join(sorted(other))}')
        self.name = self.options.get('nm') or node.name
        self.annotated = not (call and decorator.args)  # `@patch_to` names the classes itself
        self.first = (node.args.posonlyargs + node.args.args)[0]
        owners = self.first.annotation if self.annotated else decorator.args[0]
        self.owners = list(self._owners(owners)) if owners else []
        if not self.owners: module.refuse(node, f'{node.name} is patched into no class')

    def _owners(self, node):
        "Names of the classes: of one, of `A|B`, of `(A, B)`"
        if isinstance(node, ast.Constant): node = unquote(node)
        if isinstance(node, ast.Name): yield node.id
        elif isinstance(node, ast.Tuple):
            for part in node.elts: yield from self._owners(part)
        elif isinstance(node, ast.BinOp): yield from (*self._owners(node.left), *self._owners(node.right))
        else: self.module.refuse(self.node, f'{ast.unparse(node)} is no class of this package')


def is_fastcore(module, decorator, *names):
    "Whether a decorator is one of fastcore's of these names"
    source, name = module.imports.get(root_name(decorator), ('', None))
    return source.split('.')[0] == 'fastcore' and name in names


def find_patches(
    modules:dict, # From `read_package`
)->dict:          # (module, class) → {name: `Patch`}
    "What is patched into which class, from whichever module"
    found = {}
    for module in modules.values():
        for node in module.tree.body:
            for decorator in node.decorator_list if isinstance(node, functions) else ():
                if not is_fastcore(module, decorator, 'patch', 'patch_to'): continue
                patch = Patch(module, node, decorator)
                for owner in patch.owners:
                    place = find(modules, module, owner)
                    if not place: module.refuse(node, f'{owner} is no class of this package; {node.name} needs one')
                    found.setdefault((place[0].name, place[1]), {})[patch.name] = patch
    return found


# Writing one stub

class Param(NamedTuple):
    "A parameter, as it is written"
    module:Module
    arg:ast.arg
    default:ast.AST  # None: it has none
    comment:str      # Its docment

    def __str__(self):
        text = self.arg.arg
        if self.arg.annotation: text += ':' + self.module.source(self.arg.annotation)
        if self.default is not None: text += '=' + self.module.source(self.default)
        return text


def own_params(module, node):
    "Parameters of a function, without `*args` and `**kwargs`"
    a = node.args
    several = a.posonlyargs + a.args
    defaults = [None]*(len(several) - len(a.defaults)) + a.defaults
    pairs = [*zip(several, defaults, strict=True), *zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    ends = [(default or arg).end_lineno for arg, default in pairs]
    for i, (arg, default) in enumerate(pairs):
        last = ends[i] not in ends[i+1:]  # of its line: the comment is about the last one
        yield Param(module, arg, default, module.comment(ends[i]) if last else '')


class Stub:
    "The stub of one module"
    def __init__(self,
        modules:dict, # From `read_package`
        patches:dict, # From `find_patches`
        module:Module,
    ):
        self.modules, self.patches, self.module = modules, patches, module
        self.added = {}  # name → where it comes from, for what the module itself does not import

    def need(self, module, *names):
        "Make names of another module, or of a function's own imports, mean the same in this stub"
        for name in names:
            source, held = self.origin(module, name), self.origin(self.module, name)
            if source is None or held and dotted(held) == dotted(source): continue
            if held or dotted(self.added.setdefault(name, source)) != dotted(source):
                self.module.refuse(self.module.tree.body[0], f'{name} means something else in {module.name}')

    def origin(self, module, name):
        "Module that a name comes from, and its name there; None for builtins and what a function binds"
        place = find(self.modules, module, name)
        if place: return place[0].name, place[1]
        imports = module.top_imports if module is self.module else module.imports
        return imports.get(name)

    def head(self, module, node):
        "Where `def …:` or `class …:` begins and ends, and its last line"
        start, depth = module.span(node)[0], 0
        for token in tokenize.generate_tokens(io.StringIO(module.text[start:]).readline):
            if token.type != tokenize.OP: continue
            depth += (token.string in '([{') - (token.string in ')]}')
            if token.string == ':' and not depth: break
        line = node.lineno + token.end[0] - 1
        end = start + token.end[1] if token.end[0] == 1 else module.starts[line-1] + token.end[1]
        return start, end, line

    def params(self, module, node):
        "Parameters of a function, those that `@delegates` gives it last"
        yield from own_params(module, node)
        yield from self.delegated(module, node)

    def delegated(self, module, node):
        "What `**kwargs` stands for by `@delegates(to)`: those parameters of `to` that have a default"
        names = {p.arg.arg for p in own_params(module, node)}
        for decorator in node.decorator_list:
            if not is_fastcore(module, decorator, 'delegates'): continue
            to = [*decorator.args, *decorator.keywords] if isinstance(decorator, ast.Call) else []
            simple = len(to) == 1 and isinstance(to[0], ast.Name)
            place = find(self.modules, module, to[0].id) if simple else None
            if not place or place[1] not in place[0].functions:
                module.refuse(node, f'no stub is known for {ast.unparse(decorator)}')
            source = place[0]
            for p in self.params(source, source.functions[place[1]]):
                if p.default is not None and p.arg.arg not in names: yield p

    def signature(self, module, node, name, owner, patch):
        "`def …:` as it is written, but without the annotation for `@patch`, and with what `**kwargs` stands for"
        start, end, line = self.head(module, node)
        a, edits = node.args, []
        at = module.text.index(node.name, start)
        edits.append((at, at + len(node.name), name))
        more = list(self.delegated(module, node))
        if more and a.kwarg:
            star = [] if a.vararg or a.kwonlyargs else ['*']
            stars = module.text.rindex('**', start, module.span(a.kwarg)[0])
            edits.append((stars, module.span(a.kwarg)[1], ', '.join([*star, *map(str, more)])))
        if self.makes_own_kind(module, node, owner, patch):
            edits += [self.first(module, node, ':type[Self]'), (*module.span(node.returns), 'Self')]
        elif patch and patch.annotated: edits.append(self.first(module, node, ''))
        for p in [*own_params(module, node), *more]:
            kind = None if patch and p.arg is patch.first else p.arg.annotation
            self.need(p.module, *names_in(kind, None if is_text(p.default) else p.default))
        self.need(module, *names_in(node.returns))
        text = module.text[start:end]
        for first, last, new in sorted(edits, reverse=True):
            text = text[:first-start] + new + text[last-start:]
        return text + ('  ' + module.comments[line] if line in module.comments else '')

    def first(self, module, node, kind):
        "The edit that gives the first parameter another annotation"
        arg = (node.args.posonlyargs + node.args.args)[0]
        return module.span(arg)[0] + len(arg.arg), module.span(arg)[1], kind

    def makes_own_kind(self, module, node, owner, patch):
        "Whether a class method returns the class it is written for: on a derived class it returns the derived one"
        of_class = 'classmethod' in names_in(*node.decorator_list)
        if patch and patch.options.get('cls_method'): of_class = True
        return bool(owner and of_class) and list(names_in(node.returns)) == [owner]

    def decorators(self, module, node, patch=None):
        "Decorators of the standard library and ours; others, such as torch's, are taken to keep the signature"
        options = patch.options if patch else {}
        if options.get('as_prop'): yield '@property'
        if options.get('cls_method'): yield '@classmethod'
        for decorator in node.decorator_list:
            root = root_name(decorator)
            source = module.imports.get(root, (root, None))[0]
            standard = source.split('.')[0] in sys.stdlib_module_names
            if standard or source in self.modules or root not in module.imports:
                self.need(module, *names_in(decorator))
                yield '@' + module.source(decorator)

    def docstring(self, module, node, params, returns=''):
        "The docstring, and below it the docments: tools that show a signature leave its comments out"
        text = ast.get_docstring(node) or ''
        told = [f'    {p.arg.arg}: {p.comment}' for p in params if p.comment]
        if told: text += '\n\nArgs:\n' + '\n'.join(told)
        if returns: text += f'\n\nReturns:\n    {returns}'
        return quote(text)

    def function(self, module, node, owner='', patch=None):
        "A function without its body"
        params = list(self.params(module, node))
        line = self.head(module, node)[2]
        last = max([p.arg.end_lineno for p in own_params(module, node)], default=0)
        returns = module.comment(line) if line > last else ''
        head = self.signature(module, node, patch.name if patch else node.name, owner, patch)
        head = textwrap.dedent(' '*node.col_offset + head)
        doc = self.docstring(module, node, params, returns)
        body = textwrap.indent(f'{doc}\n...'.lstrip(), '    ')
        text = f'{head}\n{body}' if doc or line in module.comments else f'{head} ...'
        return '\n'.join([*self.decorators(module, node, patch), text])

    def klass(self, module, node, outer=''):
        "A class: its fields, its attributes, its methods without their bodies, and what is patched into it"
        start, end, _ = self.head(module, node)
        patches = self.patches.get((module.name, node.name), {}) if not outer else {}
        made = any('dataclass' in names_in(d) for d in node.decorator_list)
        fields = [n for n in node.body if made and isinstance(n, ast.AnnAssign)]
        params = [Param(module, ast.arg(n.target.id), None, module.comment(n.end_lineno)) for n in fields]
        parts = list(filter(None, [self.docstring(module, node, params)]))
        for child in node.body:
            if getattr(child, 'name', None) in patches: continue
            if isinstance(child, functions): parts.append(self.function(module, child, node.name))
            elif isinstance(child, ast.ClassDef): parts.append(self.klass(module, child, node.name))
            elif binds(child): parts.append(self.verbatim(module, child))
        held = class_names(node) | patches.keys()
        for name, kind in self.attributes(module, node).items():
            if name not in held: parts.append(f'{name}: {kind}')
        for patch in patches.values():
            text = self.function(patch.module, patch.node, node.name, patch)
            parts.append(f'{patch.module.cell(patch.node)}\n{text}'.lstrip())
        body = textwrap.indent('\n'.join(parts) or '...', '    ')
        return '\n'.join([*self.decorators(module, node), textwrap.dedent(module.text[start:end]), body])

    def verbatim(self, module, node):
        "A statement as it is written, with its comment"
        text = textwrap.dedent(' '*node.col_offset + module.source(node))
        return text + ('  ' + module.comments[node.end_lineno] if node.end_lineno in module.comments else '')

    def attributes(self, module, node):
        "Name → type of what the methods of a class give `self`"
        methods = [(module, n) for n in node.body if isinstance(n, functions)]
        methods += [(p.module, p.node) for p in self.patches.get((module.name, node.name), {}).values()]
        found = {}
        for source, method in methods:
            several = method.args.posonlyargs + method.args.args
            if not several or several[0].arg != 'self': continue
            known = {p.arg.arg: p.arg.annotation for p in own_params(source, method) if p.arg.annotation}
            for name, value in given(method):
                kind = self.kind(source, value, known)
                if found.get(name, unknown) == unknown: found[name] = kind
        above = self.inherited(module, node)
        return {name: kind for name, kind in found.items() if kind != unknown or name not in above}

    def inherited(self, module, node):
        "Names that the classes above have, as far as they are ours"
        names = set()
        for base in node.bases:
            place = find(self.modules, module, root_name(base))
            if place and place[1] in place[0].classes:
                source, above = place[0], place[0].classes[place[1]]
                names |= class_names(above) | self.patches.get((source.name, above.name), {}).keys()
                names |= self.attributes(source, above).keys() | self.inherited(source, above)
        return names

    def kind(self, module, value, known):
        "The type of an expression, where it can be read off it"
        if type(value) in displays: return displays[type(value)]
        if isinstance(value, ast.Constant) and value.value is not None: return type(value.value).__name__
        if isinstance(value, ast.Name) and value.id in known: return self.expression(module, known[value.id])
        if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.Or):
            return self.kind(module, value.values[0], known)
        if isinstance(value, ast.IfExp):
            yes, no = (self.kind(module, v, known) for v in (value.body, value.orelse))
            empty = [isinstance(v, ast.Constant) and v.value is None for v in (value.body, value.orelse)]
            if yes == no: return yes
            if any(empty) and unknown not in (kind := yes if empty[1] else no): return f'{kind} | None'
        if isinstance(value, ast.Call): return self.made_by(module, value.func)
        return unknown

    def made_by(self, module, callee):
        "What a call gives: an object of a class, or what a function of ours says that it returns"
        last = getattr(callee, 'attr', None) or getattr(callee, 'id', '')
        root = root_name(callee) if isinstance(callee, (ast.Name, ast.Attribute)) else ''
        place = find(self.modules, module, root) if isinstance(callee, ast.Name) else None
        if place and place[1] in place[0].functions:
            returns = place[0].functions[place[1]].returns
            return self.expression(place[0], returns) if returns else unknown
        if root in module.own | module.imports.keys() and last.lstrip('_')[:1].isupper():
            return self.expression(module, callee)
        return unknown

    def expression(self, module, node):
        "An annotation of some module, for use in this stub"
        self.need(module, *names_in(node))
        return module.source(node)

    def lazy(self):
        "Imports that a module-level `__getattr__` makes when it is asked"
        node = self.module.functions.get('__getattr__')
        return [n for n in ast.walk(node) if isinstance(n, ast.ImportFrom)] if node else []

    def body(self):
        "The statements of the module, in its order"
        patched = {p.node for found in self.patches.values() for p in found.values()}
        cell = ''
        for node in self.module.tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)) or node in patched: continue
            if isinstance(node, functions):
                if node.name == '__getattr__': continue
                text = self.function(self.module, node)
            elif isinstance(node, ast.ClassDef): text = self.klass(self.module, node)
            elif not binds(node): continue
            else: text = self.constant(node)
            head = self.module.cell(node)
            yield f'\n{head}\n{text}' if head and head != cell else text
            cell = head
        for node in self.lazy():
            yield from (f'{import_head(node)}{a.name} as {a.asname or a.name}' for a in node.names)

    def constant(self, node):
        "A statement of the module; of `__version__` and its like the type, for they change by themselves"
        name = next(assigned_names([node]), '')
        if not name.startswith('__') or name == '__all__': return self.verbatim(self.module, node)
        return f'{name}: {self.kind(self.module, node.value, {})}'

    def imports(self, used):
        "The imports of the module that its stub needs, as they are written"
        others = [place for m in self.modules.values() for place in m.imports.values()]
        asked = {name for source, name in others if source == self.module.name}  # what a module of ours finds here
        for node in self.module.tree.body:
            if not isinstance(node, (ast.Import, ast.ImportFrom)): continue
            if isinstance(node, ast.ImportFrom) and node.module == '__future__': continue
            several = []
            for alias in node.names:
                name = alias.asname or alias.name.split('.')[0]
                renamed = name in asked or alias.asname
                if name in asked | used: several.append(f'{alias.name} as {name}' if renamed else alias.name)
            if several: yield import_head(node) + ', '.join(several)
        for name, (source, there) in sorted(self.added.items()):
            if name not in used: continue
            if there is None: yield f'import {source}' + (f' as {name}' if name != source.split('.')[0] else '')
            else: yield f'from {source} import {there}' + (f' as {name}' if name != there else '')

    def __str__(self):
        body = '\n'.join(self.body())
        used = set(names_in(ast.parse(body)))
        if 'Self' in used - self.module.own - self.module.imports.keys():  # a variable: jedi follows no `typing.Self`
            self.added['TypeVar'] = ('typing', 'TypeVar')
            body, used = "Self = TypeVar('Self')\n" + body, used | {'TypeVar'}
        if unknown in used: self.added[unknown] = ('_typeshed', unknown)
        doc = quote(ast.get_docstring(self.module.tree, clean=False) or '')
        head = f'{mark} from {self.module.path.name} by {here.name}.'
        parts = doc, head, '\n'.join(self.imports(used)), body.strip('\n')
        return '\n\n'.join(filter(None, parts)) + '\n'


mark = '# AUTOGENERATED! DO NOT EDIT! Made'


def dotted(source):
    "`torch.nn` for both `import torch.nn` and `from torch import nn`"
    return '.'.join(filter(None, source))


def import_head(node):
    "`import …` up to the names"
    return f'from {"."*node.level}{node.module or ""} import ' if isinstance(node, ast.ImportFrom) else 'import '


def quote(text):
    "A docstring that holds `text`"
    if not text: return ''
    text = text.replace('\\', '\\\\').replace('"""', '\\"\\"\\"')
    if '\n' in text: text += '\n'
    elif text.endswith('"'): text = text[:-1] + '\\"'
    return f'"""{text}"""'


def binds(node):
    "Whether a statement that is neither import nor definition gives names that a reader may ask for"
    if isinstance(node, ast.AugAssign): return root_name(node.target) == '__all__'
    if isinstance(node, (ast.Assign, ast.AnnAssign)): return any(assigned_names([node]))
    if isinstance(node, (ast.If, ast.Try)):
        naming = ast.Import, ast.ImportFrom, ast.Assign, ast.ClassDef, *functions
        return any(isinstance(n, naming) for n in ast.walk(node))
    return False


def class_names(node):
    "Names in the body of a class"
    return {n.name for n in node.body if hasattr(n, 'name')} | set(assigned_names(node.body))


def given(method):
    "(name, value) of what a method gives `self`; the value is None where it cannot be told"
    seen = []
    for node in ast.walk(method):
        if isinstance(node, ast.Assign):
            for target in node.targets: seen += pairs(target, node.value)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store): seen += pairs(node, None)
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') in registering:
            if node.args and isinstance(node.args[0], ast.Constant): seen.append((node.args[0].value, None))
    return seen


def pairs(target, value):
    "The parts of an assignment that are for `self`"
    if isinstance(target, ast.Tuple):
        parts = values_of(value, len(target.elts))
        for t, v in zip(target.elts, parts, strict=True): yield from pairs(t, v)
    elif isinstance(target, ast.Attribute) and getattr(target.value, 'id', '') == 'self':
        yield target.attr, value


def values_of(value, n):
    "The n values of `a, b` and of `(a, b) if x else (c, d)`; None where they cannot be told apart"
    if isinstance(value, ast.Tuple) and len(value.elts) == n: return value.elts
    if isinstance(value, ast.IfExp):
        yes, no = values_of(value.body, n), values_of(value.orelse, n)
        return [ast.IfExp(value.test, y, o) if y and o else None for y, o in zip(yes, no, strict=True)]
    return [None]*n


# All of them

def make_stubs(
    folder:Path, # Of the package
)->dict:         # Path of a stub → its text
    "Stubs of the modules whose text does not say what they hold: patched classes, imports that wait until asked"
    modules = read_package(folder)
    patches = find_patches(modules)
    stubs = {}
    for module in modules.values():
        stub = Stub(modules, patches, module)
        if stub.lazy() or any(name == module.name for name, _ in patches):
            stubs[module.path.with_suffix('.pyi')] = str(stub)
    return stubs


def stale(
    folder:Path, # Of the package
)->dict:         # Path → what it should hold; None: it should not be there
    "Stubs that are not what the modules say"
    stubs, found = make_stubs(folder), {}
    for path, text in stubs.items():
        if not path.is_file() or path.read_text(encoding='utf-8') != text: found[path] = text
    for path in sorted(folder.rglob('*.pyi')):
        if path not in stubs and mark in path.read_text(encoding='utf-8'): found[path] = None
    return found


def project():
    "Folder of settings.ini, and that of the package which it names"
    root = next(p for p in here.parents if (p/'settings.ini').is_file())
    settings = ConfigParser(delimiters=['='], interpolation=None)
    settings.read(root/'settings.ini', encoding='utf-8')
    return root, root/settings['DEFAULT']['lib_path']


def command():
    "What makes the stubs anew, from the root of the project"
    return f'python {here.relative_to(project()[0]).as_posix()}'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing; fail if a stub is stale')
    check, (root, folder) = parser.parse_args().check, project()
    found = stale(folder)
    for path, text in found.items():
        if not check:
            if text is None: path.unlink()
            else: path.write_text(text, encoding='utf-8', newline='\n')
        print(f'{path.relative_to(root)}: {"stale" if check else "removed" if text is None else "written"}')
    if check and found: sys.exit(f'run `{command()}`')


if __name__ == '__main__': main()
