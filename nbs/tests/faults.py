"""Faults injected into tiny runs, and what becomes of the runs: for injected_faults.ipynb

`python faults.py --out faults.jsonl [--jobs 2] [--only NAME … | --quick]` prints a line for each.
Each fault is a function that runs in a forked process of its own, starts the runs it needs as forks,
and returns what it saw (`Seen`); its decorator says what is to be seen. A few are tried in a library with
a planted defect, too, which has to be found. Exit status 1 when something is not as expected.
"""
import argparse
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import forked_runs as forked

@dataclass
class Seen:
    "What became of a run"
    outcome: str           # 'goes on', 'stops', 'refused', 'starts anew (0)', 'resumes'; with the exit status
    lost: int = 0          # Steps that had to be computed again; None: there was no step yet
    differs: tuple = ()    # What differs from the run that was left alone, in the end
    said: str = ''         # For the user: the line of an error, or all that was printed
    traceback: bool = False

@dataclass
class Fault:
    "A fault, what is to be seen of it, and the function that injects it"
    what: str
    outcome: str
    lost: int
    act: object
    why: str = ''          # Why something is lost
    said: str = ''         # Words that the user must get
    equal: str = 'yes'     # What is equal in the end, in words
    quick: bool = False    # Whether it is among those that the notebook tries

faults = {}

def fault(what, outcome, lost=0, why='', said='', equal='yes', quick=False):
    "Add a function to the table"
    def add(act):
        faults[act.__name__] = Fault(what, outcome, lost, act, why, said, equal, quick)
        return act
    return add

# ---- runs ----

_short = ('--max_steps 6 --save_steps 2 --eval_steps 3')
base = f'{forked.embervlm} {forked.common} {forked.files} {_short} --cache_dir {{data}}/cache'
forked.setups |= {
    'plain': forked.Setup(base),
    'workers': forked.Setup(f'{base} --no_cache_features --dataloader_num_workers 2'),
    'images': forked.Setup(f'{base} --no_cache_features'),
    'hub': forked.Setup(f'{base} --push_to_hub --hub_model_id me/run', hub=True),
    'wandb': forked.Setup(f'{base} --wandb_project p')}

killed_at = 5      # one step after its last checkpoint

class Bench:
    "Where faults are tried: the data, runs that were left alone, and one that was killed"
    def __init__(self, work):
        self.work, self.data, self.left = Path(work), forked.make_data(Path(work)/'data'), {}

    def prepare(self, jobs):
        "What the faults are compared with"
        import bitgen.train
        bitgen.train.evaluate = partial(bitgen.train.evaluate, metrics=('retrieval',))  # the rest takes long
        names = ['plain', 'images', 'killed']
        self._alone('plain')                       # fills the cache of features
        for name, (left, broken) in forked.in_turn(names, self._make, jobs):
            if broken: sys.exit(broken)
            self.left[name] = left
        assert self.left.pop('killed')['rows'][-1]['step'] == killed_at

    def _make(self, name):
        if name == 'killed':
            place = forked.Place(forked.setups['plain'], self.data, self.work/'killed')
            place.run(before=in_step(killed_at, lambda trainer: (trainer.finish_save(), os._exit(9))))
            return place.left(), ''
        return self._alone(name)

    def _alone(self, name):
        place = forked.Place(forked.setups[name], self.data, self.work/'alone'/name)
        statuses = place.run()
        return place.left(), '' if statuses == [0] else f'{name}: {statuses} {place.said()[-1500:]}'

    def place(self, name='plain', like=None):
        "A new place for runs; with what the run `like` left"
        k = hashlib.sha256(f'{os.getpid()} {time.monotonic()}'.encode()).hexdigest()[:12]
        place = forked.Place(forked.setups[name], self.data, self.work/'tried'/k)
        if like: shutil.copytree(self.work/like/'run', place.folder/'run', symlinks=True)
        alone = name if name in self.left else 'images' if name == 'workers' else 'plain'
        place.alone, place.alone_in = self.left[alone], self.work/'alone'/alone
        return place

def in_step(n, act, rank=None):
    "What a run calls first so that `act(trainer)` is called before its step after the `n`-th"
    def before():
        from bitgen.trainer import Trainer
        one = Trainer._one_step
        def step(self, *args):
            if self.step == n: act(self)
            return one(self, *args)
        Trainer._one_step = step
    return before

def failing(owner, name, error, when=lambda *args, **kwargs: True, times=10**9):
    "What a run calls first so that a function fails; `owner` is a name such as 'bitgen.train:Trainer'"
    def before():
        at, count = _owner(owner), [0]
        act = getattr(at, name)
        def fail(*args, **kwargs):
            if when(*args, **kwargs) and count[0] < times:
                count[0] += 1
                raise error
            return act(*args, **kwargs)
        setattr(at, name, fail)
    return before

def _owner(name):
    import importlib
    module, _, attributes = name.partition(':')
    at = importlib.import_module(module)
    for part in filter(None, attributes.split('.')): at = getattr(at, part)
    return at

def last_said(text):
    "The last line that bitgen wrote for its user"
    lines = [line for line in text.splitlines() if line.startswith('bitgen: ')]
    return lines[-1] if lines else ''

def newest_step(run):
    "The step that a run can go on from"
    import warnings
    from bitgen.checkpoint import newest
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = newest(run)
    return json.loads((found/'trainer_state.json').read_text())['step'] if found else 0

def tree(folder):
    "Names and hashes of all files, but for locks"
    files = [f for f in Path(folder).rglob('*') if f.is_file() and not f.name.startswith('.lock')]
    return {str(f.relative_to(folder)): forked.digest(f) for f in sorted(files)}

def apart(place):
    "What differs from the run that was left alone"
    return tuple(forked.differences(place.alone, place.left()))

def counting(file, before):
    "What a run calls first so that the number of its whole steps is in `file`"
    def begin():
        from bitgen.trainer import Trainer
        one = Trainer._one_step
        def step(self, *args):
            try: return one(self, *args)
            finally: file.write_text(str(self.step))
        Trainer._one_step = step
        before()
    return begin

def run_broken(place, before, mend=lambda: None, after=None):
    "A run with a fault, and what comes of it, resumed if it stopped"
    count = place.folder/'steps'
    status, = place.run(before=counting(count, before))
    said, loud = place.said(), 'Traceback' in place.said()
    if status == 0: return Seen('goes on (0)', 0, apart(place), said, loud)
    lost = int(count.read_text()) - newest_step(place.folder/'run') if count.exists() else None
    mend()
    again, = place.run('--resume', before=after)
    differs = apart(place) if again == 0 else (f'status {again}: {last_said(place.said())}',)
    return Seen(f'stops ({status})', lost, differs, said if loud else last_said(said), loud)

def run_resumed(place, *flags, before=None):
    "The run that was killed goes on, or is refused and left as it was"
    came, at = tree(place.folder/'run'), place.folder/'from'
    def watch():
        from bitgen.trainer import Trainer
        restore = Trainer.restore
        def noted(self, folder, *args, **kwargs):
            at.write_text(Path(folder).name)
            return restore(self, folder, *args, **kwargs)
        Trainer.restore = noted
        if before: before()
    status, = place.run('--resume', *flags, before=watch)
    said, loud = place.said(), 'Traceback' in place.said()
    if status:
        changed = () if tree(place.folder/'run') == came else ('the run was changed',)
        return Seen(f'refused ({status})', 0, changed, said if loud else last_said(said), loud)
    name = at.read_text() if at.exists() else ''
    lost = killed_at - int(name.rpartition('-')[2] or 0)
    return Seen(f'resumes from {name or "the start"} (0)', lost, apart(place), said, loud)

def without_figures(place, seen):
    "Drop the one difference that is due: the state of a run without figures names none"
    def state(folder):
        whole = json.loads((forked.last_checkpoint(folder/'run')/'trainer_state.json').read_text())
        return {k: v for k, v in whole.items() if k != 'figures'}
    if seen.differs != ('trainer_state.json',): return seen
    if state(place.folder) == state(place.alone_in): seen.differs = ()
    return seen

def written_at_once():
    "What a run calls first so that a checkpoint is written before the next step, and faults hit in one order"
    import bitgen.trainer
    class Write(bitgen.trainer._Write):
        def __init__(self, *args):
            super().__init__(*args)
            self.join()
    bitgen.trainer._Write = Write

def both(*acts):
    "What a run calls first: all of these"
    def before():
        for act in acts: act()
    return before

# ---- while it trains: data and memory ----

enospc = OSError(errno.ENOSPC, 'No space left on device')
planted = 'a bug, planted'
bug = ZeroDivisionError(planted)

@fault('decoding process killed', 'stops (1)', said='process that decodes images', quick=True)
def worker_killed(bench):
    def kill(trainer):
        task = Path('/proc/self/task')/str(os.getpid())
        children = [int(p) for p in (task/'children').read_text().split()]
        names = {p: Path(f'/proc/{p}/cmdline').read_bytes() for p in children}
        mine = Path('/proc/self/cmdline').read_bytes()
        os.kill(next(p for p in children if names[p] == mine), signal.SIGKILL)
        time.sleep(.2)
    return run_broken(bench.place('workers'), in_step(3, kill))

@fault('image cut off in the middle of the run', 'stops (1)', said='.png', quick=True)
def image_cut(bench):
    place = bench.place('images')
    copy = place.folder/'data'
    shutil.copytree(bench.data, copy)
    place.argv = [a.replace(str(bench.data), str(copy)) for a in place.argv]
    images = sorted((copy/'images').iterdir())
    whole = {f: f.read_bytes() for f in images}
    def cut(trainer):
        for f in images: os.truncate(f, 40)
    def mend():
        for f, data in whole.items(): f.write_bytes(data)
    return run_broken(place, in_step(3, cut), mend)

def in_training(n):
    "Whether a module is called for the n-th micro-batch, counted from 0, in training"
    count = [-1]
    def when(self, *args, **kwargs):
        count[0] += self.training
        return self.training and count[0] == n
    return when

@fault('no memory in forward', 'stops (1)', said='no room', quick=True)
def memory_forward(bench):
    before = failing('bitgen.embervlm:EmberVLM', 'forward', MemoryError(), in_training(3))
    return run_broken(bench.place(), before)

@fault('no memory in backward (torch.OutOfMemoryError)', 'stops (1)', said='no room')
def memory_backward(bench):
    import torch
    error = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
    before = failing('accelerate:Accelerator', 'backward', error, nth(3))
    return run_broken(bench.place(), before)

half_done = 'the step was half done'

@fault('no memory in the optimizer', 'stops (1)', lost=1, why=half_done, said='half done', quick=True)
def memory_optimizer(bench):
    before = failing('torch.optim:AdamW', 'step', MemoryError(), nth(5))
    return run_broken(bench.place(), before)

@fault('no memory in the optimizer while a checkpoint is written', 'stops (1)', lost=1, why=half_done,
       said='half done', quick=True)
def memory_optimizer_writing(bench):
    def slow():
        import bitgen.trainer
        write = bitgen.trainer.write_folder
        def late(path, *args):
            time.sleep(1)
            write(path, *args)
        bitgen.trainer.write_folder = late
    before = failing('torch.optim:AdamW', 'step', MemoryError(), nth(5))
    return run_broken(bench.place(), both(slow, before))

@fault('no memory for the copy of a checkpoint', 'stops (1)', said='no room')
def memory_copy(bench):
    before = failing('bitgen.trainer', 'pack_optimizer', MemoryError(), nth(2))
    return run_broken(bench.place(), before)

def nth(n, of=lambda *args, **kwargs: True):
    "Whether it is the n-th call, counted from 0"
    count = [-1]
    def when(*args, **kwargs):
        count[0] += of(*args, **kwargs)
        return of(*args, **kwargs) and count[0] == n
    return when

def _kill(trainer):
    trainer.finish_save()
    os._exit(9)

@fault('gradients are NaN once', 'goes on (0)', said='1 of skipped_steps', quick=True,
       equal='yes, to that run when killed and resumed')
def nan_once(bench):
    place, other = bench.place(), bench.place()
    nan = nan_gradients(lambda k: k == 3)
    status, = place.run(before=nan)
    other.run(before=both(nan, in_step(killed_at, _kill)))
    other.run('--resume')
    skipped = max(row.get('stage1/skipped_steps', 0) for row in place.left()['rows'])
    return Seen(f'goes on ({status})', 0, tuple(forked.differences(place.left(), other.left())),
                f'{skipped} of skipped_steps in metrics.jsonl')

@fault('gradients are NaN from a step on', 'stops (1)', said='replay', quick=True,
       equal='yes, to a run with nine such steps')
def nan_always(bench):
    place, other = bench.place(), bench.place()
    for p in (place, other): p.argv += ['--max_steps', '12', '--eval_steps', '20', '--save_total_limit', '1']
    other.run(before=nan_gradients(lambda k: 1 <= k <= 9))
    place.alone = other.left()
    seen = run_broken(place, nan_gradients(lambda k: k >= 1))
    seen.differs = tuple(d for d in seen.differs if d != 'checkpoints')  # it was saved when it stopped
    return seen

def nan_gradients(when):
    "What a run calls first so that gradients of some steps, counted from 0, are NaN"
    def before():
        from bitgen.trainer import Trainer
        gradients, count = Trainer._gradients, [-1]
        def changed(self, batches):
            count[0] += 1
            out = gradients(self, batches)
            if when(count[0]):
                for p in self.model.parameters():
                    if p.grad is not None: p.grad.fill_(float('nan'))
            return out
        Trainer._gradients = changed
    return before

# ---- while it trains: the disk ----

@fault('disk full at a checkpoint', 'stops (1)', said='checkpoint-4 was not saved', quick=True)
def full_once(bench):
    before = failing('bitgen.files', '_fsync', enospc, of_path('checkpoint-4'), 1)
    return run_broken(bench.place(), both(written_at_once, before))

@fault('disk full from a checkpoint on', 'stops (1)', lost=1, why='nothing could be written',
       said='could not be saved', quick=True)
def full_checkpoint(bench):
    before = failing('bitgen.files', '_fsync', enospc, of_path('checkpoint-4'))
    return run_broken(bench.place(), both(written_at_once, before))

@fault('no file may be larger than 100 kB from a step on (RLIMIT_FSIZE)', 'stops (1)', lost=1,
       why='nothing could be written', said='could not be saved', quick=True)
def full_limit(bench):
    def limit(trainer): resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    def slowly(trainer):
        trainer.finish_save()
        limit(trainer)
    return run_broken(bench.place(), both(written_at_once, in_step(3, slowly)))

def of_path(part):
    "Whether a path holds `part`"
    def of(path, *args, **kwargs): return part in str(path)
    return of

@fault('disk full at a row of metrics.jsonl', 'goes on (0)', said='No space left on device; make room', quick=True)
def full_log(bench):
    class Full:
        "A file that has no room for one row"
        def __init__(self, file): self.file, self.times = file, 1
        def __getattr__(self, name): return getattr(self.file, name)
        def write(self, line):
            self.times -= 1
            if self.times == 0: raise enospc
            return self.file.write(line)
    def fill(trainer):
        tracker = trainer.callbacks[0].tracker
        tracker.file = Full(tracker.file)
    return run_broken(bench.place(), in_step(3, fill))

@fault('disk full at each figure', 'goes on (0)', said='no figures, OSError',
       equal='yes, without figures', quick=True)
def full_figure(bench):
    place = bench.place()
    return without_figures(place, run_broken(place, failing('bitgen.plots:RunFigure', 'save', enospc)))

@fault('disk full at a model card', 'stops (1)', said='README.md was not saved', quick=True)
def full_card(bench):
    return run_broken(bench.place(), failing('bitgen.files', '_fsync', enospc, of_path('README.md'), 1))

@fault('disk full at recipe.yaml', 'stops (1)', lost=None, said='recipe.yaml was not saved', quick=True)
def full_recipe(bench):
    return run_broken(bench.place(), failing('bitgen.files', '_fsync', enospc, of_path('recipe.yaml'), 1))

def without_best(place, seen):
    "Drop the differences that are due when the best checkpoint is gone: the final model is the last one"
    run = place.folder/'run'
    final, last = (forked.digest(folder/'model.safetensors')
                   for folder in (run/'checkpoint-final', forked.last_checkpoint(run)))
    rows, alone = (forked.rows_of(folder/'run'/'metrics.jsonl')[:-1] for folder in (place.folder, place.alone_in))
    if final != last or rows != alone: return seen
    due = 'checkpoints', 'scores', 'checkpoint-final/model.safetensors'
    seen.differs = tuple(d for d in seen.differs if d not in due and not d.startswith(f'row {len(rows)} of'))
    return seen

@fault('output folder deleted under the run', 'goes on (0)', said='is gone',
       equal='yes, but the best one is gone', quick=True)
def folder_deleted(bench):
    place = bench.place()
    return without_best(place, run_broken(place, in_step(
        3, lambda trainer: (trainer.finish_save(), shutil.rmtree(trainer.run)))))

@fault('figures folder deleted under the run', 'goes on (0)', quick=True)
def figures_deleted(bench):
    return run_broken(bench.place(), in_step(4, lambda trainer: shutil.rmtree(trainer.run/'figures')))

def log_changed(change):
    def act(trainer): change(trainer.run/'metrics.jsonl')
    return in_step(3, act)

@fault('metrics.jsonl deleted under the run', 'goes on (0)', said='written again')
def log_deleted(bench): return run_broken(bench.place(), log_changed(Path.unlink))

@fault('metrics.jsonl emptied under the run', 'goes on (0)', said='written again')
def log_emptied(bench): return run_broken(bench.place(), log_changed(lambda f: os.truncate(f, 0)))

@fault('metrics.jsonl cut under the run', 'goes on (0)', said='written again', quick=True)
def log_cut(bench): return run_broken(bench.place(), log_changed(lambda f: os.truncate(f, 700)))

# ---- while it trains: bugs ----

def bug_in(moment, owner='Diagnosis'):
    "What a run calls first so that a callback fails"
    def before():
        import bitgen.callbacks
        def fail(self, *args): raise bug
        setattr(getattr(bitgen.callbacks, owner), moment, fail)
    return before

saved_in = 'is saved in'

@fault('bug in a figure', 'goes on (0)', said='no figures', equal='yes, without figures', quick=True)
def bug_figure(bench):
    place = bench.place()
    return without_figures(place, run_broken(place, failing('bitgen.train', 'run_figures', bug)))

def _add_moments():
    "A bug in each moment of a callback"
    for moment in ('after_step', 'on_log', 'after_eval', 'on_save', 'after_save', 'on_end'):
        def act(bench, moment=moment): return run_broken(bench.place(), bug_in(moment))
        act.__name__ = f'bug_{moment}'
        fault(f'bug in a callback: {moment}', 'goes on (0)', said=f'{planted}; training goes on',
              quick=moment in ('after_step', 'on_end'))(act)
    for moment in ('on_init', 'on_begin'):
        def act(bench, moment=moment): return run_broken(bench.place(), bug_in(moment))
        act.__name__ = f'bug_{moment}'
        fault(f'bug in a callback: {moment}', 'stops (1)', lost=None, said=planted,
              quick=moment == 'on_begin')(act)
_add_moments()

@fault('bug in a callback: on_restore', 'refused (1)', said=planted)
def bug_on_restore(bench): return run_resumed(bench.place(like='killed'), before=bug_in('on_restore'))

@fault('bug in the evaluation', 'stops (1)', said=saved_in, quick=True)
def bug_evaluate(bench):
    return run_broken(bench.place(), failing('bitgen.train', 'evaluate', bug, nth(0)))

@fault('bug in the model', 'stops (1)', said=saved_in, quick=True)
def bug_model(bench):
    return run_broken(bench.place(), failing('bitgen.embervlm:EmberVLM', 'forward', bug, in_training(3)))

@fault('bug in the final evaluation', 'stops (1)', said='go on with', quick=True)
def bug_final(bench):
    return run_broken(bench.place(), failing('bitgen.train', '_finish', bug, nth(0)))

def close_output(trainer):
    get, put = os.pipe()
    os.close(get)
    os.dup2(put, 1)

@fault('nobody reads the output any more (`| head`)', 'stops (1)', said='Broken pipe', quick=True)
def output_closed(bench): return run_broken(bench.place(), in_step(3, close_output))

@fault('nobody reads the output any more, and there is something to say', 'stops (1)', said=saved_in)
def output_closed_early(bench):
    return run_broken(bench.place(), both(in_step(2, close_output), bug_in('after_eval')))

# ---- services ----

def fake_wandb(fails):
    "What a run calls first so that W&B is a stand-in that fails at some moment"
    def before():
        import bitgen.tracker
        class Tracker:
            name, tracker = 'wandb', property(lambda self: self)
            def log(self, *args, **kwargs): fail('log')
            def log_images(self, *args, **kwargs): fail('log')
            def log_table(self, *args, **kwargs): fail('log')
            def finish(self, exit_code=0): fail('finish')
        def fail(at):
            if fails == at: raise ConnectionError(f'W&B does not answer ({at})')
        def start(*args):
            fail('start')
            return Tracker()
        bitgen.tracker._start_wandb = start
    return before

def no_wandb(): sys.modules['wandb'] = None

def with_wandb(bench, fails):
    "A run with W&B, whose client fails at some moment"
    place = bench.place()
    place.argv += ['--wandb_project', 'p']
    return without_figures(place, run_broken(place, fake_wandb(fails), after=fake_wandb('never')))

@fault('W&B is not installed', 'stops (1)', lost=None, said='pip install', quick=True)
def wandb_missing(bench):
    place = bench.place()
    place.argv += ['--wandb_project', 'p']
    return run_broken(place, no_wandb, after=fake_wandb('never'))

@fault('W&B fails at the start', 'stops (1)', lost=None, said='W&B')
def wandb_start(bench): return with_wandb(bench, 'start')

@fault('W&B fails from the first row on', 'goes on (0)', said='W&B', equal='yes, without figures', quick=True)
def wandb_middle(bench): return with_wandb(bench, 'log')

@fault('W&B fails at the end', 'goes on (0)', said='W&B', quick=True)
def wandb_end(bench): return with_wandb(bench, 'finish')

def with_hub(bench, name, error, when):
    "A run that pushes, and a Hub whose client fails"
    place = bench.place('hub')
    before = failing('huggingface_hub:HfApi', name, error, when)
    seen = run_broken(place, before)
    place.clear()
    return seen

def http_error(status):
    import httpx
    from huggingface_hub.errors import HfHubHTTPError
    asked = httpx.Request('POST', 'https://hub')
    return HfHubHTTPError(f'{status} planted', response=httpx.Response(status, request=asked))

@fault('the Hub refuses the token', 'goes on (0)', said='hub: not sent')
def hub_refuses(bench): return with_hub(bench, 'create_repo', http_error(401), lambda *a, **k: True)

@fault('the Hub fails in the middle', 'goes on (0)', said='hub: ', quick=True)
def hub_middle(bench): return with_hub(bench, 'create_commit', http_error(500), nth(0))

@fault('the Hub refuses the final model', 'goes on (0)', said='hub: not sent')
def hub_end(bench):
    def final(self, *args, **kwargs): return 'Final' in str(kwargs.get('commit_message'))
    return with_hub(bench, 'create_commit', http_error(400), final)

# ---- a stopped run whose files are damaged ----

def flip(f):
    data = bytearray(f.read_bytes())
    data[-2] ^= 1
    f.write_bytes(bytes(data))

damages = {'one bit changed': flip, 'cut': lambda f: os.truncate(f, f.stat().st_size//2),
           'emptied': lambda f: os.truncate(f, 0), '[]': lambda f: f.write_text('[]'),
           'null': lambda f: f.write_text('null'), '{}': lambda f: f.write_text('{}')}

def damaged_file(bench, name):
    "Each damage to a file of the newest checkpoint is found; after the first the run is resumed"
    import warnings
    from bitgen.checkpoint import newest
    place = bench.place(like='killed')
    run = place.folder/'run'
    file, missed = run/'checkpoint-4'/name, []
    whole = file.read_bytes()
    for what, damage in damages.items():
        file.write_bytes(whole)
        damage(file)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if newest(run).name != 'checkpoint-3': missed.append(what)
    file.write_bytes(whole)
    flip(file)
    seen = run_resumed(place)
    seen.differs += tuple(f'not found: {what}' for what in missed)
    return seen

killed_after = 'it was killed a step after its last save'
before_that = f'{killed_after}, and the save before is taken'

def _add_damages():
    from_files = ('model.safetensors', 'optimizer.safetensors', 'optimizer.json', 'scheduler.json',
                  'trainer_state.json', 'training_args.json', 'config.json', 'tokenizer.json',
                  'metrics.jsonl', 'metrics.json', 'fingerprint.json', 'manifest.json')
    for name in from_files:
        def act(bench, name=name): return damaged_file(bench, name)
        act.__name__ = f'damaged_{name.replace(".", "_")}'
        what = f'{name} of the newest checkpoint: {", ".join(damages)}'
        fault(what, 'resumes from checkpoint-3 (0)', 2, before_that, said='passed over',
              quick=name in ('model.safetensors', 'trainer_state.json', 'metrics.jsonl'))(act)
_add_damages()

@fault('manifest.json of the newest checkpoint is missing', 'resumes from checkpoint-3 (0)', 2,
       before_that, said='passed over', quick=True)
def manifest_missing(bench):
    place = bench.place(like='killed')
    (place.folder/'run'/'checkpoint-4'/'manifest.json').unlink()
    return run_resumed(place)

@fault('newest checkpoint deleted', 'resumes from checkpoint-3 (0)', 2, before_that, quick=True)
def newest_deleted(bench):
    place = bench.place(like='killed')
    shutil.rmtree(place.folder/'run'/'checkpoint-4')
    return run_resumed(place)

@fault('all checkpoints damaged', 'refused (1)', lost=5, why='no save is whole', said='--overwrite',
       equal='yes, with --overwrite', quick=True)
def all_damaged(bench):
    place = bench.place(like='killed')
    for f in (place.folder/'run').glob('checkpoint-*/model.safetensors'): flip(f)
    seen = run_resumed(place)
    place.run('--overwrite')
    seen.differs += apart(place)
    seen.lost = killed_at - newest_step(place.folder/'run.old-1')
    return seen

@fault('hidden folders of a killed save', 'resumes from checkpoint-4 (0)', 1, killed_after, quick=True)
def half_written(bench):
    place = bench.place(like='killed')
    run = place.folder/'run'
    for name in ('.tmp-checkpoint-6', '.staging', '.tmp-checkpoint-4'):
        (run/name).mkdir(exist_ok=True)
        (run/name/'model.safetensors').write_bytes(b'half')
    return run_resumed(place)

def log_damaged(bench, damage, before=None):
    place = bench.place(like='killed')
    damage(place.folder/'run'/'metrics.jsonl')
    return run_resumed(place, before=before)

def _reverse(file): file.write_bytes(b''.join(reversed(file.read_bytes().splitlines(True))))

@fault('metrics.jsonl of a stopped run deleted', 'resumes from checkpoint-4 (0)', 1, killed_after,
       said='written again')
def stopped_log_deleted(bench): return log_damaged(bench, Path.unlink)

@fault('metrics.jsonl of a stopped run emptied', 'resumes from checkpoint-4 (0)', 1, killed_after,
       said='written again')
def stopped_log_emptied(bench): return log_damaged(bench, lambda f: os.truncate(f, 0))

@fault('metrics.jsonl of a stopped run cut in a line', 'resumes from checkpoint-4 (0)', 1, killed_after,
       said='written again', quick=True)
def stopped_log_cut(bench): return log_damaged(bench, lambda f: os.truncate(f, 900))

@fault('metrics.jsonl of a stopped run: steps going back', 'resumes from checkpoint-4 (0)', 1, killed_after,
       said='written again')
def stopped_log_back(bench): return log_damaged(bench, _reverse)

@fault('metrics.jsonl of a stopped run read-only', 'resumes from checkpoint-4 (0)', 1, killed_after)
def stopped_log_readonly(bench): return log_damaged(bench, lambda f: f.chmod(0o444))

@fault('kept features damaged', 'refused (1)', said='cache prune --verify', quick=True,
       equal='yes, when they are removed')
def features_damaged(bench):
    place = bench.place(like='killed')
    cache = place.folder/'cache'
    shutil.copytree(bench.data/'cache', cache)
    for f in cache.rglob('features.safetensors'): flip(f)
    place.argv += ['--cache_dir', str(cache)]
    seen = run_resumed(place)
    shutil.rmtree(cache)
    again, = place.run('--resume')
    seen.differs += apart(place) if again == 0 else (f'status {again}',)
    return seen

# ---- who is in the folder ----

def write_lock(run, pid, **changed):
    "A lock as `lock_run` writes it"
    from bitgen.checkpoint import _birth, _new_lock
    (run/'.lock').write_text(json.dumps(_new_lock() | {'pid': pid, 'birth': _birth(pid) or '1'} | changed))

@fault('lock of a process that lives', 'refused (1)', said='in use', quick=True)
def lock_living(bench):
    place = bench.place(like='killed')
    write_lock(place.folder/'run', os.getpid())
    return run_resumed(place)

@fault('lock of a process that is gone', 'resumes from checkpoint-4 (0)', 1, killed_after, quick=True)
def lock_stale(bench):
    place, gone = bench.place(like='killed'), forked.fork(lambda: 0, os.devnull)
    gone.wait()
    write_lock(place.folder/'run', gone.pid)
    return run_resumed(place)

@fault('damaged lock', 'resumes from checkpoint-4 (0)', 1, killed_after)
def lock_damaged(bench):
    place = bench.place(like='killed')
    (place.folder/'run'/'.lock').write_text('{"pid": ')
    return run_resumed(place)

@fault('fresh lock of another machine', 'refused (1)', said='in use', quick=True)
def lock_elsewhere(bench):
    place = bench.place(like='killed')
    write_lock(place.folder/'run', os.getpid(), place=['another', 'boot', 'space'])
    return run_resumed(place)

@fault('old lock of another machine', 'resumes from checkpoint-4 (0)', 1, killed_after)
def lock_elsewhere_old(bench):
    place = bench.place(like='killed')
    write_lock(place.folder/'run', os.getpid(), place=['another', 'boot', 'space'])
    long_ago = time.time()-3600
    os.utime(place.folder/'run'/'.lock', (long_ago, long_ago))
    return run_resumed(place)

@fault('second run in the folder at the same time', 'refused (1)', said='in use',
       equal='yes, the first run', quick=True)
def second_run(bench):
    place, gate = bench.place(), Path(tempfile.mkdtemp())/'open'
    def hold(trainer):
        if trainer.saving: trainer.saving.join()
        gate.with_name('held').touch()
        while not gate.exists(): time.sleep(.01)
    first, = place.start(before=in_step(3, hold))
    while not gate.with_name('held').exists(): time.sleep(.01)
    outcomes = []
    for more in ('--resume', '--overwrite'):
        came = tree(place.folder/'run')
        status, = place.run(more)
        outcomes.append((status, tree(place.folder/'run') == came))
    said = last_said(place.said())
    gate.touch()
    differs = apart(place) if first.wait() == 0 else (f'the first ended with {first.status}',)
    odd = tuple(f'the second: {o}' for o in outcomes if o != (1, True))
    return Seen(f'refused ({outcomes[0][0]})', 0, differs+odd, said)

# ---- another run than it was ----

def other_data(bench, change, before=None):
    "A stopped run whose data are changed"
    place = bench.place(like='killed')
    copy = place.folder/'data'
    shutil.copytree(bench.data, copy)
    change(copy)
    table = f'{bench.data}/pairs'
    place.argv = [str(copy)+a[len(str(bench.data)):] if a.startswith(table) else a for a in place.argv]
    return run_resumed(place, before=before)

def table_changed(change):
    def act(data):
        file = data/'pairs.jsonl'
        rows = change([json.loads(line) for line in file.read_text().splitlines()])
        file.write_text(''.join(json.dumps(r)+'\n' for r in rows))
    return act

def _exchanged(rows):
    rows[0]['captions'], rows[1]['captions'] = rows[1]['captions'], rows[0]['captions']
    return rows

@fault('data: two captions exchanged', 'refused (1)', said='captions', quick=True)
def data_captions(bench): return other_data(bench, table_changed(_exchanged))

@fault('data: rows in another order', 'refused (1)', said='differ')
def data_reversed(bench): return other_data(bench, table_changed(lambda rows: rows[::-1]))

@fault('data: an image replaced by another', 'refused (1)', said='differ', quick=True)
def data_replaced(bench):
    def swap(data): shutil.copyfile(data/'images'/'001.png', data/'images'/'002.png')
    return other_data(bench, swap)

@fault('data: an image left out', 'refused (1)', said='rows')
def data_left_out(bench): return other_data(bench, table_changed(lambda rows: rows[1:]))

def _add_flags():
    for flag, value, word in (('captions_per_image', '2', 'captions_per_image'),
                              ('image_size', '64', 'image_size'),
                              ('learning_rate', '1e-4', 'learning_rate'), ('seed', '7', 'seed'),
                              ('batch_size', '4', 'batch'), ('lm_width', '64', 'lm_width'),
                              ('gradient_accumulation_steps', '2', 'gradient_accumulation_steps'),
                              ('max_steps', '9', 'steps')):
        def act(bench, flag=flag, value=value):
            return run_resumed(bench.place(like='killed'), f'--{flag}', value)
        act.__name__ = f'flag_{flag}'
        fault(f'--resume with another --{flag}', 'refused (1)', said=word)(act)
_add_flags()

@fault('--resume and --overwrite together', 'refused (1)', said='contradict')
def resume_overwrite(bench): return run_resumed(bench.place(like='killed'), '--overwrite')

@fault('--overwrite by a run whose checks fail', 'refused (1)', said='no such file or folder', quick=True)
def overwrite_fails(bench):
    place = bench.place(like='killed')
    came = tree(place.folder/'run')
    status, = place.run('--overwrite', '--data', str(place.folder/'nothing.jsonl'))
    kept = tree(place.folder/'run') == came and not list(place.folder.glob('run.old*'))
    differs = () if kept else ('the old run was changed',)
    return Seen(f'refused ({status})', 0, differs, last_said(place.said()))

@fault('--overwrite of a run by mistake', 'starts anew (0)', said='is now in', quick=True)
def overwrite_keeps(bench):
    place = bench.place(like='killed')
    came = tree(place.folder/'run')
    status, = place.run('--overwrite')
    old = tree(place.folder/'run.old-1') == came
    differs = apart(place)+(() if old else ('the old run is not whole in run.old-1',))
    return Seen('starts anew (0)' if status == 0 else f'stops ({status})', 0, differs, place.said())

@fault('a new run into the folder of another', 'refused (1)', said='already holds a run', quick=True)
def held_folder(bench):
    place = bench.place(like='killed')
    came = tree(place.folder/'run')
    status, = place.run()
    return Seen(f'refused ({status})', 0, () if tree(place.folder/'run') == came else ('changed',),
                last_said(place.said()))

@fault("a run's own recipe.yaml with other flags", 'starts anew (0)', said='stays as it is')
def own_recipe(bench):
    place = bench.place(like='killed')
    came = tree(place.folder/'run')
    recipe = place.folder/'run'/'recipe.yaml'
    place.argv = ['--recipe', str(recipe), '--learning_rate', '1e-4']
    status, = place.run()
    differs = () if tree(place.folder/'run') == came else ('the run was changed',)
    return Seen('starts anew (0)' if status == 0 else f'stops ({status})', 0, differs, place.said())

@fault('--resume with processes among which the batch cannot be divided', 'refused (1)', said='cannot share',
       quick=True)
def processes_odd(bench):
    place = bench.place(like='killed')
    came = tree(place.folder/'run')
    statuses = place.run('--resume', ranks=3)
    differs = () if tree(place.folder/'run') == came else ('the run was changed',)
    return Seen(f'refused ({max(statuses)})', 0, differs, last_said(place.said()))

# ---- libraries that are wrong on purpose: each must be found ----

planted_faults = {}

def planted_fault(like):
    "A fault of the table in a library with a defect"
    def add(act):
        due = faults[like]
        what = f'planted: {act.__doc__}'
        planted_faults[act.__name__] = Fault(what, due.outcome, due.lost, act, due.why, due.said)
        return act
    return add

@planted_fault('bug_model')
def planted_not_saved(bench):
    "What an error leaves is not saved"
    def defect():
        from bitgen.trainer import Trainer
        Trainer._save_after = lambda self, error: None
    before = failing('bitgen.embervlm:EmberVLM', 'forward', bug, in_training(5))
    return run_broken(bench.place(), both(written_at_once, defect, before))

@planted_fault('damaged_model_safetensors')
def planted_not_verified(bench):
    "No hash is compared"
    def defect():
        import bitgen.files
        bitgen.files._differs = lambda path, entry, hashes: ''
    place = bench.place(like='killed')
    flip(place.folder/'run'/'checkpoint-4'/'model.safetensors')
    return run_resumed(place, before=defect)

@planted_fault('data_captions')
def planted_not_compared(bench):
    "A run goes on with other data"
    def defect():
        import bitgen.trainer
        bitgen.trainer._differences = lambda saved, here: []
    return other_data(bench, table_changed(_exchanged), before=defect)

@planted_fault('stopped_log_back')
def planted_log_kept(bench):
    "The log is not set back to that of the checkpoint"
    def defect():
        from bitgen.callbacks import Tracking
        Tracking.on_restore = lambda self, trainer, folder: None
    return log_damaged(bench, _reverse, before=defect)

@planted_fault('memory_optimizer')
def planted_silent(bench):
    "An error is told without what is lost"
    def defect():
        import bitgen.trainer
        bitgen.trainer.add_note = lambda error, note: None
    before = failing('torch.optim:AdamW', 'step', MemoryError(), nth(5))
    return run_broken(bench.place(), both(defect, before))

# ---- all of them ----

unchanged = 'the run is as it was'

def one(name_and_bench):
    "What is seen of a fault, and what it costs"
    name, bench = name_and_bench
    begin, seen = time.monotonic(), (faults | planted_faults)[name].act(bench)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime+u.ru_stime for u in used)
    return asdict(seen) | {'fault': name, 'seconds': round(time.monotonic()-begin, 1), 'cpu': round(cpu, 1)}

def wrong(seen):
    "What of a fault is not as expected"
    due = (faults | planted_faults)[seen['fault']]
    out = [f'{seen["outcome"]} in place of {due.outcome}'] if seen['outcome'] != due.outcome else []
    if seen['lost'] != due.lost: out.append(f'{seen["lost"]} steps lost in place of {due.lost}')
    out += seen['differs']
    if due.said not in seen['said']: out.append(f'does not say {due.said!r} but {seen["said"][-300:]!r}')
    began = seen['outcome'].startswith('stops') and seen['lost'] is not None
    if began and 'go on with `' not in seen['said']: out.append('does not say how to go on')
    if seen['traceback'] and bug.args[0] not in seen['said']: out.append('traceback')
    return out

def line_for_user(seen, most=100):
    "The clause that matters of what was printed, without paths, remarks in parentheses and keys of folders"
    due = (faults | planted_faults)[seen['fault']]
    line = next((x for x in reversed(seen['said'].splitlines()) if due.said and due.said in x), '')
    line = re.sub(r'^.*Warning: |^bitgen: ', '', line)
    line = re.sub(r'https?://[^ ]*', 'the Hub', line)
    line = re.sub(r"/[^ ;:,`'\")]*/([^ /;:,`'\")]+)", r'\1', line)
    line = re.sub(r' \((?:[^()]|\([^()]*\))*\)|, started [^)]*', '', line)
    line = re.sub(r'\b[0-9a-f]{32}\b', 'the folder', line)
    clause = next((c for c in re.split(r'; |(?<=[a-z])\. ', line) if due.said in c), line)
    return clause[:most].strip()+('…' if len(clause) > most else '')

def what_is_lost(seen):
    "Nothing, or how many steps and why"
    due = (faults | planted_faults)[seen['fault']]
    if seen['lost'] is None: return 'had not begun'
    if not seen['lost']: return 'nothing'
    return f'{seen["lost"]} step{"s" if seen["lost"] > 1 else ""}: {due.why}'

def is_equal(seen):
    "Whether the run ends as it should, in words"
    due = (faults | planted_faults)[seen['fault']]
    if seen['differs']: return 'no: '+'; '.join(seen['differs'])
    return unchanged if due.outcome.startswith('refused') and due.equal == 'yes' else due.equal

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--jobs', type=int, default=1)
    p.add_argument('--only', nargs='*', default=[])
    p.add_argument('--quick', action='store_true', help='those of the notebook')
    args = p.parse_args()
    names = [name for name, f in faults.items() if f.quick or not args.quick]
    names = args.only or [*names, *planted_faults]
    forked.load()
    work, bad = tempfile.mkdtemp(), 0        # not TemporaryDirectory: each fork would remove it at its end
    bench = Bench(work)
    bench.prepare(args.jobs)
    for (name, _), seen in forked.in_turn([(name, bench) for name in names], one, args.jobs):
        if 'broken' in seen: seen = asdict(Seen('broken', differs=(seen['broken'],))) | {'fault': name}
        forked.append(args.out, seen)
        bad += bool(wrong(seen)) == (name not in planted_faults)
        cost = f'{seen.get("seconds")} s, {seen.get("cpu")} s of CPU'
        print(name, seen['outcome'], seen['lost'], cost, wrong(seen), flush=True)
    shutil.rmtree(work)
    print(f'{len(names)-bad} of {len(names)} as expected, the planted ones among them')
    sys.exit(bool(bad))

if __name__ == '__main__': main()
