"""What saving costs a run, and how long one takes to go on: `python nbs/tests/save_costs.py [--steps 5] [--blocks 8] [--out FILE]`.

Blocks of steps with one checkpoint, written behind the loop, take turns with blocks without one, so that a machine that becomes slower
slows down both. What a checkpoint costs is the difference of the medians; its share is of the steps between two checkpoints of the recipe.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'

import torch  # noqa: E402

from bitgen.loader import load_pairs  # noqa: E402
from bitgen.recipe import load_recipe, update  # noqa: E402
from bitgen.train import _captions, build_model, make_loader  # noqa: E402
from bitgen.trainer import Callback, Trainer  # noqa: E402

sizes = {'scenes': {}, 'embervlm': dict(data=['scenes:300'], batch_size=4, freeze_vision=True)}

class Blocks(Callback):
    "Seconds of each block of steps; every other block begins with a checkpoint"
    def __init__(self, steps): self.steps, self.seconds = steps, {True: [], False: []}

    def on_begin(self, trainer): self.start = time.perf_counter()

    def after_step(self, trainer, out):
        if trainer.step % self.steps: return
        trainer.finish_save()              # its last part belongs to the block that began it
        block, now = trainer.step//self.steps, time.perf_counter()
        self.seconds[block % 2 == 0].append(now-self.start)
        self.start = now
        if block % 2 == 1: trainer.save_behind()

def saving(name, folder, steps, blocks):
    "Milliseconds of a step and of a checkpoint, bytes of a checkpoint, and the share of saving at the recipe's pace"
    r = update(load_recipe(name), sizes[name] | dict(max_steps=2*steps*blocks+steps, output_dir=str(folder/name), precision='fp32'))
    every = load_recipe(name).train.save_steps
    r.train.save_steps = 10**9
    pairs = load_pairs(r.data.data, seed=r.train.seed)
    model = build_model(r, _captions(pairs['train']))
    timer = Blocks(steps)
    trainer = Trainer(model, make_loader(model, pairs['train'], r), r.train, callbacks=[timer])
    trainer.fit()
    without, with_one = (statistics.median(timer.seconds[k][1:]) for k in (False, True))
    cost = with_one-without
    return dict(recipe=name, step_ms=1000*without/steps, checkpoint_ms=1000*cost, megabytes=sum(trainer.checkpoint_bytes())/1e6,
                save_steps=every, share_percent=100*cost/(every*without/steps), share_every_50_percent=100*cost/(50*without/steps))

def going_on(name, folder):
    "Seconds from the start of the process to the first new step, for a run that is resumed and for one that begins"
    flags = ['--recipe', name, '--output_dir', str(folder/f'{name}-again'), '--save_steps', '2', '--log_steps', '1', '--eval_steps', '100000',
             '--cache_dir', str(folder/'cache'), '--precision', 'fp32', '--max_steps', '1000']
    for k, v in sizes[name].items():
        if isinstance(v, bool): flags += [f'--{k}'] if v else []
        else: flags += [f'--{k}', *map(str, v if isinstance(v, list) else [v])]
    log, out = folder/f'{name}-again'/'metrics.jsonl', []
    for more, first in (([], 3), (['--resume'], None)):
        have = len(log.read_bytes().splitlines()) if log.exists() else 0
        start = time.perf_counter()
        p = subprocess.Popen([sys.executable, '-m', 'bitgen.cli', 'train', *flags, *more], stdout=subprocess.DEVNULL)
        def rows(): return len(log.read_bytes().splitlines()) if log.exists() else 0
        want = 2 if not more else have+1
        while rows() < want and p.poll() is None: time.sleep(.02)
        out.append(time.perf_counter()-start)
        while first and rows() < 6 and p.poll() is None: time.sleep(.02)
        p.terminate()
        p.wait()
    return dict(recipe=name, begins_s=out[0], resumed_s=out[1])

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--blocks', type=int, default=8)
    parser.add_argument('--out', default='')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        found = {'saving': [], 'going_on': []}
        for name in sizes:
            found['saving'].append(saving(name, folder, args.steps, args.blocks))
            found['going_on'].append(going_on(name, folder))
            print(found['saving'][-1], found['going_on'][-1], sep='\n', flush=True)
    found['machine'] = f'{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}'
    print(found['machine'])
    if args.out: Path(args.out).write_text(json.dumps(found, indent=1)+'\n', encoding='utf-8')

if __name__ == '__main__': main()
