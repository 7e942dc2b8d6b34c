"""A pipeline's modules from its configurations alone, and what does not fit them."""

import json
from pathlib import Path

import pytest
import torch

from lorasynth.adapter import Adapter, Factor
from lorasynth.base import BaseModel
from lorasynth.base.outline import outline
from lorasynth.core.errors import BaseModelError
from tiny_pipelines import KINDS

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def pair(width: int, out: int) -> Factor:
    return Factor(torch.ones(2, width), torch.ones(out, 2))


def test_it_has_the_modules_and_widths_of_the_pipeline(pipeline_folder: Path) -> None:
    base, drawn = BaseModel.load(pipeline_folder), outline(str(pipeline_folder))
    for component, network in {"": base.denoiser, **base.text_encoders}.items():
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        assert {n: tuple(p.shape) for n, p in drawn.parts[component].named_parameters()} == shapes
    assert all(p.device.type == "meta" for p in drawn.parts[""].parameters())


def test_what_fits_and_what_does_not(pipeline_folder: Path) -> None:
    drawn = outline(str(pipeline_folder))
    fits = {QUERY: pair(32, 32), TEXT: pair(16, 16), "conv_in": pair(4 * 9, 32)}
    kernels = {"conv_in": (3, 3)}
    assert drawn.misfits(Adapter(fits, kernels=kernels).layout) == []
    misfits = {
        QUERY: (pair(32, 31), "32 -> 31, but the base model's is 32 -> 32"),
        "conv_in": (pair(4 * 9, 32), "36 -> 32, but the base model's is 36 -> 32 with a kernel"),
        "mid_block": (pair(4, 4), "no such linear layer or convolution"),
        "not.there": (pair(4, 4), "no such linear layer or convolution"),
        "text_encoder_2.x": (pair(4, 4), "the base model has no text_encoder_2"),
    }
    lines = drawn.misfits(Adapter({m: factor for m, (factor, _) in misfits.items()}).layout)
    for line, (module, (_, reason)) in zip(lines, sorted(misfits.items()), strict=True):
        assert line.startswith(f"{module}: ")
        assert reason in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "unet" / "config.json").unlink(), "with unet/config.json"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "must hold a JSON object"),
        (lambda folder: (folder / "model_index.json").write_text("{}"), "a U-Net or a transformer"),
        (
            lambda folder: (folder / "unet" / "config.json").write_text(
                json.dumps({"block_out_channels": [5]})
            ),
            "unet of .* must be a UNet2DConditionModel of diffusers",
        ),
    ],
)
def test_a_folder_that_is_no_pipeline(make_pipeline, tmp_path: Path, change, message) -> None:
    folder = make_pipeline(tmp_path / "base")
    change(folder)
    with pytest.raises(BaseModelError, match=message) as caught:
        outline(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_the_meta_device_is_told_by_its_files(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    KINDS[kind]().save_pretrained(tmp_path / "tiny")
    whole, sketch = (BaseModel.load(tmp_path / "tiny", device) for device in ("cpu", "meta"))
    assert sketch.fingerprint == whole.fingerprint
    assert sketch.latent_shape == whole.latent_shape
    assert sketch.image_size == whole.image_size
    names = sketch.target_linears(["to_q"])
    assert names.keys() == whole.target_linears(["to_q"]).keys()
    assert all(parameter.device.type == "meta" for parameter in sketch.denoiser.parameters())
    for path in (tmp_path / "tiny" / whole.denoiser_part).glob("*.safetensors"):
        path.unlink()
    assert BaseModel.load(tmp_path / "tiny", "meta").fingerprint == ""
