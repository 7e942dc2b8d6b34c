import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lorasynth.adapter import Layout, canonicalise
from lorasynth.library import Library

WRITER = Path(__file__).with_name("killed_writer.py")


@pytest.fixture
def library(layout: Layout, tmp_path: Path) -> Library:
    return Library.create(tmp_path / "lib", layout)


def kill_in_mid_append(path: Path, delay: float) -> None:
    command = [sys.executable, str(WRITER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(2):
            assert writer.stdout.readline() == b"appended\n"
        time.sleep(delay)
        writer.kill()


def leftovers(path: Path) -> list[Path]:
    return list(path.rglob(".tmp-*"))


def test_sigkill_leaves_every_complete_shard_and_nothing_half(
    library: Library, make_factors, make_subjects
) -> None:
    path, before = library.path, 0
    for delay in (0.0, 0.004, 0.013):
        kill_in_mid_append(path, delay)
        library.refresh()
        assert library.check().damages == ()
        assert len(library) >= before + 2, "complete shards must stay"
        assert library.ids == [f"s{row}" for row in range(len(library))], "none twice, none lost"
        before = len(library)

    half = path / "shards" / ".tmp-0123456789ab-000999"
    half.mkdir()
    (half / "vectors.npy").write_bytes(b"half")
    reader = Library.open(path)
    assert len(reader) == before, "leftovers are ignored"
    library.append(make_factors(before, before + 1), make_subjects(before, before + 1))
    assert leftovers(path) == [], "leftovers are removed by the next writer"
    raw = make_factors(0, before + 1)
    expected = library.layout.flatten(canonicalise(raw, "procrustes", library.reference))
    torch.testing.assert_close(library.all_vectors(), expected)


def test_every_point_of_a_write_is_safe(
    library: Library, make_factors, make_subjects, monkeypatch
) -> None:
    """Stop a write after each of its renames and syncs, without any clean-up."""
    from lorasynth.core import atomic

    steps = ("_sync_file", "sync_directory")
    stopped = 0
    for limit in range(60):
        calls = 0

        def stop(*_args, limit=limit) -> None:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise KeyboardInterrupt

        for step in steps:
            monkeypatch.setattr(atomic, step, stop)
        start = len(library)
        try:
            library.append(make_factors(start, start + 1), make_subjects(start, start + 1))
        except KeyboardInterrupt:
            stopped += 1
            reopened = Library.open(library.path)
            assert reopened.check().damages == ()
            assert len(reopened) in (start, start + 1)
            library.refresh()
        else:
            break
    assert stopped > 5
    assert len(library) == len(set(library.ids)) > 0
