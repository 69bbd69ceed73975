"""Runs that are killed and resumed, against the same runs left alone: `python kill_runs.py --runs 200 --seed 1 --out kills.jsonl`

Each run is killed with SIGKILL at a moment drawn evenly over the length of an uninterrupted run, goes on with
`--resume`, is perhaps killed once or twice more, and is compared with the uninterrupted run: files of its last
checkpoint and its final model byte for byte, rows of its log but for timings. Results are lines of --out; a
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

def strike(children, g):
    "Kill one process or all; of two ranks the other gets SIGTERM, as `torchrun` does it, and some time to leave"
    one, rest = g.choice(children), []
    together = len(children) == 1 or g.random() < .5
    group = g.random() < .5
    struck = [c.strike(signal.SIGKILL, group) for c in (children if together else [one])]
    if not together:
        rest = [c for c in children if c is not one]
        time.sleep(g.uniform(0, .3))
        for c in rest: c.strike(signal.SIGTERM)
    for c in children:
        if c.wait(15) is None: c.clear()
    return any(struck) and any(c.status == -signal.SIGKILL for c in children), together

def killed(place, moment, g):
    "Start a run, or go on where it was, and kill it at a moment; what was struck, None when it was over before"
    children = place.start(*(['--resume'] if place.starts else []))
    end = children[0].started+moment
    while time.monotonic() < end and any(c.poll() is None for c in children): time.sleep(.001)
    return struck(place, children, g)

def struck(place, children, g):
    "Kill a run now; what was struck, None when it was over before"
    phase, seconds = forked.phase_of(place.phases), time.monotonic()-children[0].started
    hit, together = strike(children, g)
    if not hit: return None
    found = {'at': round(seconds, 3), 'phase': phase, 'together': together, **forked.on_disk(place.folder)}
    return found | {'statuses': [c.status for c in children]}

def one_case(case):
    "Kill a run once or up to three times, resume it to its end, and compare"
    i, seed, name, ref, work, data = case
    g, span, begin, found = random.Random(f'{seed} {i}'), ref['seconds'], time.monotonic(), None
    while not found:                        # until the first kill comes before the end
        place = forked.Place(forked.setups[name], data, Path(work)/'runs'/f'{i}')
        found = killed(place, g.uniform(0, span), g)
        span *= .9
    strikes, wanted = [found], g.randint(1, 3)
    while found and len(strikes) < wanted:
        found = killed(place, g.uniform(0, ref['seconds']), g)
        if found: strikes.append(found)
    statuses = place.run('--resume')
    place.clear()
    said = place.said()
    out = {'run': i, 'setup': name, 'strikes': strikes, 'statuses': statuses, 'differs': [],
           'seconds': round(time.monotonic()-begin, 1), 'traceback': 'Traceback' in said}
    if statuses != [0]*len(statuses): out['differs'] = [f'status {statuses}: {said[-800:]}']
    else: out['differs'] = forked.differences(ref['left'], place.left())
    if not out['differs']: shutil.rmtree(place.folder)
    return out

def table(results):
    "What was killed when"
    lines = ['run  setup                                  step  phase                  half-written        equal']
    for r in sorted(results, key=lambda r: r['run']):
        for k, s in enumerate(r['strikes']):
            first = f'{r["run"]:3}  {r["setup"]:38}' if not k else f'{"":3}  {"":38}'
            half = ', '.join(s['half']) or '-'
            step = '-' if s['step'] is None else s['step']
            equal = '' if k else 'no: '+'; '.join(r['differs'])[:200] if r['differs'] else 'yes'
            lines.append(f'{first} {step:>4}  {s["phase"]:22} {half[:19]:19} {equal}'.rstrip())
    return '\n'.join(lines)

def summary(results):
    "How many are equal, which are not"
    odd = [r for r in results if r['differs'] or 'broken' in r]
    strikes = Counter(s['phase'] for r in results for s in r['strikes'])
    half = sum(bool(s['half']) for r in results for s in r['strikes'])
    lines = [f'{len(results)-len(odd)} of {len(results)}',
             f'{strikes.total()} kills, {half} of them with something half-written: '
             + ', '.join(f'{k} {n}' for k, n in strikes.most_common())]
    lines += [f'run {r["run"]} ({r["setup"]}): {"; ".join(r["differs"])}' for r in odd]
    loud = [r['run'] for r in results if r['traceback']]
    if loud: lines.append(f'a traceback was printed in runs {loud}')
    return '\n'.join(lines)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--runs', type=int, default=200)
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--jobs', type=int, default=1)
    p.add_argument('--only', nargs='*', default=list(forked.setups), help='names of setups')
    p.add_argument('--table', action='store_true')
    args = p.parse_args()
    forked.load()
    work = Path(tempfile.mkdtemp())
    data, done = forked.make_data(work/'data'), forked.read_lines(args.out)
    have = forked.references(args.only, args.out, work, data, args.jobs)
    results = [r for r in done if 'run' in r]
    left = sorted({*range(args.runs)} - {r['run'] for r in results})
    names = {i: args.only[i % len(args.only)] for i in left}
    cases = [(i, args.seed, names[i], have[names[i]], work, data) for i in left]
    for _, r in forked.in_turn(cases, one_case, args.jobs):
        if 'broken' in r: sys.exit(r['broken'])
        forked.append(args.out, r)
        results.append(r)
    if args.table: print(table(results))
    print(summary(results))
    bad = any(r['differs'] for r in results)
    if not bad: shutil.rmtree(work)
    else: print(f'kept in {work}')
    sys.exit(bad)

if __name__ == '__main__': main()
