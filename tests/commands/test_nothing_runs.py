"""Nothing that a folder or file says is imported, run, asked of the hub or fetched."""

import builtins
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import Run
from lorasynth.base.outline import outline
from lorasynth.core.errors import LorasynthError
from lorasynth.evaluation.clip_score import ClipScore

from .conftest import World

CODE = """
open({ran!r}, "w").write("ran")
from transformers import PretrainedConfig, PreTrainedModel
class C(PretrainedConfig): model_type = "c"
class M(PreTrainedModel): config_class = C
"""
AUTO_MAP = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "model.M")


@pytest.fixture(autouse=True)
def nothing_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection, no process, no question; with a hub that could be asked."""

    def refuse(*arguments: Any, **options: Any) -> None:
        pytest.fail(f"something was started or asked: {arguments}")

    for place, name in (
        (socket.socket, "connect"), (socket, "getaddrinfo"), (subprocess, "Popen"),
        (os, "system"), (builtins, "input"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def sign(folder: Path) -> None:
    """Make the checksums of a synthesizer right."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "checksums.json")
    sums = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }
    (folder / "checksums.json").write_text(json.dumps(sums))


def with_code(folder: Path) -> Path:
    """A folder with code of its own; returns what would appear if that ran."""
    folder.mkdir(parents=True, exist_ok=True)
    ran = folder.parent / "RAN"
    (folder / "model.py").write_text(CODE.format(ran=str(ran)))
    return ran


@pytest.mark.parametrize("kind", ["rag", "encoder-decoder", "clip_vision_model", "none-such"])
def test_an_encoder_that_comes_with_code(world: World, run: Run, tmp_path: Path, kind: str) -> None:
    made, ran = tmp_path / "made", with_code(tmp_path / "code")
    shutil.copytree(world.synthesizer, made)
    shutil.rmtree(made / "encoder")
    (made / "encoder").mkdir()
    own = {"model_type": kind, "auto_map": AUTO_MAP, "_name_or_path": str(tmp_path / "code")}
    stated = {"kind": "vision", "name": "x", "model": "m", "image_size": 8, "mean": [0, 0, 0]}
    stated |= {"std": [1, 1, 1], "width": 4, "architecture": own}
    (made / "encoder/config.json").write_text(json.dumps(stated))
    sign(made)
    result = run("synth", world.photo, "-o", tmp_path / "x.safetensors", "--synthesizer", made)
    result.is_one_error("own code is never run")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_a_model_folder_that_comes_with_code(run: Run, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    ran = with_code(folder)
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / file).write_text(json.dumps({"model_type": "c", "auto_map": AUTO_MAP}))
    run("encoders", "make", f"{name}:{folder}", "-o", tmp_path / "out").is_one_error(str(folder))
    with pytest.raises(LorasynthError):
        ClipScore.load(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize(
    "part",
    [["evil", "Model"], ["os", "system"], ["model", "M"], [str, "x"], ["transformers", "AutoModel"],
     ["diffusers", "utils"], ["transformers"], ["transformers", "AutoTokenizer"]],
)  # fmt: skip
def test_a_base_model_that_names_code(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: list[Any]
) -> None:
    base = shutil.copytree(world.base, tmp_path / "base")
    ran = with_code(base / "text_encoder")
    shutil.copy(base / "text_encoder/model.py", tmp_path / "evil.py")
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((base / "model_index.json").read_text())
    index["text_encoder"] = [str(one) for one in part]
    (base / "model_index.json").write_text(json.dumps(index))
    config = json.loads((base / "text_encoder/config.json").read_text())
    (base / "text_encoder/config.json").write_text(json.dumps({**config, "auto_map": AUTO_MAP}))
    run("images", "--base", base, "--prompt", "x", "-o", tmp_path / "x.png").is_one_error("base")
    with pytest.raises(LorasynthError):
        outline(str(base))
    assert not ran.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "words",
    [
        ["synth", "PHOTO", "-o", "x.safetensors"],
        ["images", "--prompt", "x", "-o", "x.png"],
        ["sample", "-o", "x"],
        ["edit", "PHOTO", "-o", "x.safetensors", "glasses=1"],
        ["refine", "LORA", "PHOTO", "-o", "x.safetensors"],
        ["images", "--base", "models/sd15", "--prompt", "x", "-o", "x.png"],
        ["synth", "PHOTO", "-o", "x.safetensors", "--synthesizer", "my/synthesizer"],
        ["import", "w2w", "my/files", "-o", "x"],
        ["encoders", "make", "clip:models/clip", "-o", "x"],
        ["evaluate", "PHOTO", "-o", "x.json", "--encoder", "bundle/encoders/avatar"],
    ],
)
def test_a_path_that_is_not_there_is_not_fetched(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lorasynth.core.places.shipped", lambda: None)
    known = {"PHOTO": world.photo, "LORA": world.lora}
    result = run(*(known.get(word, word) for word in words))
    assert result.status == 2, result.err
    assert "Traceback" not in result.err
    assert not any(tmp_path.rglob("*.*"))


def test_libraries_are_told_to_report_nothing() -> None:
    import lorasynth  # noqa: F401

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
