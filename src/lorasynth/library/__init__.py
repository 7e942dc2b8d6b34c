"""Libraries: many canonical adapters of one layout on disk, their statistics."""

from lorasynth.library.dataset import LibraryDataset
from lorasynth.library.statistics import Statistics, streaming_statistics
from lorasynth.library.store import Library, LibraryInfo, LibraryReport, LibraryView

__all__ = [
    "Library",
    "LibraryDataset",
    "LibraryInfo",
    "LibraryReport",
    "LibraryView",
    "Statistics",
    "streaming_statistics",
]
