"""Changes to adapters in a codec's latents: along attributes, and from one subject to another."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
