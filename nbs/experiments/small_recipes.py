"""The small recipes on Flickr8k: `python small_recipes.py --data PATH --vision_weights FILE --out FOLDER [--only NAME …]`

Each run is one command of `bitgen train` with the recipe's name, a seed, and what its row of `runs` says. A run that
was stopped goes on. What it scores, what a memory of photographs does to its captions, and the processor time of all
its calls are written to FOLDER/results.json, a row each.
"""
import argparse
import copy
import io
import json
import platform
import re
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image, ImageEnhance

from bitgen.bitgen import BitGen
from bitgen.datasets import read_pairs
from bitgen.images import open_image
from bitgen.losses import shift
from bitgen.seeding import rng

runs = {f'{recipe} {seed}': f'--recipe {recipe} --seed {seed}'
        for seed in (42, 43, 44) for recipe in ('bitgen-small', 'embervlm-small')}
runs |= {'bitgen-small ternary 42': '--recipe bitgen-small --seed 42 --bitlinear',
         'bitgen-small untold 42': '--recipe bitgen-small --seed 42 --told_fraction 0 --text_loss_weight .5'}

nouns = set('''man men woman women boy boys girl girls child children baby toddler kid kids person people crowd group
couple lady guy family player dog dogs horse bird ball stick frisbee toy bike bicycle motorcycle car bus boat train
skateboard snowboard surfboard guitar water ocean beach sand snow ice grass field park street road sidewalk city pool
lake river stream pond wave rock rocks mountain hill cliff woods forest tree path trail track wall fence building house
store window bench table chair bed playground ramp rail bridge swing slide soccer football basketball baseball tennis
hockey race game jump trick air mud hat helmet shirt dress leash camera sign'''.split())

def told_noun(sentence):
    "The last noun of a sentence that is in the list; None: there is none"
    found = [w for w in re.findall('[a-z]+', sentence.lower()) if w in nouns]
    return found[-1] if found else None

def view(image, g):
    "Another view of a photograph: 80 % of each side, another brightness, JPEG of quality 60"
    w, h = image.size
    cw, ch = round(.8*w), round(.8*h)
    x, y = int(g.integers(0, w-cw+1)), int(g.integers(0, h-ch+1))
    image = ImageEnhance.Brightness(image.crop((x, y, x+cw, y+ch))).enhance(float(g.uniform(.7, 1.3)))
    buf = io.BytesIO()
    image.save(buf, 'JPEG', quality=60)
    return Image.open(io.BytesIO(buf.getvalue())).convert('RGB')

@torch.no_grad()
def nats(model, images, sentences):
    "Cost of each sentence beside its image"
    context = model.image_tokens(model.to_batch(images))
    tokens, lengths = model.tokenize(sentences)
    inputs, targets, real = shift(tokens, lengths)
    log_p = (model.hidden_states(inputs, context) @ model.head.T).float().log_softmax(dim=-1)
    return -(log_p.gather(-1, targets[..., None])[..., 0]*real).sum(dim=1)

def say(model, images): return [c for i in range(0, len(images), 44) for c in model.caption(images[i:i+44])]

def percent_with(captions, told):
    "Captions that have the noun that was told"
    return 100*sum(told_noun(t) in c.split() for c, t in zip(captions, told, strict=True))/len(told)

def tell(model, images, views, told, others):
    "What becomes of captions when images are remembered with sentences, and after these are forgotten"
    store, before, cost = copy.deepcopy(model.memory_store), say(model, views), nats(model, views, told)
    before_others = say(model, others)
    slots = model.remember(images, told)
    after, after_others, cost_after = say(model, views), say(model, others), nats(model, views, told)
    model.forget(slots)
    changed = sum(a != b for a, b in zip(after_others, before_others, strict=True))
    trace = [(a-b).abs().max().item() for a, b in zip(model.memory_store.buffers(), store.buffers(), strict=True)
             if a.is_floating_point()]
    return {
        'noun before': percent_with(before, told), 'noun': percent_with(after, told),
        'nats before': cost.mean().item(), 'nats': cost_after.mean().item(),
        'others': 100*changed/len(others),
        'captions after forgetting': say(model, views) == before,
        'nats after forgetting': (nats(model, views, told)-cost).abs().max().item(),
        'trace in the store': max(trace),
        'shown': list(zip(before, told, after, strict=True))[:12],
    }

def memory(model, data, n=32):
    "What 32 sentences about validation images do: each image's own one, and another image's"
    records = [r for r in read_pairs(data) if r.split == 'val']
    records = [records[i] for i in rng('memory that speaks').permutation(len(records))[:3*(n+100)]]
    named = [r for r in records if told_noun(r.captions[0])][:n+100]
    images = [open_image(r.image) for r in named]
    views = [view(image, rng('view', i)) for i, image in enumerate(images)]
    captions, half = [r.captions[0] for r in named], n//2
    swapped = captions[half:n] + captions[:half]
    told = {'own': captions[:n], "another's": swapped}
    return {name: tell(model, images[:n], views[:n], sentences, views[n:]) for name, sentences in told.items()}

def machine():
    "What a row was measured on"
    model = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
    return {'machine': model[0].partition(': ')[2] if model else platform.processor(), 'python': platform.python_version(),
            'capability': torch.backends.cpu.get_cpu_capability(), 'torch': version('torch'), 'timm': version('timm')}

def call(words, calls):
    "Run a command, and add a line with what it took to a file"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = subprocess.call([sys.executable, '-m', 'bitgen.train', *words])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime+after.ru_stime - before.ru_utime-before.ru_stime
    commit = subprocess.check_output(['git', 'rev-parse', '--short', 'HEAD'], text=True, cwd=Path(__file__).parent).strip()
    row = {'status': status, 'cpu_seconds': cpu, 'threads': torch.get_num_threads(), 'commit': commit} | machine()
    with open(calls, 'a') as f: f.write(json.dumps(row) + '\n')
    return status

def one(name, args):
    "Make a run, or go on with it; its row"
    folder = args.out/name.replace(' ', '-')
    calls = folder.with_suffix('.calls.jsonl')
    if not (folder/'metrics.json').is_file():
        words = [*runs[name].split(), '--data', args.data, '--vision_weights', args.vision_weights, '--output_dir', str(folder)]
        started = any(folder.glob('checkpoint-*'))
        if call(words + ['--resume']*started, calls): sys.exit(f'{name} was ended; the same command goes on')
    took = [json.loads(line) for line in calls.read_text().splitlines()]
    row = {'run': name, 'command': f'bitgen train {runs[name]} --data PATH --vision_weights FILE',
           'calls': took, 'cpu_seconds': sum(c['cpu_seconds'] for c in took)}
    row['metrics'] = json.loads((folder/'metrics.json').read_text())
    if 'bitgen' in name: row['memory'] = memory(BitGen.from_pretrained(folder/'checkpoint-final'), args.data)
    return row

def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', required=True)
    parser.add_argument('--vision_weights', required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--only', nargs='*', choices=[*runs], default=[*runs])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out/'results.json'
    for name in args.only:
        row = one(name, args)                      # may take an hour, in which another call may add a row
        rows = json.loads(results.read_text()) if results.is_file() else {}
        results.write_text(json.dumps(rows | {name: row}, indent=1, ensure_ascii=False))

if __name__ == '__main__': main()
