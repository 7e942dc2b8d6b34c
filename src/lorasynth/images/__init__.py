"""Images and their subjects: photos in folders, tar and Parquet files; avatars that are drawn."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
