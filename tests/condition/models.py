"""Small image encoders of transformers, untrained, as folders."""

import json
from pathlib import Path

import torch
import transformers

VISION = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = VISION | {"vocab_size": 20, "max_position_embeddings": 8}
PROCESSING = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}


def write_clip(folder: Path, seed: int = 0) -> Path:
    """A whole CLIP, as OpenAI's are: text half and image half."""
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=12)
    transformers.CLIPModel(config).save_pretrained(folder)
    return _say(folder, PROCESSING | {"crop_size": {"height": 32, "width": 32}})


def write_dino(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = transformers.Dinov2Config(**{k: v for k, v in VISION.items() if k[0] != "i"})
    config.image_size = 40  # larger than what its images are cut to, as in DINOv2
    transformers.Dinov2Model(config).save_pretrained(folder)
    return _say(folder, PROCESSING | {"size": {"shortest_edge": 36}, "crop_size": 32})


def write_siglip(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)
    transformers.SiglipModel(config).save_pretrained(folder)
    return _say(folder, PROCESSING | {"size": {"height": 32, "width": 32}})


def _say(folder: Path, processing: dict[str, object]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    return folder
