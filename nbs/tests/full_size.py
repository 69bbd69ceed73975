"""The recipes `bitgen` and `embervlm` at their full size, from files of the published layouts: `python full_size.py --out FILE`

No network: the files hold random numbers under the names and shapes of the published ones (timm's DINOv2 ViT-S/14 for 518 px, RepViT
m1.5 with its classifiers, a GPT-2 of 384×6×6). Each recipe makes some steps of a small batch through its own command line. Checked:
the tower is that of the file, bit by bit but for what was resampled; every loss is finite; every trained tensor gets a gradient that
is finite, and not zero in all steps. Exit status 1 when something of this does not hold.
"""
import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from bitgen.loader import load_pairs
from bitgen.recipe import parse_recipe
from bitgen.train import _captions, build_model, make_loader
from bitgen.trainer import Callback, Trainer

class Watch(Callback):
    "Losses of each step, and the largest gradient of each tensor over all steps"
    def __init__(self): self.losses, self.seconds, self.largest = [], [], {}

    def on_begin(self, trainer):
        self.begin = time.perf_counter()
        for name, p in trainer.unwrapped_model.named_parameters():
            if not p.requires_grad: continue
            self.largest[name] = 0.
            p.register_post_accumulate_grad_hook(lambda p, name=name: self.see(name, p.grad))

    def see(self, name, grad):
        seen = grad.abs().max().item()
        if not math.isfinite(seen): self.largest[name] = seen
        elif math.isfinite(self.largest[name]): self.largest[name] = max(self.largest[name], seen)

    def after_step(self, trainer, out):
        now = time.perf_counter()
        self.seconds.append(now-self.begin)
        self.begin = now
        self.losses.append(out['total_loss'].item())

def published(folder):
    "Files of the published layouts, of random numbers, and the flags that name them"
    torch.manual_seed(0)
    for name in ('vit_small_patch14_dinov2', 'repvit_m1_5'):
        save_file(timm.create_model(name).state_dict(), folder/f'{name}.safetensors')
    lm = GPT2Config(n_embd=384, n_layer=6, n_head=6, vocab_size=50257)
    GPT2LMHeadModel(lm).save_pretrained(folder/'lm')
    return {'bitgen': f'--vision_weights {folder}/vit_small_patch14_dinov2.safetensors',
            'embervlm': f'--vision_weights {folder}/repvit_m1_5.safetensors --language_weights {folder}/lm'}

def started_from(model, path):
    "Names of the tower's tensors that are not those of the file, or not there under their name"
    file, own = load_file(path), model.vision.backbone.state_dict()
    return sorted(k for k in own if k not in file or not torch.equal(file[k], own[k]))

@torch.no_grad()
def distance(model, name, path):
    "Largest difference of the tower's features from those of the file's network, relative to their spread"
    net = timm.create_model(name, num_classes=0)
    net.load_state_dict({k: v for k, v in load_file(path).items() if k in net.state_dict()})
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ours, theirs = model.vision(images), net.eval().forward_features(images).flatten(2).transpose(1, 2)
    return ((ours-theirs).abs().max()/theirs.std()).item()

def run(name, flags, steps, batch, folder):
    "What a recipe did in some steps"
    recipe = parse_recipe(f'--recipe {name} {flags} --batch_size {batch} --max_steps {steps} --warmup_steps 2 --precision fp32 '
                          f'--no_cache_features --output_dir {folder}/{name}'.split())
    records = load_pairs(recipe.data.data, seed=recipe.train.seed)['train'][:4*batch*steps]
    model = build_model(recipe, _captions(records))
    tower = recipe.model.vision_tower
    differs, apart = None, None
    if tower.freeze_vision: apart = distance(model, tower.vision, tower.vision_weights)  # fused: the function is the same
    else: differs = started_from(model, tower.vision_weights)
    watch = Watch()
    Trainer(model, make_loader(model, records, recipe), recipe.train, callbacks=[watch]).fit()
    bad = sorted(k for k, g in watch.largest.items() if not math.isfinite(g))
    idle = sorted(k for k, g in watch.largest.items() if g == 0)
    parameters = sum(p.numel() for p in model.parameters())
    return dict(recipe=name, steps=len(watch.losses), batch=batch, parameters=parameters, losses=watch.losses,
                seconds=sorted(watch.seconds)[len(watch.seconds)//2], tokens=model.tokenizer.vocab_size,
                not_as_in_file=differs, features_apart=apart, resampled={k: list(v) for k, v in model.vision.resampled.items()},
                trained_tensors=len(watch.largest), not_finite=bad, without_gradient=idle)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', default='scenes:400')
    p.add_argument('--tokenizer', default='train:1000', help='a folder with that of GPT-2 gives the full vocabulary')
    p.add_argument('--steps', type=int, default=20)
    p.add_argument('--batch', type=int, default=4)
    p.add_argument('--out', type=Path, required=True)
    args = p.parse_args()
    ok = True
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name, files in published(Path(folder)).items():
            flags = f'{files} --data {args.data} --tokenizer {args.tokenizer}'
            rows.append(run(name, flags, args.steps, args.batch, folder))
            r = rows[-1]
            as_in_file = r['features_apart'] < 1e-3 if r['not_as_in_file'] is None else r['not_as_in_file'] == sorted(r['resampled'])
            finite = all(map(math.isfinite, r['losses'])) and not r['not_finite']
            ok &= as_in_file and finite and not r['without_gradient'] and r['steps'] == args.steps
            print({k: v for k, v in r.items() if k != 'losses'}, [round(x, 3) for x in r['losses'][::5]])
    args.out.write_text(json.dumps(rows, indent=1))
    sys.exit(not ok)

if __name__ == '__main__': main()
