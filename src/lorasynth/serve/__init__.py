"""The HTTP service: photos in, LoRA files and images out, for many users at once."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
