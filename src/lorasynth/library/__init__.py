"""Libraries: many canonical adapters of one layout on disk, their statistics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
