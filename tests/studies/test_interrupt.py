"""Ctrl-C in the commands that run the whole system: nothing half-written, and they go on."""

from pathlib import Path

import pytest
import torch

from command_line import Run, interrupt
from lorasynth.avatars.bundle import verify
from lorasynth.base import BaseModel
from lorasynth.collect import collector
from lorasynth.condition import TrainedEncoder
from lorasynth.core.atomic import write_json
from lorasynth.core.config import to_dict
from lorasynth.engine.trainer import Trainer

from .conftest import tiny_config


@pytest.mark.parametrize("command", ["evaluate", "demo"])
def test_measuring(
    bundle_run: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    # The tiny encoder is not trained, so what it says of faces is chance.
    monkeypatch.setattr(TrainedEncoder, "presence", lambda _, images: torch.ones(len(images)))
    out = tmp_path / "out"
    write = {"evaluate": ("--json", out, "--cache", tmp_path / "cache"), "demo": ("--out", out)}
    arguments = (command, "--subjects", 2, "--bundle", bundle_run / "bundle", *write[command])
    with monkeypatch.context() as patch:
        interrupt(patch, BaseModel, "decode_latents", calls=2)
        result = run(*arguments, "--device", "cpu")
    assert result.status == 130
    assert "run the same command to go on" in result.err.splitlines()[-1]
    page = out if command == "evaluate" else out / "index.html"
    assert not page.exists()
    # What was trained before is not trained again.
    monkeypatch.setattr(collector, "train_fleet", lambda *_, **__: pytest.fail("trained again"))
    assert run(*arguments, "--device", "cpu").status == 0
    assert page.is_file()


def test_making_a_bundle(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--run", tmp_path / "run", "--workers", 1, "--device", "cpu")
    write_json(tmp_path / "tiny.json", to_dict(tiny_config()))
    arguments = ("avatars", "bundle", tmp_path / "bundle", *where)
    arguments += ("--config", tmp_path / "tiny.json")
    with monkeypatch.context() as patch:
        interrupt(patch, Trainer, "_step", calls=7)  # in the judge, after perception and base model
        assert run(*arguments).status == 130
    assert sorted(path.name for path in (tmp_path / "run" / "out").iterdir()) == [
        "autoencoder",
        "base",
        "perception",
    ]
    assert not (tmp_path / "bundle").exists()
    assert run(*arguments).status == 0
    verify(tmp_path / "bundle")
