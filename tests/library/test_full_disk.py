"""A disk that is full in the middle of an append costs that append and nothing else."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorasynth.core.errors import LorasynthError
from lorasynth.library import Library


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(fill, make_factors, make_subjects, small_disk: Path) -> None:
    library = fill(small_disk / "lib", 3)
    with pytest.raises(LorasynthError, match="could not write") as caught:
        library.append(make_factors(3, 2000), make_subjects(3, 2000))
    assert "\n" not in str(caught.value)
    assert list(small_disk.rglob(".tmp-*")) == [], "what was half written is gone"
    reopened = Library.open(small_disk / "lib")
    assert reopened.ids == ["s0", "s1", "s2"]
    assert reopened.check().damages == ()
    reopened.append(make_factors(3, 4), make_subjects(3, 4))
    assert len(Library.open(small_disk / "lib")) == 4
