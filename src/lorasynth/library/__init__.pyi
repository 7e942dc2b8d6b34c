from .statistics import Statistics as Statistics
from .statistics import streaming_statistics as streaming_statistics
from .store import Library as Library
from .store import LibraryInfo as LibraryInfo
from .store import LibraryReport as LibraryReport
