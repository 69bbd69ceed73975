"""The runs of exact_resume: killed, stopped by a signal, and passed from one number of processes to another

`python exact_runs.py FILE FOLDER` makes them in a folder, and writes what each of them left to a file, one line of
JSON for each. Threads of a run that wait for each other sleep (OMP_WAIT_POLICY): several runs share two cores.
"""
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ['OMP_WAIT_POLICY'] = 'passive'

import forked_runs as forked  # noqa: E402
import kill_runs  # noqa: E402
import signal_runs  # noqa: E402

# ---- configurations ----

n_steps = 5
short = f'--max_steps {n_steps} --eval_steps 3 --save_steps 2'
each = '--save_steps 1 --save_total_limit 2'
own = f'{forked.common} {short}'
setups = {  # with the number of kills, and the phase within which the first one comes
    'embervlm, features': (4, 'features', forked.Setup(f'{forked.embervlm} {own} {forked.files}')),
    'scenes, 2 threads, 2 workers': (4, 'training', forked.Setup(
        f'{forked.scenes} {own} {forked.files} --dataloader_num_workers 2 --augment --no_drop_last', 2)),
    'embervlm, shards, features, 2 threads, 2 workers, saves at each step': (4, 'features', forked.Setup(
        f'{forked.embervlm} {own} {forked.shards} --dataloader_num_workers 2 {each}', 2)),
    'scenes, shards, accumulation, saves at each step': (3, 'saving', forked.Setup(
        f'{forked.scenes} {own} {forked.shards} {each} --gradient_accumulation_steps 2')),
    'scenes, 2 processes': (3, 'training', forked.Setup(
        f'{forked.scenes} {own} {forked.files} --batch_size 4', ranks=2)),
    'bitgen, queue, momentum': (2, 'evaluation', forked.Setup(
        f'{forked.bitgen} {own} {forked.files} --gradient_accumulation_steps 1'))}
with_workers = 'scenes, 2 threads, 2 workers'
# no kink at which rounding decides, and a gradient below the size at which Adam makes all steps equally long
elastic = forked.Setup(
    f"{forked.scenes} --vision_args output_stride=16 act_layer='silu' replace_stem_pool=True {forked.common} "
    f'{forked.files} --augment --batch_size 12 --max_steps 8 --save_steps 100 --text_dropout 0 '
    '--gradient_clip 1e-3')
parts = ((1, 2), (2, 4), (3, 6), (1, 8))  # processes, and the step at which they stop

# ---- kills ----

def alone(name, setup, data, work):
    "An uninterrupted run"
    place = forked.Place(setup, data, work/'alone'/slug(name))
    statuses = place.run()
    place.clear()
    seconds = max(t for _, _, t in forked.steps_of(place.phases)) - forked.steps_of(place.phases)[0][2]
    return {'kind': 'alone', 'name': name, 'statuses': statuses, 'left': place.left(), 'seconds': seconds,
            'spans': forked.spans(place.phases), 'said': place.said()[-1500:]}

def slug(name): return name.replace(' ', '_').replace(',', '')

def to_go(ref, place):
    "About how many seconds a run takes from where it is: from its newest checkpoint, or from its beginning"
    (begin, end), = ref['spans']['training']
    steps = [int(d.name.partition('-')[2]) for d in (place.folder/'run').glob('checkpoint-[0-9]*')]
    return ref['seconds'] - (end-begin)*max(steps, default=0)/n_steps

def kills(name, data, work, ref):
    "A run that is killed and resumed until there are kills enough, and then resumed to its end"
    wanted, phase, setup = setups[name]
    g, found, ends, place = random.Random(f'exact {name}'), [], [], None
    while len(found) < wanted:
        place = place or forked.Place(setup, data, work/f'killed{len(ends)}'/slug(name))
        hit = killed(place, g, ref, '' if found else phase)
        if hit: found.append(hit)
        else:  # over before the kill: it must be equal, and the kills go on in another folder
            ends.append(end_of(place))
            place = None
    if place: ends.append(end_of(place))
    return {'kind': 'kills', 'name': name, 'kills': found, 'ends': ends}

def killed(place, g, ref, phase):
    "Start or resume a run and kill it at a random moment, of a phase or of all that is to be done"
    if not phase: return kill_runs.killed(place, g.uniform(0, .9*to_go(ref, place)), g)
    children = place.start()
    k, offset = signal_runs.moment(phase, ref, g)
    begun = signal_runs.wait_for(phase, k, place, children)
    while begun and time.monotonic() < begun+offset: time.sleep(.001)
    return kill_runs.struck(place, children, g)

def end_of(place):
    "What is left when a run has been resumed to its end"
    statuses = place.run('--resume')
    place.clear()
    return {'statuses': statuses, 'left': place.left(), 'said': place.said()[-1500:]}

# ---- SIGTERM ----

def rows_logged(place):
    log = place.folder/'run'/'metrics.jsonl'
    return len(forked.rows_of(log)) if log.exists() else 0

def term(data, work):
    "SIGTERM for the group of a run with workers; it is resumed, and a copy is resumed without moments"
    place = forked.Place(setups[with_workers][-1], data, work/'term')
    child, = place.start()
    while rows_logged(place) < 3 and child.poll() is None: time.sleep(.002)
    child.strike(signal.SIGTERM, group=True)
    begin = time.monotonic()
    status = child.wait(60)
    seconds, said, outlived = time.monotonic()-begin, place.said(), is_group(child.pid)
    place.clear()
    left = place.left()['checkpoints']
    broken = forked.Place(place.setup, data, work/'moments')
    shutil.copytree(place.folder/'run', broken.folder/'run')
    return {'kind': 'term', 'status': status, 'seconds': seconds, 'said': said.splitlines()[-1:],
            'checkpoints': left, 'outlived': outlived, 'end': end_of(place),
            'without_moments': forget(broken)}

def is_group(number):
    "Whether a process group has members"
    try: os.killpg(number, 0)
    except ProcessLookupError: return False
    return True

def forget(place):
    "Resume without the state of the optimizer"
    def before():
        import bitgen.trainer
        bitgen.trainer.load_optimizer = lambda opt, folder: None
    statuses = place.run('--resume', before=before)
    place.clear()
    return {'statuses': statuses, 'left': place.left()}

# ---- another number of processes ----

def stop_at(step, note):
    "What a process calls first: gets SIGTERM after a step, and writes down the rows of each step"
    def before():
        import bitgen.train
        from bitgen.trainer import Callback, Trainer
        class Stop(Callback):
            def after_step(self, trainer, out):
                if trainer.step == step: os.kill(os.getpid(), signal.SIGTERM)
        make = bitgen.train.make_callbacks
        bitgen.train.make_callbacks = lambda *a, **how: [*make(*a, **how), Stop()]
        gradients = Trainer._gradients
        def noted(self, batches):
            rows = [row for batch in batches for row in row_hashes(batch)]
            line = {'step': self.step, 'rank': self.accelerator.process_index, 'rows': rows}
            with open(f'{note}.{line["rank"]}', 'a') as file: file.write(json.dumps(line)+'\n')
            return gradients(self, batches)
        Trainer._gradients = noted
    return before

def row_hashes(batch):
    "A hash for each image of a batch: pixels as drawn, captions, the key of all that the model draws for it"
    texts = [t[:n] for t, n in zip(batch['tokens'], batch['lengths'], strict=True)]
    each = len(texts)//len(batch['image'])  # captions of an image
    for i, image in enumerate(batch['image']):
        content = [image, *texts[i*each:(i+1)*each], batch['image_id'][i], batch['draw_key'][i]]
        yield hashlib.sha256(b''.join(c.numpy().tobytes() for c in content)).hexdigest()[:16]

def passed_on(data, work, plan, name):
    "A run that stops after some steps and goes on with another number of processes, from its own recipe"
    place, statuses = forked.Place(elastic, data, work/slug(name)), []
    note, last = work/f'{slug(name)}_rows', plan[-1][1]
    for ranks, stop in plan:
        before = stop_at(stop if stop < last else None, note)
        statuses.append(place.run(before=before, ranks=ranks))
        place.argv = ['--recipe', f'{place.folder}/run/recipe.yaml', '--resume']
    place.clear()
    said = [s for s in place.said().splitlines() if ' in place of ' in s]
    return {'kind': name, 'statuses': statuses, 'log': forked.rows_of(place.folder/'run'/'metrics.jsonl'),
            'rows': rows_by_step(note), 'said': said, 'run': str(place.folder/'run'),
            'trouble': place.said()[-3000:]}

def rows_by_step(note):
    "For each step the hashes of each process's rows; a step that was done twice has too many processes"
    lines = [s for f in note.parent.glob(f'{note.name}.*') for s in f.read_text().splitlines()]
    rows = {}
    for line in sorted(map(json.loads, lines), key=lambda x: (x['step'], x['rank'])):
        rows.setdefault(line['step'], []).append(line['rows'])
    return [rows[step] for step in sorted(rows)]

# ---- all ----

def act(case):
    kind, *args = case
    return {'alone': alone, 'kills': kills, 'term': term, 'passed_on': passed_on}[kind](*args)

def main(out, work):
    forked.load()
    data = forked.make_data(work/'data')
    cases = [('alone', name, setup, data, work) for name, (_, _, setup) in setups.items()]
    plans = {'passed on': parts, 'one process': parts[-1:]}
    cases += [('passed_on', data, work, plan, name) for name, plan in plans.items()]
    what = {'kind': 'compared', 'steps': n_steps, 'files': forked.compared, 'timings': forked.timings}
    out.write(json.dumps(what)+'\n')
    refs = {}
    for _, one in forked.in_turn(cases, act, 2):
        out.write(json.dumps(one)+'\n')
        if one.get('kind') == 'alone': refs[one['name']] = one
    cases = [('kills', name, data, work, refs[name]) for name in setups] + [('term', data, work)]
    for _, one in forked.in_turn(cases, act, 2): out.write(json.dumps(one)+'\n')

if __name__ == '__main__':
    with open(sys.argv[1], 'w') as file: main(file, Path(sys.argv[2]))
