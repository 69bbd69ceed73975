"""Signals at random moments of each phase of a run: `python signal_runs.py --per_phase 50 --seed 1 --out signals.jsonl`

A run says what it is doing. In each of its phases it gets SIGTERM, SIGINT, SIGHUP or SIGUSR1, once or twice, alone or
with its whole group, as Slurm and a terminal send it. Measured: the time until all of its processes are gone, the
exit status, and whether the run equals one that was left alone, after `--resume`. Results are lines of --out; a
script that was stopped goes on where it was. Exit status 1 when a run differs.
"""
import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import forked_runs as forked

numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_many = ('--data scenes:300', '--image_size 64')
forked.setups |= {
    'many features': forked.Setup(f'{forked.embervlm} {forked.common} {" ".join(_many)}'),
    'many features, workers': forked.Setup(
        f'{forked.embervlm} {forked.common} {" ".join(_many)} --dataloader_num_workers 2', 2),
    'figures': forked.Setup(f'{forked.embervlm} {forked.common} {forked.files}', figures=True),
    'upload': forked.Setup(f'{forked.embervlm} {forked.common} {forked.files} --push_to_hub --hub_model_id me/run',
                           hub=True)}
phases = {  # the setups in which a phase is struck, in turn
    'start': ('scenes', 'scenes, workers', 'scenes, two ranks'),
    'data': ('scenes, drawn', 'scenes, shards, accumulation'),
    'features': ('many features', 'many features, workers', 'embervlm, two ranks, features'),
    'training': ('scenes', 'scenes, workers', 'scenes, two ranks'),
    'evaluation': ('embervlm, features', 'scenes, workers', 'scenes, two ranks'),
    'figures': ('figures',),
    'saving': ('embervlm, features by workers, shards', 'scenes, shards, accumulation'),
    'final evaluation': ('scenes', 'scenes, workers', 'embervlm, two ranks, features'),
    'upload': ('upload',)}

def moment(phase, ref, g):
    "Which of a phase's occurrences, and how long after its begin: drawn evenly over all the time it takes"
    if phase == 'start': return 0, g.uniform(0, ref['spans']['data'][0][0])
    held = [(k, b-a) for k, (a, b) in enumerate(ref['spans'][phase])]
    k, seconds = g.choices(held, [s for _, s in held])[0]
    return k, g.uniform(0, seconds)

def wait_for(phase, k, place, children):
    "Until a phase has begun for the k-th time; the moment, or None when the run ends before"
    name = 'run' if phase == 'start' else phase
    while any(c.poll() is None for c in children):
        begun = [t for sign, said, t in forked.steps_of(place.phases) if sign == '+' and said == name]
        if len(begun) > k: return begun[k]
        time.sleep(.001)
    return None

def send(children, g):
    "The signals of a case; what was sent"
    number, group, everyone = g.choice(numbers), g.random() < .5, g.random() < .5
    twice = g.random() < .5
    sent = [(number, 0.)]
    if twice: sent.append((g.choice((number, number, g.choice(numbers))), g.choice((g.uniform(0, .3), 1.2))))
    hit = False
    to = children if everyone else [g.choice(children)]
    for what, delay in sent:
        time.sleep(delay)
        hit |= any([c.strike(what, group) for c in to])
    return {'sent': [(signal.Signals(n).name, round(s, 2)) for n, s in sent], 'group': group, 'everyone': everyone,
            'hit': hit}

def leave(children, seconds=30):
    "Seconds until all have ended; a rank that waits for one that has gone gets what `torchrun` sends"
    begin = time.monotonic()
    while any(c.poll() is None for c in children):
        waited = time.monotonic()-begin
        if waited > seconds: return None
        if len(children) > 1 and any(c.poll() is not None for c in children):
            for c in children:
                if not getattr(c, 'told', False): c.told = c.strike(signal.SIGTERM) or True
        time.sleep(.001)
    return time.monotonic()-begin

def struck(case, g, phase, ref, work, data, name):
    "Start a run and strike it in a phase; None when it was in another one"
    place = forked.Place(forked.setups[name], data, Path(work)/'runs'/f'{phase.replace(" ", "_")}_{case}')
    children = place.start()
    k, offset = moment(phase, ref, g)
    begun = wait_for(phase, k, place, children)
    while begun and time.monotonic() < begun+offset: time.sleep(.0005)
    at = forked.phase_of(place.phases)
    if not begun or (at != phase and not (phase == 'start' and at == 'run')):
        place.clear()
        return place, None
    sent = send(children, g)
    seconds = leave(children)
    for c in children: c.clear()
    return place, sent | {'seconds': seconds, 'statuses': [c.status for c in children],
                          'said': place.said()[-300:]}

def one_case(case):
    "Strike a run in a phase, resume it to its end, and compare"
    phase, i, seed, name, ref, work, data = case
    g, found, tries = random.Random(f'{seed} {phase} {i}'), None, 0
    while not found and tries < 20:
        place, found = struck(i, g, phase, ref, work, data, name)
        tries += 1
    out = {'phase': phase, 'run': i, 'setup': name, 'tries': tries, 'struck': found, 'differs': []}
    if not found: return out | {'differs': ['never struck in its phase']}
    statuses = place.run('--resume')
    place.clear()
    out |= {'statuses': statuses, 'traceback': 'Traceback' in place.said()}
    if statuses != [0]*len(statuses): out['differs'] = [f'status {statuses}: {place.said()[-800:]}']
    else:  # the checkpoint of the signal is one more than an undisturbed run has
        out['differs'] = [d for d in forked.differences(ref['left'], place.left()) if d != 'checkpoints']
    if found['seconds'] is None: out['differs'].append('did not leave in 30 s')
    if not out['differs']: shutil.rmtree(place.folder)
    return out

def table(results):
    "For each phase the longest time to exit, the statuses and how many are equal"
    lines = ['phase             |   n | longest time to exit | statuses                          | equal']
    for phase in phases:
        own = [r for r in results if r['phase'] == phase and r['struck']]
        if not own: continue
        seconds = [r['struck']['seconds'] for r in own]
        longest = 'never' if None in seconds else f'{max(seconds):.2f} s'
        statuses = Counter(s for r in own for s in r['struck']['statuses'])
        said = ', '.join(f'{n}× {s}' for s, n in sorted(statuses.items(), key=lambda x: -x[1]))
        equal = sum(not r['differs'] for r in own)
        lines.append(f'{phase:17} | {len(own):3} | {longest:>20} | {said:33} | {equal} of {len(own)}')
    lines += [f'{r["phase"]} {r["run"]} ({r["setup"]}): {"; ".join(r["differs"])}' for r in results if r['differs']]
    loud = [f'{r["phase"]} {r["run"]}' for r in results if r.get('traceback')]
    if loud: lines.append(f'a traceback was printed in {", ".join(loud)}')
    return '\n'.join(lines)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--per_phase', type=int, default=50)
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--jobs', type=int, default=1)
    p.add_argument('--only', nargs='*', default=list(phases), help='names of phases')
    args = p.parse_args()
    forked.load()
    work = Path(tempfile.mkdtemp())
    data = forked.make_data(work/'data')
    results = [r for r in forked.read_lines(args.out) if 'run' in r]
    names = sorted({name for phase in args.only for name in phases[phase]})
    have = forked.references(names, args.out, work, data, args.jobs)
    done = {(r['phase'], r['run']) for r in results}
    left = [(phase, i) for i in range(args.per_phase) for phase in args.only if (phase, i) not in done]
    cases = []
    for phase, i in left:
        name = phases[phase][i % len(phases[phase])]
        cases.append((phase, i, args.seed, name, have[name], work, data))
    for _, r in forked.in_turn(cases, one_case, args.jobs):
        if 'broken' in r: sys.exit(r['broken'])
        forked.append(args.out, r)
        results.append(r)
    print(table(results))
    bad = any(r['differs'] for r in results)
    if not bad: shutil.rmtree(work)
    else: print(f'kept in {work}')
    sys.exit(bad)

if __name__ == '__main__': main()
