"""One benchmark: contenders make images of unseen subjects, and metrics judge them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
