"""What an export keeps of a model: `python export_scores.py --checkpoint FOLDER --data PATH --out FOLDER`

Exports the checkpoint twice, with float weights and with eight bits, and judges the model in PyTorch and both exports on
the validation images: scores; for the first N of them (`--images`) captions that are word for word the same, and whether
each sentence ranks the images in the same order; and what a call costs on one thread. Everything is written to
FOLDER/export_scores.json.
"""
import argparse
import json
from pathlib import Path

import numpy as np

from bitgen.bitgen import load_pretrained
from bitgen.edge_bench import bench_edge, edge_table
from bitgen.evaluate import evaluate
from bitgen.export import add_scores, export_model
from bitgen.loader import load_pairs
from bitgen.runtime import load

def batches(encode, xs, size=64): return np.concatenate([np.asarray(encode(xs[i:i+size])) for i in range(0, len(xs), size)])

def orders(model, records):
    "Images by how well they fit each record's first sentence, best first"
    images = batches(model.encode_image, [r.image for r in records])
    texts = batches(model.encode_text, [r.captions[0] for r in records])
    return np.argsort(-(texts @ images.T), axis=1, kind='stable'), texts @ images.T

def says(model, records): return [c for r in records for c in model.caption([r.image])]

def beside(model, ours, records):
    "How far an export's answers are the model's"
    (order, cosines), (other, others), said = orders(model, records), orders(ours, records), says(ours, records)
    expected = says(model, records)
    return {'captions': len(records), 'equal captions': sum(a == b for a, b in zip(said, expected, strict=True)),
            'sentences with the same first ten': int((order[:, :10] == other[:, :10]).all(axis=1).sum()),
            'sentences with the same order': int((order == other).all(axis=1).sum()),
            'largest difference of a cosine': float(np.abs(cosines-others).max())}

def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--images', type=int, default=200)
    args = parser.parse_args()
    records, model = load_pairs([args.data])['val'], load_pretrained(args.checkpoint)
    metrics = ('retrieval', 'matching', 'captions') if model.can_match else ('retrieval', 'captions')
    out = {'PyTorch': {'scores': evaluate(model, records, metrics)}}
    for name, int8 in (('float', False), ('int8', True)):
        export_model(model, args.out/name, int8)
        print(name, flush=True)
        out[name] = {'scores': add_scores(args.out/name, records)} | beside(model, load(args.out/name), records[:args.images])
    bench = bench_edge([args.out/'float', args.out/'int8'], args.checkpoint, records[:8])
    for m in bench['models']: del m['scores']
    print(edge_table(bench | {'models': [m | {'scores': {}} for m in bench['models']]}))
    (args.out/'export_scores.json').write_text(json.dumps(out | {'bench': bench}, indent=1, ensure_ascii=False))

if __name__ == '__main__': main()
