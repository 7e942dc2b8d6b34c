"""Ctrl-C in the commands that run the whole system: nothing half-written, and they go on."""

from pathlib import Path

import pytest

from command_line import Run, interrupt
from lorasynth.avatars.bundle import verify
from lorasynth.base import BaseModel
from lorasynth.core.atomic import write_json
from lorasynth.core.config import to_dict
from lorasynth.engine.trainer import Trainer

from .conftest import tiny_config
from .test_studies import FEW, parts_of


def test_evaluating(
    bundle_run: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, parts = tmp_path / "report.json", parts_of(bundle_run / "bundle")
    words = ["evaluate", *parts, *FEW, "--cache", tmp_path / "cache", "-o", out, "--device", "cpu"]
    with monkeypatch.context() as patch:
        interrupt(patch, BaseModel, "decode_latents", calls=4)  # of eight, one a contender
        result = run(*words)
    assert result.status == 130
    assert "run the same command to go on" in result.err.splitlines()[-1]
    assert not out.exists()
    assert len(list((tmp_path / "cache").glob("measured-*"))) == 3
    # What was measured before is not again.
    interrupt(monkeypatch, BaseModel, "decode_latents", calls=6)
    assert run(*words).status == 0
    assert out.is_file()


@pytest.mark.long
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
