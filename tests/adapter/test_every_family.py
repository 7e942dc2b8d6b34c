"""From images to a LoRA file in other programs, on a tiny pipeline of every family.

diffusers' own pipelines load the file.  ComfyUI's key maps and weight adapters read it where
LORASYNTH_COMFYUI names a Python that has them (`make comfyui`); what they read is stated by
`inspect`, which test_comfyui.py holds to the real ones at true widths.
"""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_models import MODELS
from diffusers import DiffusionPipeline
from PIL import Image
from readers import NAME, changed, exact
from test_comfyui import PYTHON, read_exactly

import tiny_families
import tiny_pipelines
from command_line import call
from commands.conftest import DENOISER, PRETRAIN, QUICK, TRAINING, save_encoder, write_image
from lorasynth.adapter import Adapter
from lorasynth.adapter.families import FAMILIES
from lorasynth.adapter.files import read
from lorasynth.adapter.inspection import readings
from lorasynth.base import BASE_MODELS, BaseModel

#: What `--family` calls the LoRA files of each family.
FILES = {
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux1",
    "Flux2Pipeline": "flux2",
    "Flux2KleinPipeline": "flux2",
    "ChromaPipeline": "chroma",
    "ZImagePipeline": "z-image",
    "QwenImagePipeline": "qwen-image",
    "Lumina2Pipeline": "lumina2",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "SanaPipeline": "sana",
    "WanPipeline": "wan",
    "AuraFlowPipeline": "auraflow",
    "HiDreamImagePipeline": "hidream",
}
#: Where published names need true widths: to tell FLUX.1 and Chroma from FLUX.2, and for diffusers,
#: which splits Lumina's fused layers by them.
FORMAT = dict.fromkeys(("FluxPipeline", "ChromaPipeline", "Lumina2Pipeline"), "diffusers")
SIDE = dict.fromkeys(FILES, 16) | {"Lumina2Pipeline": 32, "SanaPipeline": 32}


def pipeline_of(family: str) -> Any:
    if family == "StableDiffusionPipeline":  # whose layers have names of the true ones
        torch.manual_seed(0)
        return tiny_pipelines.shrunk_stable_diffusion(32)
    return tiny_families.build(family)


def chain(family: str, root: Path) -> Path:
    """All commands, each on what the one before it made; the LoRA file."""
    pipeline_of(family).save_pretrained(root / "base")
    for seed, name in enumerate(("ann/0", "ann/1", "ben/0", "ben/1")):
        write_image(root / "people" / f"{name}.png", seed, 32)
    encoder, lora = save_encoder(root / "encoder"), root / "me.safetensors"
    model = ["--base", root / "base", "--device", "cpu"]
    base, watched = [*model, "--size", SIDE[family]], ["--encoder", encoder, "--run", root / "run"]
    library, codec, synthesizer = root / "library", root / "codec", root / "synthesizer"
    sets = [*TRAINING, *DENOISER]
    start = ["--init-from", root / "predictor", "--encoder", encoder]
    form = ["--format", FORMAT.get(family, "auto")]
    shown = ["--prompt", "a portrait of sks", "--lora", lora, "--steps", 2, "-n", 1]
    steps: list[list[Any]] = [
        ["pretrain", root / "people", *base, *watched, "-o", root / "predictor", *PRETRAIN],
        ["collect", root / "people", *base, *start, "-o", library, *QUICK],
        ["fit", "pca", library, "-o", codec, "--latents", 1, "--device", "cpu"],
        ["train", library, "--codec", codec, *model, *watched, "-o", synthesizer, *sets],
        ["synth", root / "people" / "ann", "--synthesizer", synthesizer, "-o", lora, *form],
        ["images", *shown, *base, "-o", root / "me.png"],
    ]
    for arguments in steps:
        assert call(arguments) == 0, arguments
    with Image.open(root / "me.png") as image:
        assert image.size == (SIDE[family], SIDE[family])
    return lora


def in_diffusers(lora: Path, base: Path) -> Any:
    """What `load_lora_weights` changes."""
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.load_lora_weights(lora, adapter_name=NAME)
    return changed(getattr(pipe, "unet", None) or pipe.transformer)


def in_comfyui(family: str, adapter: Adapter, root: Path) -> set[str]:
    """The modules that ComfyUI changes as it should."""
    key = FILES[family]
    (root / "files").mkdir()
    (root / "read").mkdir()
    file = root / "files" / f"{key}--me.safetensors"
    assert (
        call(["convert", root / "me.safetensors", file, "--for", "comfyui", "--family", key]) == 0
    )
    said = readings(read(file, FAMILIES[key]))[1]
    assert said.program == "ComfyUI"
    assert said.modules == len(adapter.factors)
    if not PYTHON:
        return set(adapter.factors)
    probe = Path(__file__).with_name("comfyui_probe.py")
    subprocess.run([PYTHON, probe, root / "files", root / "read"], check=True, timeout=1200)
    return read_exactly(key, adapter, root / "read" / file.name)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("family", BASE_MODELS.names())
def test_from_images_to_other_programs(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where runs/ goes
    lora = chain(family, tmp_path)
    adapter = Adapter.load(lora)
    base = BaseModel.load(tmp_path / "base", image_size=SIDE[family])
    assert adapter.factors.keys() == base.target_linears(base.default_targets).keys()
    # Of one token, as in the middle of a tiny U-Net, attention has nothing to learn.
    moved = {module: factor for module, factor in adapter.factors.items() if factor.B.any()}
    assert len(moved) > 0.9 * len(adapter.factors)
    if hasattr(base.pipeline, "load_lora_weights"):
        found = in_diffusers(lora, tmp_path / "base")
        assert exact(moved, found) == moved.keys()
        assert found.keys() == adapter.factors.keys()
    else:
        assert family in ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    if FILES[family] in MODELS:
        assert in_comfyui(family, adapter, tmp_path) >= moved.keys()
    else:
        assert family == "SanaPipeline"
