"""States in a folder: when it is time for one, what reading one takes."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bounds import peak
from lorasynth.core.checkpoint import Checkpoint, forget
from lorasynth.core.errors import ConfigError


def test_what_is_saved_in_between_does_not_put_off_the_next(tmp_path: Path, monkeypatch) -> None:
    now = 0
    monkeypatch.setattr("lorasynth.core.checkpoint.time.monotonic", lambda: now)
    checkpoint, due = Checkpoint(tmp_path, {}, seconds=10.0), []
    for now in range(1, 31):
        if checkpoint.due():
            due.append(now)
        checkpoint.save("best", {"x": torch.zeros(1)})
    assert due == [10, 20, 30]


def test_what_a_killed_run_left_is_deleted(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run", {})
    checkpoint.save("state", {"x": torch.zeros(1)})
    left = tmp_path / "run/.tmp-0123456789ab-state.safetensors"
    left.mkdir()
    (left / "half").write_text("half")
    forget(tmp_path / "run", "state")
    assert not (tmp_path / "run").exists()


def test_only_states_are_deleted_and_only_by_their_names(tmp_path: Path) -> None:
    theirs = {name: tmp_path / f"{name}.safetensors" for name in ("mine", "basis-lora", "text")}
    save_file({"x": torch.ones(1)}, theirs["mine"], metadata={"format": "pt"})
    save_file({"x": torch.ones(1)}, theirs["basis-lora"])
    theirs["text"].write_text("precious")
    checkpoint = Checkpoint(tmp_path, {})
    for name in ("basis-1", "of-another"):
        checkpoint.save(name, {"x": torch.zeros(1)})
    forget(tmp_path, "basis-*", "mine", "text")
    kept = [*theirs.values(), tmp_path / "of-another.safetensors"]
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    for name in theirs:
        with pytest.raises(ConfigError, match="is something else"):
            checkpoint.save(name, {"x": torch.zeros(1)})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_state_is_in_memory_once_while_it_is_read(tmp_path: Path) -> None:
    checkpoint, size = Checkpoint(tmp_path, {}), 64 << 20
    checkpoint.save("state", {name: torch.rand(size // 16) for name in "abcd"})
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    before = peak()
    state = checkpoint.load("state")
    assert state is not None
    assert peak() - before < 1.3 * size
