"""Collection: train an adapter for each of many subjects, in fleets, into a library."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
