"""Trained through the base model's own loss: a regression with its codec, and an IP-Adapter."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
