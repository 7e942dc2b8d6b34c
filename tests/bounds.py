"""What refusing a file may cost."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def cheap(seconds: float = 1.0, megabytes: int = 100) -> Iterator[None]:
    """Assert that what is done takes no longer and no more memory."""
    linux = sys.platform == "linux"
    if linux:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    before, began = peak() if linux else 0, time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"it took {took:.1f} s"
    if linux:
        assert peak() - before < megabytes << 20, f"it took {(peak() - before) >> 20} MB"


def peak() -> int:
    """The most memory that this process had, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
