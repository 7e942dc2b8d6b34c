"""The trainer of one model, and the loop that trains adapters for many subjects at once."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
