"""Training runs as forks of one process that has imported everything: for kill_runs, signal_runs, faults

Importing takes ten seconds, a tiny run one or two. So one process imports, starts no thread, and forks a process
for each run. `load` comes first. Each case gets a folder and a supervising process of its own (`in_turn`), which
forks the runs of its case, strikes them and compares what is left.
"""
import atexit
import ctypes
import hashlib
import importlib
import io
import json
import multiprocessing.util
import os
import shutil
import signal
import socket
import sys
import tarfile
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

for _name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[_name] = '1'
os.environ |= {'TQDM_DISABLE': '1', 'MPLBACKEND': 'Agg', 'TOKENIZERS_PARALLELISM': 'false'}

# ---- the process that forks ----

_heavy = ('torch', 'timm', 'transformers', 'accelerate', 'torchvision', 'matplotlib.pyplot', 'torch.distributed.nn',
          'bitgen.train', 'bitgen.cli', 'bitgen.hub', 'bitgen.inspect')

def load():
    "Import what runs need; the process must have one thread still, for others do not survive a fork"
    for name in _heavy: importlib.import_module(name)
    from PIL import Image
    import bitgen.datasets
    import bitgen.train
    Image.init()
    bitgen.train.parse_recipe([])          # imports some more
    bitgen.datasets.default_eval_scenes = 12
    bitgen.train.all_figures, bitgen.train.run_figures = bitgen.train.run_figures, _one_figure
    threads = len(os.listdir('/proc/self/task'))
    assert threads == 1, f'{threads} threads after importing: a fork would lack all but one'

def _one_figure(model, records, features=None, rows=(), clip=None, pool=200):
    "In place of `run_figures`, whose figures take five seconds: the total loss"
    from matplotlib.figure import Figure
    from bitgen.plots import RunFigure
    figure = Figure((1, 1))
    figure.add_axes((0, 0, 1, 1)).plot([r['stage1/total_loss'] for r in rows if 'stage1/total_loss' in r])
    return {'losses': RunFigure('losses', figure, 'the total loss')}

def _die_with_parent():
    "No process outlives the one that started it"
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)

def _leave(status):
    "What an interpreter does at its end, in a fork; 120 when what was printed cannot be written"
    try:
        multiprocessing.util._exit_function()
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException: status = status or 120
    finally: os._exit(status)

def _status(act):
    "What `act` returns, as the status of a process"
    try: return act() or 0
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int): return e.code or 0
        print(e.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1

@dataclass
class Child:
    "A forked process, leader of a group of its own"
    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)
    status: int = None

    def poll(self):
        "Exit status, minus the signal that ended it, or None"
        if self.status is None:
            pid, raw = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.status = os.waitstatus_to_exitcode(raw)
        return self.status

    def wait(self, seconds=120):
        "Exit status; None when it has not ended after some seconds"
        end = time.monotonic()+seconds
        while self.poll() is None and time.monotonic() < end: time.sleep(.002)
        return self.status

    def strike(self, number=signal.SIGKILL, group=False):
        "A signal for the process or for all of its group; whether there was somebody to get it"
        if self.poll() is not None: return False
        if group: os.killpg(self.pid, number)
        else: os.kill(self.pid, number)
        return True

    def clear(self):
        "End what is left of the group"
        with suppress(ProcessLookupError): os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def said(self): return self.log.read_text(errors='replace') if self.log.exists() else ''

def fork(act, log, env=None):
    "A process that calls `act`"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with suppress(OSError): os.setpgid(pid, pid)
        return Child(pid, Path(log))
    status = 1
    try:
        os.setpgid(0, 0)
        _die_with_parent()
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = (open(i, 'w' if i else 'r', buffering=1) for i in (0, 1, 2))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.update(env or {})
        status = _status(act)
    except BaseException: traceback.print_exc()
    finally: _leave(status)

def in_turn(cases, supervise, jobs=1):
    "`(case, supervise(case))` of each case, computed in forked processes, `jobs` at a time"
    waiting, running = list(cases), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            case, (get, put) = waiting.pop(0), os.pipe()
            pid = os.fork()
            if not pid:
                try:
                    _die_with_parent()
                    os.close(get)
                    try: said = json.dumps(supervise(case))
                    except BaseException: said = json.dumps({'broken': traceback.format_exc()})
                    with open(put, 'w') as out: out.write(said)
                finally: os._exit(0)
            os.close(put)
            running[pid] = case, get
        yield from _ended(running)

def _ended(running):
    "Results of those that are over; waits for one"
    pid, _ = os.waitpid(-1, 0)
    case, get = running.pop(pid)
    with open(get) as file: said = file.read()
    yield case, json.loads(said or '{"broken": "the supervising process died"}')

# ---- data ----

def make_data(folder, images=60):
    "Small images with captions, as files with a table and as two shards; both hold the same"
    import numpy as np
    from PIL import Image
    folder = Path(folder)
    (folder/'images').mkdir(parents=True)
    g, rows = np.random.default_rng(7), []
    colors = {'red': (220, 40, 30), 'green': (40, 190, 60), 'blue': (40, 60, 220), 'gray': (128, 128, 128)}
    for i in range(images):
        name, color = list(colors.items())[i % 4]
        noise = g.integers(-30, 30, (32, 32, 3)) + np.array(color)
        side = ('left', 'right')[i//4 % 2]
        noise[:, :16] += 25*(side == 'left')
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder/'images'/f'{i:03}.png')
        captions = [f'a {name} square, number {i}', f'picture {i} is {name} and lighter on the {side}']
        rows.append({'image': f'images/{i:03}.png', 'captions': captions, 'split': 'val' if i % 5 == 4 else 'train'})
    (folder/'pairs.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
    for split in ('train', 'val'): _make_shard(folder, split, [r for r in rows if r['split'] == split])
    return folder

def _make_shard(folder, split, rows):
    "A tar file of images and captions"
    (folder/'shards'/split).mkdir(parents=True)
    with tarfile.open(folder/'shards'/split/'00000.tar', 'w') as tar:
        for r in rows:
            stem = Path(r['image']).stem
            for ext, content in (('png', (folder/r['image']).read_bytes()),
                                 ('txt', '\n'.join(r['captions']).encode())):
                info = tarfile.TarInfo(f'{stem}.{ext}')
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

# ---- runs ----

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def start(argv, log, threads=1, ranks=1, before=None):
    "A run as one or several processes, each of which calls `before` first; one `Child` for each"
    port, children = free_port() if ranks > 1 else 0, []
    for rank in range(ranks):
        env = {}
        if ranks > 1:
            env = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': ranks, 'LOCAL_WORLD_SIZE': ranks,
                   'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'GLOO_SOCKET_IFNAME': 'lo'}
        env = {k: str(v) for k, v in env.items()}
        here = Path(f'{log}.{rank}') if ranks > 1 else Path(log)
        children.append(fork(lambda: _train(argv, threads, ranks, before), here, env))
    return children

def _train(argv, threads, ranks, before):
    "What a process of a run does"
    import torch
    torch.set_num_threads(threads)
    if before: before()
    if ranks > 1:
        from bitgen.train import main
        return main(argv)
    from bitgen.cli import main
    return main(['train', *argv])

def ended(children, seconds=120):
    "Exit statuses; whoever is not over in time is ended"
    end = time.monotonic()+seconds
    out = [c.wait(max(0., end-time.monotonic())) for c in children]
    for c in children: c.clear()
    return out

class Place:
    "The folder of one run that is started, struck and resumed; with a Hub of its own where the setup has one"
    def __init__(self, setup, data, folder):
        self.setup, self.folder, self.children, self.starts = setup, Path(folder), [], 0
        shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.argv = setup.argv(data, folder)
        self.hub = self._hub() if setup.hub else None

    def _hub(self):
        "A server in a process of its own, each of whose answers takes a while"
        def serve():
            sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
            from loopback_hub import LoopbackHub
            hub = LoopbackHub()
            hub.fault = lambda method, path: .05
            (self.folder/'url').write_text(hub.url)
            while True: time.sleep(60)
        child = fork(serve, self.folder/'hub.log')
        while not (self.folder/'url').exists() or not (self.folder/'url').read_text(): time.sleep(.01)
        return child

    phases = property(lambda self: self.folder/f'phases{self.starts-1}')

    def _before(self, more):
        "What a process calls first"
        say = say_phases(self.phases)
        def before():
            if self.setup.figures: _draw_some()
            if self.hub: _use_hub((self.folder/'url').read_text(), self.folder)
            say()
            if more: more()
        return before

    def start(self, *more, before=None, ranks=None, threads=None):
        "The run's processes, with more flags"
        self.starts += 1
        children = start([*self.argv, *more], self.folder/f'log{self.starts-1}', threads or self.setup.threads,
                         ranks or self.setup.ranks, self._before(before))
        self.children += children
        return children

    def run(self, *more, **how):
        "Exit statuses of the run, when it is over"
        return ended(self.start(*more, **how))

    def said(self):
        "All that the processes printed"
        logs = sorted(self.folder.glob('log*'))
        return ''.join(f.read_text(errors='replace') for f in logs)

    def left(self): return left_by(self.folder/'run')

    def clear(self):
        "End what outlived its run, such as decoding processes, and the Hub"
        for c in [*self.children, *([self.hub] if self.hub else [])]: c.clear()

def _draw_some():
    "Two of a run's figures in place of all"
    import bitgen.inspect
    import bitgen.train
    from bitgen.plots import RunFigure
    def some(model, records, features=None, rows=(), clip=None, pool=200):
        drawn = {'similarity': bitgen.inspect.similarity_matrix(model, records, features),
                 'embedding': bitgen.inspect.embedding_map(model, records, features)}
        return {k: RunFigure(k, figure, k) for k, figure in drawn.items()}
    bitgen.train.run_figures = some

def _use_hub(url, folder):
    "Let this process take a server on this machine for the Hub"
    from huggingface_hub import constants
    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = url, False, True
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url+'/{repo_id}/resolve/{revision}/{filename}'
    constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH = str(folder/'hub_cache'), str(folder/'token')
    os.environ['HF_TOKEN'] = 'hf_writer'

# ---- what is left of a run ----

compared = ('model.safetensors', 'optimizer.safetensors', 'optimizer.json', 'scheduler.json', 'trainer_state.json',
            'training.safetensors', 'checkpoint-final/model.safetensors')   # of the last checkpoint, but for one
timings = ('stage1/images_per_second', 'stage1/data_wait')

def digest(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if Path(path).is_file() else None

def rows_of(path):
    "The lines of a log, without timings; a line that cannot be read as it is"
    out = []
    for line in Path(path).read_bytes().split(b'\n')[:-1]:
        try: row = json.loads(line)
        except ValueError: row = {'unreadable': line.decode(errors='replace')}
        out.append({k: v for k, v in row.items() if k not in timings})
    return out

def last_checkpoint(run):
    "The numbered checkpoint with the highest step; the run itself where there is none"
    return max(Path(run).glob('checkpoint-[0-9]*'), key=lambda d: int(d.name.removeprefix('checkpoint-')), default=Path(run))

def left_by(run):
    "What must be equal of two runs: hashes of what they wrote at their end, rows of the log, names of what is there"
    run = Path(run)
    last = last_checkpoint(run)
    there = run.iterdir() if run.is_dir() else ()
    return {'files': {name: digest((run if '/' in name else last)/name) for name in compared},
            'rows': rows_of(run/'metrics.jsonl') if (run/'metrics.jsonl').exists() else None,
            'checkpoints': sorted(d.name for d in run.glob('checkpoint-*')),
            'scores': json.loads((run/'metrics.json').read_text()) if (run/'metrics.json').exists() else None,
            'hidden': sorted(f.name for f in there if f.name.startswith(('.tmp-', '.old-', '.staging')))}

def differences(a, b):
    "What differs in two results of `left_by`, in words"
    out = [name for name in compared if a['files'][name] != b['files'][name]]
    if a['rows'] != b['rows']: out.append(_rows_apart(a['rows'] or [], b['rows'] or []))
    out += [k for k in ('checkpoints', 'scores', 'hidden') if a[k] != b[k]]
    return out

def _rows_apart(a, b):
    "The first row that differs"
    if len({json.dumps(r) for r in b}) != len(b): return 'rows of metrics.jsonl: one is doubled'
    if len(a) != len(b): return f'rows of metrics.jsonl: {len(a)} and {len(b)}'
    k = next(k for k, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    names = sorted(n for n in a[k].keys() | b[k].keys() if a[k].get(n) != b[k].get(n))
    return f'row {k} of metrics.jsonl (step {a[k].get("step")}): {", ".join(names[:4])}'

# ---- configurations ----

common = ('--image_size 32 --precision fp32 --log_steps 1 --warmup_steps 2 --max_length 16 --tokenizer train:300 '
          '--eval_pool 8 --batch_size 8 --max_steps 8 --eval_steps 4 --save_steps 3')
scenes = ('--recipe scenes --text_width 32 --text_layers 2 --text_heads 2 --decoder_layers 1 --ffn_width 64 '
          '--embed_dim 32')
embervlm = ('--recipe embervlm --vision test_byobnet --vision_weights random --language_weights random '
            '--lm_width 32 --lm_layers 1 --lm_heads 2 --projection_width 32 --embed_dim 32')
bitgen = ('--recipe bitgen --vision test_vit --vision_args patch_size=16 --vision_weights random --text_width 32 '
          '--text_layers 2 --no_bitlinear --denoising_weight .5 --eval_rerank 32 '
          '--text_heads 2 --decoder_layers 1 --ffn_width 64 --embed_dim 32 --fusion_layers 1 --queue_size 48 '
          '--ema_decay 0.9')
files, shards, drawn = '--data {data}/pairs.jsonl', '--data {data}/shards', '--data scenes:48'

@dataclass
class Setup:
    "What a run is made with; `flags` with a place for folders"
    flags: str
    threads: int = 1
    ranks: int = 1
    figures: bool = False   # Draw two of a run's figures, and not only the loss
    hub: bool = False       # Push to a server on this machine

    def argv(self, data, folder, *more):
        "Flags of a run in `folder`, which holds its features, too"
        words = f'--cache_dir {{folder}}/cache --output_dir {{folder}}/run {self.flags}'
        return [*words.format(data=data, folder=folder).split(), *more]

_every = '--save_steps 1 --save_total_limit 2'
setups = {
    'scenes': Setup(f'{scenes} {common} {files}'),
    'embervlm, features': Setup(f'{embervlm} {common} {files}'),
    'scenes, workers': Setup(f'{scenes} {common} {files} --dataloader_num_workers 2 --augment --no_drop_last', 2),
    'embervlm, features by workers, shards': Setup(
        f'{embervlm} {common} {shards} --dataloader_num_workers 2 {_every}', 2),
    'scenes, shards, accumulation': Setup(
        f'{scenes} {common} {shards} {_every} --gradient_accumulation_steps 2 --max_steps 6'),
    'embervlm, trained tower, accumulation': Setup(
        f'{embervlm} {common} {files} --no_freeze_vision --gradient_accumulation_steps 2 --max_steps 6', 2),
    'scenes, drawn': Setup(f'{scenes} {common} {drawn}'),
    'scenes, two ranks': Setup(f'{scenes} {common} {files} --batch_size 4 --save_steps 2', ranks=2),
    'scenes, stopped early': Setup(
        f'{scenes} {common} {files} --learning_rate 1e-6 --eval_steps 1 --patience 1 --max_steps 12'),
    'embervlm, two ranks, features': Setup(
        f'{embervlm} {common} {files} {_every} --batch_size 4 --gradient_accumulation_steps 2 --max_steps 6',
        ranks=2),
    'bitgen, queue and momentum': Setup(f'{bitgen} {common} {files} --gradient_accumulation_steps 1'),
    'embervlm, stopped early': Setup(
        f'{embervlm} {common} {files} --learning_rate 1e-6 --eval_steps 1 --patience 1 --max_steps 12'),
}

# ---- what a run is doing ----

def say_phases(file):
    "What a run calls first, so that `phases_in` can tell from `file` what it is doing; the first rank alone speaks"
    def before():
        if os.environ.get('RANK', '0') != '0': return
        import bitgen.callbacks
        import bitgen.train
        import bitgen.trainer
        fd = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.write(fd, f'+run\t{time.monotonic()}\n'.encode())
        _say(fd, bitgen.train, 'load_pairs', 'data')
        _say(fd, bitgen.train, 'cached_features', 'features')
        _say(fd, bitgen.train.Trainer, 'fit', 'training')
        _say(fd, bitgen.train.Trainer, '_evaluate', 'evaluation')
        _say(fd, bitgen.callbacks.Figures, 'after_eval', 'figures')
        _say(fd, bitgen.trainer, 'write_folder', 'saving')
        _say(fd, bitgen.train, '_finish', 'final evaluation')
        _say(fd, bitgen.train, '_finish_upload', 'upload')
    return before

def _say(fd, owner, name, phase):
    "Let a function write when it begins and ends"
    act = getattr(owner, name)
    def said(*args, **kwargs):
        os.write(fd, f'+{phase}\t{time.monotonic()}\n'.encode())
        try: return act(*args, **kwargs)
        finally: os.write(fd, f'-{phase}\t{time.monotonic()}\n'.encode())
    setattr(owner, name, said)

def steps_of(file):
    "What was said: begin or end, the phase and the time of each"
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    return [(line[0], line[1:].partition('\t')[0], float(line.partition('\t')[2])) for line in lines]

def phase_of(file):
    "The innermost phase that has begun and not ended"
    inside = []
    for sign, phase, _ in steps_of(file):
        if sign == '+': inside.append(phase)
        elif phase in inside: inside.remove(phase)
    return inside[-1] if inside else 'start'

def spans(file):
    "Begin and end of each phase, one list of pairs for each name, in seconds after the start"
    out, open_, first = {}, {}, None
    for sign, phase, t in steps_of(file):
        first = t if first is None else first
        if sign == '+': open_.setdefault(phase, []).append(t-first)
        else: out.setdefault(phase, []).append((open_[phase].pop(), t-first))
    return out

def on_disk(folder):
    "The last logged step of a run, and what is half-written"
    run, cache = Path(folder)/'run', Path(folder)/'cache'
    log = run/'metrics.jsonl'
    rows = rows_of(log) if log.exists() else []
    half = [f.name for f in run.glob('.*') if not f.name.startswith('.lock')] if run.is_dir() else []
    half += [f.name for f in cache.rglob('*.part*')] if cache.is_dir() else []
    return {'step': max((r.get('step', 0) for r in rows), default=None), 'half': sorted(half)}

# ---- results as lines of a file ----

def read_lines(path): return [json.loads(s) for s in path.read_text().splitlines()] if path.exists() else []

def append(path, line):
    with open(path, 'a') as file: file.write(json.dumps(line)+'\n')

def _left_alone(name, work, data):
    "An uninterrupted run: what it leaves, and its seconds"
    place, begin = Place(setups[name], data, work/'left_alone'/name.replace(' ', '_')), time.monotonic()
    statuses = place.run()
    seconds = time.monotonic()-begin
    place.clear()
    if statuses != [0]*len(statuses): return {'broken': f'{name}: {statuses} {place.said()[-1500:]}'}
    return {'reference': name, 'seconds': seconds, 'left': place.left(), 'spans': spans(place.phases)}

def _left_alone_twice(name, work, data):
    "An uninterrupted run that equals a second one"
    a, b = (_left_alone(name, work, data) for _ in range(2))
    for x in (a, b):
        if 'broken' in x: return x
    apart = differences(a['left'], b['left'])
    return {'broken': f'{name}: two uninterrupted runs differ in {apart}'} if apart else b

def references(names, out, work, data, jobs):
    "Uninterrupted runs by name; those that the file of results holds are not made again"
    have = {line['reference']: line for line in read_lines(out) if 'reference' in line}
    todo = [n for n in names if n not in have]
    for name, one in in_turn(todo, lambda n: _left_alone_twice(n, work, data), jobs):
        if 'broken' in one: sys.exit(one['broken'])
        append(out, one)
        have[name] = one
    return have
