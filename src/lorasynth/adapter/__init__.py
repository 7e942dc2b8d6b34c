"""Adapters: low-rank factors, the layout of flat vectors, canonical form and gauge, LoRA files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
