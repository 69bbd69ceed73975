"""Small vision-language models for edge devices: train, evaluate, use"""
__version__ = "0.1.0"


def __getattr__(name):  # imported when asked for: `bitgen --help` should not wait for torch
    if name == 'EmberVLM':
        from .embervlm import EmberVLM
        return EmberVLM
    if name == 'BitGen':
        from .bitgen import BitGen
        return BitGen
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
