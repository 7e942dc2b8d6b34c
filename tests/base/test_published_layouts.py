"""Pipelines laid out as they are on the hub, not as the installed diffusers would save them.

Tokenizers there are `vocab.json` and `merges.txt`, descriptions lack what was added since, the
sampler is another one, parts lie beside their halves and pickles, and large ones in several files.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorasynth.base import BaseModel, SamplingConfig
from tiny_pipelines import build

TRAINED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PNDM = {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
EULER = {"interpolation_type": "linear", "timestep_spacing": "leading", "steps_offset": 1}
#: Of each kind: the sampler on the hub, and entries of its index.
PUBLISHED: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "StableDiffusionPipeline": (
        {"_class_name": "PNDMScheduler", **TRAINED, **PNDM},
        {
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        },
    ),
    "StableDiffusionXLPipeline": (
        {"_class_name": "EulerDiscreteScheduler", **TRAINED, **EULER},
        {"force_zeros_for_empty_prompt": True, "add_watermarker": None},
    ),
    "FluxPipeline": (None, {}),
}
PROCESSOR = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "crop_size": 224,
    "size": 224,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
QUICK = SamplingConfig(steps=2, guidance=2.0)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def spell_tokenizer(folder: Path) -> None:
    """CLIP's files of before there was a `tokenizer.json`."""
    whole = json.loads((folder / "tokenizer.json").read_text())["model"]
    if whole["type"] != "BPE":
        return
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in whole["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")

    def older(value: dict[str, Any]) -> None:
        value.pop("backend", None)
        for name in ("bos_token", "eos_token", "unk_token"):
            token = {"__type": "AddedToken", "content": value[name], "normalized": True}
            value[name] = token | {"lstrip": False, "rstrip": False, "single_word": False}
        value |= {"do_lower_case": True, "errors": "replace", "add_prefix_space": False}

    edit(folder / "tokenizer_config.json", older)


def as_published(pipeline: Any, folder: Path) -> None:
    """Save a pipeline, and lay it out as on the hub."""
    scheduler, entries = PUBLISHED[type(pipeline).__name__]
    pipeline.save_pretrained(folder, max_shard_size="20KB")
    if scheduler is not None:
        (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
        edit(folder / "model_index.json", lambda index: index.update(
            scheduler=["diffusers", scheduler["_class_name"]]
        ))  # fmt: skip
    edit(folder / "model_index.json", lambda index: index.update(entries))
    for name, part in pipeline.components.items():
        place = folder / name
        if name.startswith("tokenizer"):
            spell_tokenizer(place)
        elif isinstance(part, nn.Module):
            edit(place / "config.json", lambda value: value.update(_diffusers_version="0.9.0"))
            stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
            (place / f"{stem}.bin").write_bytes(b"a pickle, which nobody reads")
            shutil.copy(next(place.glob("*.safetensors")), place / f"{stem}.fp16.safetensors")
    for name, file, stated in (
        ("safety_checker", "config.json", {}),
        ("feature_extractor", "preprocessor_config.json", PROCESSOR),
    ):
        if name in entries:
            (folder / name).mkdir()
            (folder / name / file).write_text(json.dumps(stated))
    (folder / "v1-5-pruned.ckpt").write_bytes(b"a pickle, which nobody reads")


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_folder_as_it_is_on_the_hub_loads(kind: str, tmp_path: Path) -> None:
    pipeline = build(kind)
    as_published(pipeline, tmp_path / "hub")
    assert list((tmp_path / "hub").rglob("*.safetensors.index.json")), "some part has several files"
    pipeline.save_pretrained(tmp_path / "ours")
    hub, ours = (BaseModel.load(tmp_path / name) for name in ("hub", "ours"))
    assert type(hub) is type(ours)
    assert hub.latent_shape == ours.latent_shape
    prompts = ["a portrait of sks, smiling", "sad, red hoodie"]
    texts = [base.encode_prompts(prompts).parts for base in (hub, ours)]
    for name, part in texts[0].items():
        assert torch.equal(part, texts[1][name]), name
    if PUBLISHED[kind][0] is not None:
        assert hub.scheduler.config.prediction_type == "epsilon", "where nothing is stated"
        assert hub.scheduler.config.beta_end == 0.012
    assert hub.sample(prompts, [0, 1], config=QUICK).shape[0] == 2
