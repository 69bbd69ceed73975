"""Broken and hostile inputs for everything that reads: `python fuzz.py --cases 10000 [--seed 0] [reader …]`

A case writes files that are valid but for some changes drawn by hypothesis, and lets one reader of the library loose on them. It is right when the
reader gives an answer, or an error of the library's own: a ValueError or OSError that was raised in `bitgen/`. A defect is any other exception, more than
5 seconds, more than 1 GB above what the process held before, or the end of the process. Each reader runs in a process of its own, so that a crash or a
hang in compiled code is a defect and not the end of the script.
"""
import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image

import bitgen

seconds, memory = 5, 10**9  # what a case may take
package = Path(bitgen.__file__).parent
set_hypothesis_home_dir(tempfile.mkdtemp())  # else it leaves `.hypothesis` in the working folder

# ---- changes ----

words = ['', '\0', '\ud800', 'NaN', '-1', '1e999', '../../../etc/passwd', '/dev/zero', 'x'*100_000, '${HOME}', '%s', '<script>', '\u202e', '𝕏']
numbers = [0, -1, 1, 2**31, 2**63, 10**400, -2**70, .5, -0.1, 1e308, float('nan'), float('inf'), True]
def deep(n): return json.loads('['*n + ']'*n)
hostile = st.sampled_from([None, *words, *numbers, [], {}, [[]], [None], {'': None}, deep(500), list(range(3000)), {'a': 1, 'b': [2]}])
tokens = [b'\0', b'\xff\xfe', b'\xed\xa0\x80', b'['*100_000, b'{"a":'*100_000, b'"', b'\n', b'\r', b',', b'|', b'\t', b'9'*5000, b'1e999', b'NaN', b'&a [*a,*a]', b'!!python/object:os.system',
          b'\xef\xbb\xbf', b'- '*20_000, b'"'*3, b'\\u0000', b'\\ud83d', b'<<: *x', b': ']

def change_bytes(draw, data):
    "One to three changes of a file's bytes"
    for _ in range(draw(st.integers(1, 3))):
        n = len(data)
        at = draw(st.one_of(st.integers(0, n), st.integers(0, min(n, 64))))
        end = min(n, at + draw(st.sampled_from([1, 2, 4, 16, 200, 10**9])))
        how = draw(st.sampled_from(['cut', 'drop', 'set', 'insert', 'twice', 'empty']))
        if how == 'cut': data = data[:at]
        elif how == 'drop': data = data[:at] + data[end:]
        elif how == 'set': data = data[:at] + bytes(draw(st.lists(st.integers(0, 255), min_size=1, max_size=4))) + data[at+1:]
        elif how == 'insert': data = data[:at] + draw(st.sampled_from(tokens)) + data[at:]
        elif how == 'twice': data = data[:end] + data[at:end]*draw(st.sampled_from([1, 3, 50])) + data[end:]
        elif draw(st.integers(0, 9)) == 0: data = b''
    return data[:10**7]

def spots(x, path=()):
    yield path
    for k, v in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else (): yield from spots(v, (*path, k))

def change_json(draw, x):
    "One to three changes of a tree, and now and then of its bytes"
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(list(spots(x)))) or (None,)
        if last is None:
            x = draw(hostile) if draw(st.integers(0, 5)) == 0 else x
            continue
        x = json.loads(json.dumps(x))
        parent = x
        for k in path: parent = parent[k]
        how = draw(st.sampled_from(['replace', 'replace', 'replace', 'drop', 'wrap', 'add']))
        if how == 'replace': parent[last] = draw(hostile)
        elif how == 'drop': del parent[last]
        elif how == 'wrap': parent[last] = [parent[last]]
        elif isinstance(parent, dict): parent[draw(st.sampled_from(['surprise', '', '__class__']))] = draw(hostile)
        else: parent.append(draw(hostile))
        if not isinstance(x, (dict, list)): break
    data = json.dumps(x).encode()
    return change_bytes(draw, data) if draw(st.integers(0, 4)) == 0 else data

def put(draw, path, data):
    "A file, or now and then something else of its name"
    path.parent.mkdir(parents=True, exist_ok=True)
    other = random.Random(draw(st.integers(0, 2**64))).randrange(60)  # drawn evenly: hypothesis prefers small numbers
    if other == 0: os.mkfifo(path)
    elif other == 1: path.mkdir()
    elif other == 2: path.symlink_to(path)
    elif other == 3: path.symlink_to('/dev/zero')
    elif other == 4: pass
    else: path.write_bytes(data)

# ---- readers: each writes into a folder and returns what is to be called ----

def picture(k=0, mode='RGB', kind='PNG', **how):
    x = np.random.default_rng(k).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(x).convert(mode).save(out, kind, **how)
    return out.getvalue()

def images(draw, folder):
    from bitgen.images import open_image
    kinds = [('RGB', 'PNG'), ('P', 'GIF'), ('RGB', 'JPEG'), ('RGB', 'BMP'), ('RGB', 'TIFF'), ('RGB', 'WEBP'), ('I;16', 'PNG'), ('RGBA', 'PNG'), ('1', 'TIFF'), ('RGB', 'PPM'), ('RGB', 'EPS')]
    mode, kind = draw(st.sampled_from(kinds))
    if mode == 'I;16':
        out = io.BytesIO()
        Image.fromarray(np.arange(480, dtype=np.uint16).reshape(24, 20)).save(out, kind)
        data = out.getvalue()
    else: data = picture(1, mode, kind)
    put(draw, folder/'a.jpg', change_bytes(draw, data))
    return lambda: open_image(folder/'a.jpg')

def data(draw, folder):
    from bitgen.datasets import read_pairs
    from bitgen.verify import verify
    said = [['a dog', 'a brown dog runs'], ['two cats']]
    karpathy = {'images': [{'filename': f'{k}.png', 'split': s, 'sentences': [{'raw': c} for c in said[k]]} for k, s in enumerate(('train', 'val'))]}
    coco = {'images': [{'id': k, 'file_name': f'{k:012}.jpg'} for k in range(2)], 'annotations': [{'image_id': k, 'id': k, 'caption': said[k][0]} for k in range(2)]}
    rows = [{'image': f'{k}.png', 'captions': said[k]} for k in range(2)]
    table = 'image,caption\n' + ''.join(f'{k}.png,"{c}, yes"\n' for k in range(2) for c in said[k])
    bars = 'image_name| comment_number| comment\n' + ''.join(f'{k}.png| {n}| {c}\n' for k in range(2) for n, c in enumerate(said[k]))
    token = ''.join(f'{k}.png#{n}\t{c}\n' for k in range(2) for n, c in enumerate(said[k]))
    kind = draw(st.sampled_from(['karpathy', 'coco', 'rows', 'jsonl', 'csv', 'bars', 'token', 'folder', 'tar']))
    for k in range(2):
        (folder/f'{k}.png').write_bytes(picture(k))
        (folder/f'{k:012}.jpg').write_bytes(picture(k, kind='JPEG'))
    trees = {'karpathy': ('dataset_x.json', karpathy), 'coco': ('captions_train2017.json', coco), 'rows': ('list.json', rows)}
    texts = {'csv': ('captions.csv', table), 'bars': ('results.csv', bars), 'token': ('Flickr8k.token.txt', token),
             'jsonl': ('list.jsonl', '\n'.join(map(json.dumps, rows))), 'folder': ('metadata.jsonl', '\n'.join(json.dumps({'file_name': r['image'], 'text': r['captions'][0]}) for r in rows))}
    if kind in trees:
        name, tree = trees[kind]
        put(draw, folder/name, change_json(draw, tree))
    elif kind in texts:
        name, text = texts[kind]
        put(draw, folder/name, change_bytes(draw, text.encode()))
    else:
        name, out = '00000.tar', io.BytesIO()
        with tarfile.open(fileobj=out, mode='w') as tar:
            for k in range(2):
                for ext, content in (('png', picture(k)), ('txt', said[k][0].encode()), ('json', change_json(draw, {'caption': said[k][0], 'key': str(k)}))):
                    info = tarfile.TarInfo(f'{k:05}.{ext}')
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        put(draw, folder/name, change_bytes(draw, out.getvalue()))
    source = str(folder/name) if draw(st.booleans()) else str(folder)
    read = draw(st.sampled_from([read_pairs, verify]))
    return lambda: read(source)

def recipes(draw, folder):
    import yaml
    from bitgen.recipe import load_recipe, to_flat
    flat = to_flat(load_recipe(draw(st.sampled_from(['scenes', 'bitgen', 'embervlm']))))
    if draw(st.booleans()): text = change_json(draw, flat)  # JSON is YAML
    else: text = change_bytes(draw, yaml.safe_dump(flat).encode())
    put(draw, folder/'r.yaml', text)
    return lambda: load_recipe(str(folder/'r.yaml'))

def flags(draw, folder):
    from bitgen.recipe import load_recipe, parse_recipe, to_flat
    names = list(to_flat(load_recipe('bitgen')))
    argv = ['--recipe', draw(st.sampled_from(['scenes', 'bitgen', 'embervlm']))]
    for _ in range(draw(st.integers(1, 3))):
        value = draw(st.one_of(st.sampled_from([*words, 'true', '0', '1', '[]', '{}', '-0.5', '1e-3', '10**9', '99999999999999999999', 'inf']), st.integers().map(str), st.floats().map(str), st.text(max_size=8)))
        argv += [f'--{draw(st.sampled_from(names))}={value}']
    return lambda: parse_recipe(argv)

def _tiny():
    from bitgen.bitgen import BitGen, BitGenConfig
    from bitgen.attention import TextConfig
    from bitgen.seeding import seed_torch
    from bitgen.vision import VisionConfig
    seed_torch(0, 'fuzz')
    return BitGen(BitGenConfig(VisionConfig('test_byobnet', image_size=32, freeze_vision=False), TextConfig(16, 1, 1, 2, 16), fusion_layers=1, embed_dim=8, memory_slots=4, queue_size=0, ema_decay=0.))

_whole_checkpoints, _whole_tokenizers, _whole_reports = {}, {}, {}  # made once, copied for each case

def checkpoints(draw, folder, made=_whole_checkpoints):
    import torch
    from bitgen.bitgen import load_pretrained
    from bitgen.checkpoint import checkpoints as whole, load_optimizer, load_scheduler, save_optimizer, save_scheduler
    from bitgen.files import save_json
    if 'at' not in made:
        made['at'], model = Path(tempfile.mkdtemp()), _tiny()
        model.save_pretrained(made['at'])
        made['opt'] = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
        made['sched'] = torch.optim.lr_scheduler.LambdaLR(made['opt'], lambda s: 1.)
        for p in made['opt'].param_groups[0]['params']: p.grad = torch.ones_like(p)
        made['opt'].step()
        save_optimizer(made['opt'], made['at'])
        save_scheduler(made['sched'], made['at'])
        save_json({'step': 3, 'best': None}, made['at']/'trainer_state.json')
        save_json({'seed': 1}, made['at']/'training_args.json')
    at = folder/'checkpoint-3'
    shutil.copytree(made['at'], at)
    name = draw(st.sampled_from(sorted(f.name for f in at.iterdir())))
    old = (at/name).read_bytes()
    (at/name).unlink()
    put(draw, at/name, change_json(draw, json.loads(old)) if name.endswith('.json') and draw(st.integers(0, 3)) else change_bytes(draw, old))
    if name.startswith('optim'): return lambda: load_optimizer(made['opt'], at)
    if name.startswith('sched'): return lambda: load_scheduler(made['sched'], at)
    return (lambda: whole(folder)) if name.startswith('train') else lambda: load_pretrained(at)

def tokenizers(draw, folder, made=_whole_tokenizers):
    from bitgen.tokenizer import Tokenizer, train_tokenizer
    if 'at' not in made:
        made['at'] = Path(tempfile.mkdtemp())
        train_tokenizer(['a dog runs', 'two dogs run', 'a dog'], 262).save(made['at'])
        vocab = json.loads((made['at']/'tokenizer.json').read_text())['model']
        (made['at']/'vocab.json').write_text(json.dumps(vocab['vocab']))
        (made['at']/'merges.txt').write_text('#version: 0.2\n' + '\n'.join(m if isinstance(m, str) else ' '.join(m) for m in vocab['merges']))
    name = draw(st.sampled_from(['tokenizer.json', 'tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt']))
    parts = ('vocab.json', 'merges.txt', 'tokenizer_config.json') if name in ('vocab.json', 'merges.txt') else ('tokenizer.json', 'tokenizer_config.json')
    for f in parts:
        old = (made['at']/f).read_bytes()
        if f != name: (folder/f).write_bytes(old)
        else: put(draw, folder/f, change_json(draw, json.loads(old)) if f.endswith('.json') and draw(st.integers(0, 3)) else change_bytes(draw, old))
    def use():
        t = Tokenizer.load(folder)
        t.decode(t.encode('a dog 🐕 runs'))
        t.encode_batch(['x', ''])
    return use

def _run_rows():
    row = {'stage1/itc': 1.2, 'stage1/itc_chance': 3.5, 'stage1/txt': 1., 'stage1/total_loss': 2., 'stage1/learning_rate': 1e-3, 'stage1/grad_norm': 1., 'stage1/grad_norm/encoder': .5,
           'stage1/itm_acc': 80., 'stage1/caption_nll': .5, 'stage1/val_mean_recall': 80., 'stage1/val_r1_chance': .2, 'stage1/val_captions_true': 80., 'stage1/epoch': .1}
    return [{'step': 0, 'stage1/vision_frozen': 0, 'stage1/total_steps': 200, 'stage1/warmup_steps': 10, 'stage1/leaked_images': 0}, *({'step': 10*k} | row for k in range(1, 20))]

def _run(draw, folder):
    rows = _run_rows()
    k = draw(st.integers(0, len(rows)-1))
    lines = [json.dumps(r).encode() for r in rows]
    if draw(st.booleans()): lines[k] = change_json(draw, rows[k])
    body = b'\n'.join(lines)+b'\n'
    put(draw, folder/'metrics.jsonl', change_bytes(draw, body) if draw(st.booleans()) else body)

def doctor(draw, folder):
    from bitgen.diagnostics import diagnose, format_findings
    from bitgen.tracker import read_metrics
    _run(draw, folder)
    return lambda: format_findings(diagnose(read_metrics(folder)))

def reports(draw, folder, made=_whole_reports):
    from bitgen.recipe import load_recipe, save_recipe
    from bitgen.report import write_report
    _run(draw, folder)
    if 'recipe' not in made:
        path = Path(tempfile.mkdtemp())/'recipe.yaml'
        save_recipe(load_recipe('scenes'), path)
        made['recipe'] = path.read_bytes()
    put(draw, folder/'recipe.yaml', change_bytes(draw, made['recipe']) if draw(st.booleans()) else made['recipe'])
    put(draw, folder/'metrics.json', change_json(draw, {'n_images': 5, 'n_captions': 25, 'i2t_r1': 80., 'i2t_r5': 90., 'i2t_r10': 95., 'r1_chance': .2, 'captions_true': 80.}))
    put(draw, folder/'checkpoint-3'/'trainer_state.json', change_json(draw, {'step': 3, 'best': None}))
    return lambda: write_report(folder)

def vision_args(draw, folder):
    from bitgen.vision import VisionConfig, VisionTower
    args = draw(st.lists(st.one_of(st.sampled_from(["checkpoint_path='x'", 'output_stride=16', 'output_stride=-1', 'in_chans=10**9', 'depth=99999999', '=', 'a=b=c', 'pretrained=True', 'num_classes=7', 'output_stride=' + '('*5000, 'x=__import__("os")']), st.text(max_size=12)), min_size=1, max_size=2))
    name = draw(st.sampled_from(['test_resnet', 'test_byobnet', 'test_vit', '', 'resnet', 'x'*1000, 'hf-hub:a/b', 'local-dir:/tmp']))
    size = draw(st.sampled_from([32, 64, 0, -1, 7, 10**9]))
    return lambda: VisionTower(VisionConfig(name, image_size=size, vision_args=tuple(args)))

readers = {f.__name__: f for f in (images, data, recipes, flags, checkpoints, tokenizers, doctor, reports, vision_args)}

# ---- the referee ----

class Hang(BaseException): pass

def held():
    "Bytes of address space of this process"
    return int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()

@contextlib.contextmanager
def limits():
    def ring(*_): raise Hang(f'no end after {seconds} s')
    old = signal.signal(signal.SIGALRM, ring)
    soft = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held()+memory, soft[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, soft)

def chain(e):
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__

def judge(call):
    "'' when `call` answered or refused as it should, else the defect in a line"
    try:
        with limits(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): call()
    except SystemExit as e: return '' if e.code == 2 else f'SystemExit {e.code}'
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt): raise
        last = traceback.extract_tb(e.__traceback__)[-1]
        ours = package in Path(last.filename).parents
        if any(isinstance(c, MemoryError) for c in chain(e)): return f'MemoryError in {Path(last.filename).name}:{last.name}'
        if isinstance(e, (ValueError, OSError)) and ours and not isinstance(e, UnicodeError): return ''
        return f'{type(e).__name__} in {Path(last.filename).name}:{last.name}'
    return ''

def _work(name, cases, start, pipe):
    "Run cases of one reader, and say after each what it was"
    warnings.simplefilter('ignore')
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what compiled code says before it dies
    @seed(start)
    @settings(max_examples=cases, phases=[Phase.generate], database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def one(d):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            call = readers[name](d.draw, Path(folder))
            pipe.send('begin')
            pipe.send(judge(call))
    try: one()
    except BaseException as e: pipe.send(f'the script itself: {type(e).__name__}: {e}'[:300])
    pipe.send(None)

def fuzz(
    name,    # Of `readers`
    cases,   # How many
    start=0, # Seed
):           # Number of cases tried, and a Counter of defects
    "Try a reader"
    context, found, tried = multiprocessing.get_context('fork'), Counter(), 0
    while tried < cases:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(name, cases-tried, start+tried, there), daemon=True)
        child.start()
        there.close()
        ended = False
        while True:
            try: said = here.recv() if here.poll(seconds+5) else 'hang'
            except EOFError:
                child.join()
                found[f'the process ended ({child.exitcode})'] += 1
                tried += 1
                break
            if said is None:
                ended = True
                break
            if said == 'hang':
                found['no end, in compiled code'] += 1
                tried += 1
                break
            if said == 'begin': continue
            tried += 1
            if said: found[said] += 1
        child.kill()
        child.join()
        if ended: break
    return tried, found

if __name__ == '__main__':
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument('--cases', type=int, default=10_000)
    args.add_argument('--seed', type=int, default=0)
    args.add_argument('--output', default='', help='a JSON file for the numbers')
    args.add_argument('readers', nargs='*', default=list(readers))
    args = args.parse_args()
    import bitgen.bitgen, bitgen.diagnostics, bitgen.report  # noqa: F401  once, before the processes are forked
    total, every, kept = Counter(), Counter(), {}
    for name in args.readers:
        t = time.time()
        tried, found = fuzz(name, -(-args.cases//len(args.readers)), args.seed)
        print(f'{name:12} {tried:6} cases, {sum(found.values()):5} defects of {len(found)} kinds, {time.time()-t:.0f} s', flush=True)
        for kind, n in found.most_common(40): print(f'    {n:5}  {kind}', flush=True)
        total[name] += tried
        every += found
        kept[name] = {'cases': tried, 'defects': dict(found)}
    print(f'{total.total()} cases, {every.total()} defects')
    if args.output: Path(args.output).write_text(json.dumps(kept, indent=1)+'\n')
    sys.exit(every.total() > 0)
