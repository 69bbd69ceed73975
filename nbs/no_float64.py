"A device that refuses float64, as Apple's GPU does: for tests of 11_vision, 16_memory, 20_losses, 24_bitgen, 31_evaluate"
from unittest import mock

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class OnDevice(torch.Tensor):
    "A tensor that says it is on the device 'lazy', which every build of torch knows; its values are on the CPU"
    @staticmethod
    def __new__(cls, values, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device='lazy',
            requires_grad=requires_grad)

    def __init__(self, values, requires_grad=False): self.values = values
    def __repr__(self): return f'OnDevice({self.values})'
    def tolist(self): return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})


def to_device(x):
    "What an operation gives there; TypeError in double precision, in the words of torch"
    if x.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
                        'float64. Please use float32 instead.')
    return OnDevice(x)


def run(func, args, kwargs):
    "An operation on the device, unless it makes something on the CPU"
    found = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in found if isinstance(x, OnDevice)]
    named = kwargs.get('device')
    aten = torch.ops.aten
    mixes = aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_
    if there and func.overloadpacket not in mixes:                 # indices may be on the CPU, as in torch
        strangers = [x for x in found if not isinstance(x, OnDevice) and x.ndim and x.device.type == 'cpu']
        if strangers: raise RuntimeError(f'{func}: tensors on the device and on the CPU')
    wraps = torch.device(named).type == 'lazy' if named is not None else bool(there)
    if named is not None: kwargs = kwargs | {'device': torch.device('cpu')}
    def inner(x): return x.values if isinstance(x, OnDevice) else x
    if func is aten.copy_.default:
        to, source = args[:2]
        if isinstance(to, OnDevice) and source.dtype == torch.float64: to_device(source)
        inner(to).copy_(inner(source))
        return to
    out = func(*pytree.tree_map(inner, args), **pytree.tree_map(inner, kwargs))
    if func._schema.is_mutable and there: return args[0]           # in place
    def wrap(x): return to_device(x) if isinstance(x, torch.Tensor) and wraps else x
    return pytree.tree_map(wrap, out)


def patches():
    "What asks for a device by name, and would not know this one"
    autocast, enabled, tensor = torch.autocast, torch.is_autocast_enabled, torch.tensor
    def as_cpu(f):
        def g(*args, **kwargs): return f(*['cpu' if x == 'lazy' else x for x in args], **kwargs)
        return g
    def make(data, device=None, **kwargs):
        made = tensor(data, **kwargs)
        return made if device is None else made.to(device)
    with_names = {'autocast': as_cpu(autocast), 'is_autocast_enabled': as_cpu(enabled), 'tensor': make}
    return [mock.patch(f'torch.{name}', f) for name, f in with_names.items()]


class NoFloat64(TorchDispatchMode):
    "While it is on, the device 'lazy' can be named"
    def __enter__(self):
        self.patches = patches()
        for p in self.patches: p.start()
        return super().__enter__()

    def __exit__(self, *error):
        for p in self.patches: p.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})
