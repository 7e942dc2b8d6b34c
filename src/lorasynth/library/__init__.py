"""Libraries: many canonical adapters of one layout on disk, their statistics and splits."""

from lorasynth.library.dataset import LibraryDataset
from lorasynth.library.splits import DEFAULT_FRACTIONS, split_of
from lorasynth.library.statistics import Statistics, streaming_statistics
from lorasynth.library.store import Library, LibraryInfo, LibraryReport, LibraryView

__all__ = [
    "DEFAULT_FRACTIONS",
    "Library",
    "LibraryDataset",
    "LibraryInfo",
    "LibraryReport",
    "LibraryView",
    "Statistics",
    "split_of",
    "streaming_statistics",
]
