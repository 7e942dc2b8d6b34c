"""Every family in every spelling: read exactly, written exactly, and claims that loaders confirm.

Adapters have the true classes' layers at their true widths; the real loaders of diffusers and PEFT
say what they read (the denoisers' weights are never touched).
"""

import itertools
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from architectures import ROWS, adapter, text_modules
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from readers import by_diffusers, distance, exact
from safetensors.torch import load_file, save_file

from lorasynth.adapter import Adapter, Factor
from lorasynth.adapter.components import component_of
from lorasynth.adapter.families import FAMILIES
from lorasynth.adapter.files import LoraFormat, format_for, read, universal
from lorasynth.adapter.inspection import readings
from lorasynth.adapter.programs import DIFFUSERS
from lorasynth.core.errors import FileFormatError, LayoutError

FORMATS = ("kohya", "diffusers", "comfyui", "peft")
LOADED = [family for family, row in ROWS.items() if row[2]]


def inside(name: str) -> bool:
    """Layers of the first block of each stack, of which most adapters are."""
    if name.startswith(("down_blocks.", "up_blocks.", "mid_block.")):
        return name.startswith(("down_blocks.1.attentions.0.", "down_blocks.1.resnets.0."))
    return ".0." in name and "conv_depth" not in name and not name.startswith("distilled")


def outside_too(name: str) -> bool:
    """The same, and what is in no block."""
    return inside(name) or not name.startswith(("down_", "up_", "mid_", "transformer_blocks.1."))


def target(name: str, folder: Path) -> Path:
    return folder / ("peft" if name == "peft" else "x.safetensors")


def same(one: Mapping[str, Factor], other: Mapping[str, Factor]) -> None:
    assert one.keys() == other.keys()
    assert max(distance(factor, other[name]) for name, factor in one.items()) < 1e-6


@pytest.mark.parametrize(("family", "name"), itertools.product(ROWS, FORMATS))
def test_what_is_written_comes_back(family: str, name: str, tmp_path: Path) -> None:
    whole = adapter(family, outside_too)
    found = read(whole.save(target(name, tmp_path), format=name), FAMILIES[family])
    same(whole.factors, found.adapter.factors)
    assert found.adapter.kernels == whole.kernels
    assert found.format == name


@pytest.mark.parametrize("family", LOADED)
def test_diffusers_reads_the_universal_spelling(family: str, tmp_path: Path) -> None:
    part = adapter(family, inside)
    path = part.save(tmp_path / "x.safetensors")
    assert exact(part.factors, by_diffusers(family, path)) == part.factors.keys()
    [claim, comfyui, *_] = readings(read(path))
    assert (claim.program, claim.whole) == (DIFFUSERS, True)
    assert comfyui.whole == (family not in ("sana",))


# Spellings of others


def respelled(
    whole: Adapter, family: str, prefix: str, ending: str, names: str, alpha: float | None
) -> dict[str, torch.Tensor]:
    """The tensors of a stranger's file; q, k and v that are fused there share nothing."""
    down, up = {
        "AB": ("lora_A.weight", "lora_B.weight"),
        "du": ("lora_down.weight", "lora_up.weight"),
        "default": ("lora_A.default.weight", "lora_B.default.weight"),
        "old": ("lora.down.weight", "lora.up.weight"),
    }[ending]
    written, _ = LoraFormat(name="bare", names=lambda _: names, prefix="").spell(whole)
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in written.items():
        stem, _, end = key.rpartition(".lora_")
        stem = stem.replace(".", "_") if prefix.endswith("_") else stem
        if end.startswith("A"):
            tensors[f"{prefix}{stem}.{down}"] = tensor
            continue
        rank = tensor.shape[1]
        tensors[f"{prefix}{stem}.{up}"] = tensor * (1.0 if alpha is None else rank / alpha)
        if alpha is not None:
            tensors[f"{prefix}{stem}.alpha"] = torch.tensor(alpha)
    return tensors


#: Prefix, ending, names, whether alpha lies beside: of the layouts that are in use.
LAYOUTS = [
    ("diffusion_model.", "AB", "published", None),
    ("diffusion_model.", "du", "published", 1.0),
    ("diffusion_model.", "AB", "diffusers", None),
    ("model.diffusion_model.", "AB", "published", None),
    ("transformer.", "AB", "diffusers", 3.0),
    ("transformer.", "du", "diffusers", 3.0),
    ("unet.", "du", "diffusers", 3.0),
    ("lora_transformer_", "du", "diffusers", 3.0),
    ("lycoris_", "du", "diffusers", 3.0),
    ("lora_unet_", "du", "diffusers", 3.0),
    ("lora_unet__", "du", "diffusers", 3.0),
    ("base_model.model.", "AB", "diffusers", None),
    ("base_model.model.", "AB", "published", None),
    ("", "default", "diffusers", None),
    ("", "du", "diffusers", 3.0),
    ("", "AB", "diffusers", None),
    ("unet.unet.", "AB", "diffusers", None),
    ("transformer._orig_mod.", "AB", "diffusers", None),
    ("transformer.module.", "AB", "diffusers", None),
    ("unet.base_model.model.", "AB", "diffusers", None),
    ("lora_unet__orig_mod_", "du", "diffusers", 3.0),
]


def makes_sense(family: str, prefix: str, names: str) -> bool:
    table = FAMILIES[family].table
    renamed = any(layer.modules != (layer.name,) for layer in table.layers)
    return names == "diffusers" or renamed


CASES = [
    (family, *layout)
    for family, layout in itertools.product(ROWS, LAYOUTS)
    if makes_sense(family, layout[0], layout[2])
]


@pytest.mark.parametrize(("family", "prefix", "ending", "names", "alpha"), CASES)
def test_a_strangers_file_is_read_exactly(
    family: str, prefix: str, ending: str, names: str, alpha: float | None, tmp_path: Path
) -> None:
    part = adapter(family, inside)
    path = tmp_path / "x.safetensors"
    save_file(respelled(part, family, prefix, ending, names, alpha), path)
    found = read(path, FAMILIES[family])
    assert found.adapter.factors.keys() == part.factors.keys()
    worst = max(distance(f, found.adapter.factors[n]) for n, f in part.factors.items())
    assert worst < 1e-6


@pytest.mark.soak
@pytest.mark.parametrize(("family", "prefix", "ending", "names", "alpha"), CASES)
def test_what_is_said_of_diffusers_is_true(
    family: str, prefix: str, ending: str, names: str, alpha: float | None, tmp_path: Path
) -> None:
    if not ROWS[family][2]:
        pytest.skip("diffusers has no loader for it")
    part = adapter(family, inside)
    path = tmp_path / "x.safetensors"
    save_file(respelled(part, family, prefix, ending, names, alpha), path)
    claim = readings(read(path, FAMILIES[family]))[0]
    try:
        found = exact(part.factors, by_diffusers(family, path))
    except Exception:  # whatever a loader raises, it reads nothing
        found = set()
    assert claim.modules <= len(found), "said to be read, but lost"
    assert claim.modules == len(found), "said to be lost, but read"


@pytest.mark.soak
@pytest.mark.parametrize(
    ("family", "name"), itertools.product(LOADED, ("kohya", "diffusers", "comfyui"))
)
def test_what_is_said_of_all_layers_is_true(family: str, name: str, tmp_path: Path) -> None:
    whole = adapter(family, lambda n: "conv_depth" not in n)
    path = whole.save(tmp_path / "x.safetensors", format=name)
    claim = readings(read(path))[0]
    try:
        found = exact(whole.factors, by_diffusers(family, path))
    except Exception:  # whatever a loader raises, it reads nothing
        found = set()
    assert claim.modules == len(found)


# Text encoders


@pytest.mark.parametrize(
    ("family", "encoders", "prefixes"),
    [
        ("sd1", {"text_encoder": "clip"}, ["lora_te_"]),
        ("sd2", {"text_encoder": "clip"}, ["lora_te_"]),
        ("sdxl", {"text_encoder": "clip", "text_encoder_2": "clip"}, ["lora_te1_", "lora_te2_"]),
        ("flux1", {"text_encoder": "clip", "text_encoder_2": "t5"}, ["lora_te1_", "lora_te3_"]),
        (
            "sd3",
            {"text_encoder": "clip", "text_encoder_2": "clip", "text_encoder_3": "t5"},
            ["lora_te1_", "lora_te2_", "lora_te3_"],
        ),
    ],
)
def test_text_encoders_have_their_numbers(
    family: str, encoders: dict[str, str], prefixes: list[str], tmp_path: Path
) -> None:
    unet = adapter(family, lambda n: n.endswith(("attn2.to_k", "attn.add_k_proj", "norm1.linear")))
    stream = torch.Generator().manual_seed(3)
    text = {
        module: Factor(torch.randn(2, 8, generator=stream), torch.randn(8, 2, generator=stream))
        for component, kind in encoders.items()
        for module in text_modules(component, kind)
    }
    whole = Adapter({**unet.factors, **text})
    for name in ("kohya", "diffusers", "comfyui"):
        path = whole.save(tmp_path / f"{name}.safetensors", format=name)
        same(whole.factors, read(path).adapter.factors)
    keys = load_file(tmp_path / "kohya.safetensors")
    begins = {key.partition("_text_model")[0].partition("_encoder")[0] + "_" for key in keys}
    assert sorted(b for b in begins if b.startswith("lora_te")) == prefixes


def test_clip_without_its_outer_layer_has_it_again(tmp_path: Path) -> None:
    part = adapter("sd1", lambda n: n.endswith("0.attn2.to_k") and n.startswith("down_blocks.0"))
    tensors = {f"unet.{n}.lora_A.weight": f.A for n, f in part.factors.items()}
    tensors |= {f"unet.{n}.lora_B.weight": f.B for n, f in part.factors.items()}
    stem = "text_encoder.encoder.layers.0.self_attn.q_proj.lora_"
    tensors |= {f"{stem}A.weight": torch.ones(1, 768), f"{stem}B.weight": torch.ones(768, 1)}
    save_file(tensors, tmp_path / "x.safetensors")
    out = read(tmp_path / "x.safetensors").adapter.save(tmp_path / "k.safetensors", "kohya")
    key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"
    assert key in load_file(out)


# Which format for whom


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        *((name, "kohya") for name in ("sd1", "sd2", "sdxl", "flux1", "chroma")),
        *((name, "diffusers") for name in ("sd3", "qwen-image", "hidream", "auraflow", "pixart")),
        *((name, "comfyui") for name in ("flux2", "wan", "lumina2", "z-image", "krea2", "ltx")),
    ],
)
def test_the_universal_format(family: str, expected: str) -> None:
    part = adapter(family, inside)
    assert universal(part).name == expected
    assert format_for("comfyui", part).name == expected


def test_layers_that_a_spelling_loses_choose_another() -> None:
    assert universal(adapter("flux1")).name == "diffusers"


def test_a_program_that_has_no_such_models_is_refused() -> None:
    with pytest.raises(FileFormatError, match="a1111 must have models of the family"):
        format_for("a1111", adapter("wan", inside))
    with pytest.raises(FileFormatError, match="ComfyUI has no Sana"):
        format_for("comfyui", adapter("sana", inside))
    assert format_for("diffusers", adapter("pixart", inside)).name == "peft"
    assert format_for("ai-toolkit", adapter("flux2", inside)).name == "comfyui"
    assert format_for("a1111", adapter("sdxl", inside)).name == "kohya"


# Names that leave several families, or none


def test_kohyas_names_of_attention_that_three_families_share_are_refused(tmp_path: Path) -> None:
    shared = adapter("qwen-image", lambda n: n.startswith("transformer_blocks.0.attn"))
    with pytest.raises(FileFormatError, match="say which with --family"):
        shared.save(tmp_path / "x.safetensors", format="kohya")
    path = shared.save(tmp_path / "x.safetensors")
    assert read(path).format == "diffusers"
    told = read(path, FAMILIES["qwen-image"]).adapter
    again = told.save(tmp_path / "k.safetensors", format="kohya")
    assert read(again).verdict.family is FAMILIES["qwen-image"]
    assert "lora_unet_transformer_blocks_0_attn_to_q.alpha" in load_file(again)


@pytest.mark.parametrize(
    "stem",
    [
        "lora_unet_transformer_blocks_0_img_mlp_net_0_odd",
        "diffusion_model.blocks.0.self_attn.odd",
        "lora_unet_joint_blocks_0_x_block_attn_odd",
        "transformer_2.blocks.0.attn1.to_q",
        "lora_te3_text_model_encoder_layers_0_odd",
        "odd",
    ],
)
def test_a_name_with_an_unknown_part_is_refused(stem: str, tmp_path: Path) -> None:
    save_file(
        {f"{stem}.lora_A.weight": torch.ones(1, 4), f"{stem}.lora_B.weight": torch.ones(4, 1)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(FileFormatError, match=f"of a known family, but .* has .*{stem[-20:]}"):
        read(tmp_path / "x.safetensors")


def test_a_1x1_kernel_of_a_linear_layer_is_none(tmp_path: Path) -> None:
    block = "lora_unet_down_blocks_0_attentions_0_"
    tensors = {}
    for layer, kernel in (("transformer_blocks_0_attn2_to_k", (1, 1)), ("proj_in", ())):
        width = 768 if kernel else 320
        tensors[f"{block}{layer}.lora_down.weight"] = torch.ones(2, width, *kernel)
        tensors[f"{block}{layer}.lora_up.weight"] = torch.ones(320, 2, *kernel)
    save_file(tensors, tmp_path / "x.safetensors")
    kernels = read(tmp_path / "x.safetensors").adapter.kernels
    assert kernels == {"down_blocks.0.attentions.0.proj_in": (1, 1)}


# Any adapter


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    family=st.sampled_from(sorted(ROWS)),
    name=st.sampled_from(FORMATS),
    rank=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_any_part_of_any_family(
    family: str, name: str, rank: int, dtype: torch.dtype, seed: int, tmp_path: Path
) -> None:
    def chosen(module: str) -> bool:
        return inside(module) and zlib.crc32(f"{module} {seed}".encode()) % 3 == 0

    try:
        picked = adapter(family, chosen, rank, dtype, seed)
    except LayoutError:  # no module was chosen
        assume(False)
    path = target(name, tmp_path / "any")
    try:
        found = read(picked.save(path, format=name), FAMILIES[family]).adapter
    except FileFormatError as error:
        assert "say which with --family" in str(error)  # noqa: PT017
        return
    assert not any(component_of(module) for module in found.factors)
    assert found.factors.keys() == picked.factors.keys()
    for module, factor in picked.factors.items():
        assert found.factors[module].A.dtype == dtype
        assert distance(factor, found.factors[module]) < 1e-6
