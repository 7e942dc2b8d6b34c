"""What is taken for a base model: folders of sister pipelines, single files; what is refused."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
import tiny_families
import tiny_pipelines
from lorasynth.adapter import Factor
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.base.families import family_of
from lorasynth.core.errors import BaseModelError, LayoutError

QUICK = SamplingConfig(steps=2, guidance=2.0)


def configurations(folder: Path, out: Path) -> Path:
    """A copy of a pipeline without its networks' weights."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    return out


def restated(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Stable Diffusion 1.5's blocks, and the pipeline's folder."""
    torch.manual_seed(0)
    pipeline = tiny_pipelines.shrunk_stable_diffusion(32)
    folder = tmp_path_factory.mktemp("sd") / "tiny"
    pipeline.save_pretrained(folder)
    return pipeline, folder


@pytest.mark.parametrize(
    ("family", "sister"),
    [
        ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
        ("StableDiffusionPipeline", "LatentConsistencyModelPipeline"),
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        ("FluxPipeline", "FluxKontextPipeline"),
        ("Lumina2Pipeline", "Lumina2Text2ImgPipeline"),
    ],
)
def test_folders_of_sister_pipelines_are_their_plain_pipeline(
    tmp_path: Path, family: str, sister: str
) -> None:
    tiny_families.build(family).save_pretrained(tmp_path / "x")
    plain = BaseModel.load(tmp_path / "x")
    restated(tmp_path / "x", "model_index.json", _class_name=sister)
    found = BaseModel.load(tmp_path / "x")
    assert found.row is family_of(family)
    made = [base.sample(["sad"], [0], config=QUICK) for base in (plain, found)]
    assert made[0].equal(made[1])


def test_stable_diffusion_3_may_lack_t5(tmp_path: Path) -> None:
    tiny_families.build("StableDiffusion3Pipeline").save_pretrained(tmp_path / "x")
    nothing = {part: [None, None] for part in ("text_encoder_3", "tokenizer_3")}
    restated(tmp_path / "x", "model_index.json", **nothing)
    base = BaseModel.load(tmp_path / "x")
    assert set(base.text_encoders) == {"text_encoder", "text_encoder_2"}
    assert base.sample(["sad"], [0], config=QUICK).shape == (1, 16, 16, 3)
    restated(tmp_path / "x", "model_index.json", text_encoder_2=[None, None])
    refused(tmp_path / "x", "text_encoder_2")


def test_a_checkpoint_of_stable_diffusion_is_its_pipeline(
    sd: tuple[Any, Path], tmp_path: Path
) -> None:
    pipeline, folder = sd
    path = tmp_path / "mine.safetensors"
    checkpoints.stable_diffusion(pipeline, path)
    with pytest.raises(BaseModelError, match=r"put the model's pipeline folder at .*mine "):
        BaseModel.load(path)
    configurations(folder, tmp_path / "mine")
    plain, found = BaseModel.load(folder), BaseModel.load(path)
    assert found.fingerprint == plain.fingerprint
    made = [base.sample(["sad", "a"], [0, 1], config=QUICK) for base in (plain, found)]
    assert made[0].equal(made[1])
    sketch = BaseModel.load(path, "meta")
    assert sketch.device.type == "meta"
    assert sketch.fingerprint == plain.fingerprint


def test_a_file_of_a_denoiser_takes_the_other_parts_of_a_folder(tmp_path: Path) -> None:
    pipeline = tiny_families.build("ZImagePipeline")
    pipeline.save_pretrained(tmp_path / "tuned")
    plain = BaseModel.load(tmp_path / "tuned")
    checkpoints.z_image(pipeline, tmp_path / "tuned.safetensors")
    shutil.rmtree(tmp_path / "tuned" / "transformer")
    tiny_families.build("ZImagePipeline").save_pretrained(tmp_path / "other")
    configurations(tmp_path / "other" / "transformer", tmp_path / "tuned" / "transformer")
    found = BaseModel.load(tmp_path / "tuned.safetensors")
    assert found.fingerprint == plain.fingerprint
    made = [base.sample(["sad"], [0], config=QUICK) for base in (plain, found)]
    assert made[0].equal(made[1])


# Refusals, one line each


def refused(name: Path | str, match: str, **options: Any) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with pytest.raises(BaseModelError, match=match) as caught:
        BaseModel.load(name, **options)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no")
    refused(path, "must be a whole safetensors file")
    for name in ("x.ckpt", "x.gguf"):
        (tmp_path / name).touch()
        refused(tmp_path / name, rf"{name} is not: pickles .* quantised")
    save_file({"unet.to_q.lora_A.weight": torch.zeros(1, 2)}, path)
    refused(path, "is a LoRA file")
    save_file({"x": torch.zeros(2)}, path)
    refused(path, "of a kind that diffusers knows")
    key = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({key: torch.zeros(2).to(torch.float8_e4m3fn)}, path)
    refused(path, "must not be quantised, but .*F8_E4M3")
    save_file({key: torch.zeros(2), "x.weight_scale": torch.zeros(1)}, path)
    refused(path, "must not be quantised, but .*x.weight_scale")
    save_file(
        {"head.modulation": torch.zeros(2), "patch_embedding.weight": torch.zeros(1536)}, path
    )
    refused(path, "video model's checkpoint")


def test_a_checkpoint_without_a_part_is_refused(sd: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, folder = sd
    path = tmp_path / "mine.safetensors"
    checkpoints.stable_diffusion(pipeline, path)
    configurations(folder, tmp_path / "mine")
    tensors = load_file(path)
    texts = {name: value for name, value in tensors.items() if not name.startswith("cond_stage")}
    save_file(texts, path)
    refused(path, "StableDiffusionPipeline or its denoiser, but .* cannot be loaded")
    restated(tmp_path / "mine", "model_index.json", _class_name="KolorsPipeline")
    refused(path, "is of a KolorsPipeline: see docs")


def test_unknown_families_and_quantised_folders_are_refused(
    sd: tuple[Any, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(sd[1], folder)
    restated(folder, "model_index.json", _class_name="KolorsPipeline")
    refused(folder, "ZImagePipeline, but .* is a KolorsPipeline: .*add a row to")
    restated(folder, "model_index.json", _class_name="StableDiffusionPipeline")
    restated(folder, "unet/config.json", quantization_config={"quant_method": "bitsandbytes"})
    refused(folder, r"quantised, but unet of .* is \(bitsandbytes\): use")


def test_models_for_something_else_are_refused(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.shrunk_stable_diffusion(32)
    pipeline.unet = type(pipeline.unet).from_config(pipeline.unet.config, in_channels=9)
    pipeline.save_pretrained(tmp_path / "inpainting")
    refused(tmp_path / "inpainting", "takes 9 channels, not 4, as models for inpainting")
    tiny_families.wan().save_pretrained(tmp_path / "wan")
    second = ["diffusers", "WanTransformer3DModel"]
    restated(tmp_path / "wan", "model_index.json", transformer_2=second)
    refused(tmp_path / "wan", "has two, for high and low noise", image_size=16)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    tiny_families.build("Flux2KleinPipeline").save_pretrained(tmp_path / "x")
    configurations(tmp_path / "x", tmp_path / "y")
    refused(tmp_path / "y", "whole Flux2KleinPipeline .* cannot be loaded")


def test_an_adapter_of_another_family_or_size_is_refused(sd: tuple[Any, Path]) -> None:
    base = BaseModel.load(sd[1])
    name, layer = next(iter(base.target_linears(("to_q",)).items()))
    wide = Factor(torch.zeros(1, 2, layer.in_features + 1), torch.zeros(1, layer.out_features, 2))
    with (
        pytest.raises(LayoutError, match=r"another size of this model \(as FLUX.2 klein"),
        base.attached({name: wide}),
    ):
        pass
    other = {"layers.0.attention.to_q": wide}
    with pytest.raises(LayoutError, match="made for another base model"), base.attached(other):
        pass
