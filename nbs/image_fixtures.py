"Images, tables and shards for the tests of 04_images, 05_datasets and 06_verify, all in one temporary folder"
import io
import json
import struct
import sys
import tarfile
import tempfile
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from bitgen.images import ImageError, open_image

folder = Path(tempfile.mkdtemp())


def flat(k):
    "A small image of one color that depends on `k`, so that a record's image can be told by its value"
    return Image.new('RGB', (8, 8), (40*k % 256, 200, 20*k % 256))


def put(name, content):
    "Write text, bytes, an image or anything that JSON can say to `folder/name`"
    file = folder/name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Image.Image): content.save(file)
    elif isinstance(content, bytes): file.write_bytes(content)
    else: file.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return file


@contextmanager
def quiet():
    "Warnings are not the point here"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def first(image):
    "The first pixel"
    return open_image(image).getpixel((0, 0))


def alike(image, other, by=3):
    "Whether first pixels agree; JPEG is not exact"
    return np.abs(np.subtract(first(image), first(other))).max() <= by


def fault(image):
    "Kind and words of the refusal; None for an image that opens"
    try: open_image(image)
    except ImageError as e: return e.kind, str(e)


def claims(w, h):
    "A PNG that says it is `w`×`h` and holds nothing"
    head = b'IHDR'+struct.pack('>2I5B', w, h, 8, 2, 0, 0, 0)
    chunk = struct.pack('>I', 13)+head+struct.pack('>I', zlib.crc32(head))
    return b'\x89PNG\r\n\x1a\n'+chunk+struct.pack('>I', 0)+b'IDAT'


def png(k):
    "The bytes of `flat(k)` as PNG"
    return put('one.png', flat(k)).read_bytes()


def tar(name, *members, end=bytes(1024)):
    "A shard of (name, content) pairs, or of headers made by hand"
    out = io.BytesIO()
    for m in members:
        info, data = m if isinstance(m[0], tarfile.TarInfo) else (tarfile.TarInfo(m[0]), m[1])
        data = data.encode() if isinstance(data, str) else data
        if not isinstance(m[0], tarfile.TarInfo): info.size = len(data)
        out.write(info.tobuf() + data + bytes(-len(data) % 512))
    return str(put(name, out.getvalue()+end))


class Table(dict):
    "Columns, as a table of the Hub's library `datasets` has them"
    def __getitem__(self, k):
        return super().__getitem__(k) if isinstance(k, str) else {c: v[k] for c, v in self.items()}
    def __len__(self): return len(next(iter(self.values())))
    column_names = property(lambda self: list(self))


@contextmanager
def on_hub(name, **tables):
    "The Hub holds `tables` under `name` meanwhile"
    sys.modules['datasets'] = ModuleType('datasets')
    sys.modules['datasets'].load_dataset = lambda asked: {name: tables}[asked]
    try: yield
    finally: del sys.modules['datasets']
