"""What every file format must do; a new one joins by being registered."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorasynth.adapter import Adapter, AdapterMetadata, Layout
from lorasynth.adapter.files import FORMATS, read, write_many
from lorasynth.core.errors import FileFormatError, LayoutError, LorasynthError

#: More numbers than a half has values, so that one pass does not tell them apart.
LARGE = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (9_000, 8),
    "mid_block.attentions.0.proj_in": (6, 8_001),
}
NAMES = FORMATS.names()
METADATA = AdapterMetadata(
    base_fingerprint="abc123",
    trigger_phrase="sks person",
    synthesised=True,
    extra={"subject": "7", "note": "ä = 1"},
)


def target(name: str, folder: Path) -> Path:
    return folder / (name if name == "peft" else f"{name}.safetensors")


def weights(name: str, path: Path) -> Path:
    return path / "adapter_model.safetensors" if name == "peft" else path


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def adapter(make_factors) -> Adapter:
    return Adapter(make_factors(None), METADATA)


@pytest.fixture
def saved(name: str, adapter: Adapter, tmp_path: Path) -> Path:
    """The safetensors file of the adapter in this format."""
    return weights(name, adapter.save(target(name, tmp_path), format=name))


def rewrite(path: Path, change) -> None:
    """Apply `change` to the tensors of a file; keep its header."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata=header)


def key_of(tensors: dict, *endings: str) -> str:
    return next(key for key in sorted(tensors) if key.endswith(endings))


DOWN = ("lora_A.weight", "lora_down.weight")
UP = ("lora_B.weight", "lora_up.weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["large", "ranks and kernels", "transformer"])
def test_many_files_are_those_of_one_after_another(
    name: str, make_factors, tmp_path: Path, dtype: torch.dtype, kind: str
) -> None:
    stacked = make_factors(7, shapes=LARGE)
    if kind == "ranks and kernels":
        stacked["mid_block.attentions.0.proj_in"] = make_factors(7, rank=1)[
            "mid_block.attentions.0.proj_in"
        ]
    if kind == "transformer":
        block = "single_transformer_blocks.0"
        shapes = {f"{block}.attn.{part}": (8, 8) for part in ("to_q", "to_k", "to_v")}
        shapes[f"{block}.proj_mlp"] = (8, 32)
        stacked = make_factors(7, shapes=shapes)
    kernels = {"mid_block.attentions.0.proj_in": (1, 1)} if kind == "ranks and kernels" else {}
    layout = Layout.from_factors(stacked, kernels)
    vectors = layout.flatten(stacked).to(dtype)
    paths = [target(name, tmp_path / f"many{i}") for i in range(7)]
    written = write_many(FORMATS.get(name), vectors, layout, METADATA, paths)
    assert written == paths
    for i, vector in enumerate(vectors):
        adapter = Adapter.from_vector(vector, layout, METADATA)
        alone = adapter.save(target(name, tmp_path / f"alone{i}"), format=name)
        assert weights(name, paths[i]).read_bytes() == weights(name, alone).read_bytes()


def test_many_of_which_one_is_broken_leave_no_file(name: str, make_factors, tmp_path: Path) -> None:
    stacked = make_factors(6)
    layout = Layout.from_factors(stacked)
    vectors = layout.flatten(stacked)
    vectors[4, 3] = torch.nan
    paths = [target(name, tmp_path / f"{i}") for i in range(6)]
    with pytest.raises(LayoutError, match="number 4 of 6 has NaN"):
        write_many(FORMATS.get(name), vectors, layout, METADATA, paths)
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_is_exact(name: str, adapter: Adapter, tmp_path, dtype: torch.dtype) -> None:
    adapter = adapter.to(dtype)
    again = Adapter.load(adapter.save(target(name, tmp_path), format=name))
    assert again.metadata == METADATA
    assert again.layout == adapter.layout
    for module, factor in adapter.factors.items():
        assert torch.equal(again.factors[module].A, factor.A)
        assert torch.equal(again.factors[module].B, factor.B)


@pytest.mark.parametrize(("first", "second"), itertools.permutations(NAMES, 2))
def test_conversion_keeps_everything(first: str, second: str, adapter: Adapter, tmp_path) -> None:
    original = Adapter.load(adapter.save(target(first, tmp_path), format=first))
    converted = Adapter.load(original.save(target(second, tmp_path), format=second))
    assert torch.equal(converted.to_vector(), adapter.to_vector())
    assert converted.metadata == METADATA


def test_mixed_ranks_are_padded_to_one_and_keep_the_update(
    name: str, make_factors, dense, tmp_path: Path
) -> None:
    low, high = make_factors(None, rank=1), make_factors(None, rank=3)
    mixed = {**low, **dict(list(high.items())[:1])}
    again = Adapter.load(Adapter(mixed).save(target(name, tmp_path), format=name))
    assert torch.equal(dense(again.factors), dense(mixed))
    assert {factor.rank for factor in again.factors.values()} == {3}


def test_told_by_its_keys(name: str, saved: Path) -> None:
    expected = "kohya" if name == "auto" else name
    assert read(saved).format == expected
    assert read(saved.parent if name == "peft" else saved).format == expected


def test_equal_adapters_give_equal_bytes(name: str, adapter: Adapter, tmp_path: Path) -> None:
    paths = [
        weights(name, adapter.save(target(name, tmp_path / folder), format=name))
        for folder in ("one", "two")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_views_of_one_vector_are_written(name: str, adapter: Adapter, tmp_path) -> None:
    vector = adapter.to_vector()
    cut = Adapter.from_vector(vector, adapter.layout)
    again = Adapter.load(cut.save(target(name, tmp_path), format=name))
    assert torch.equal(again.to_vector(), vector)


def test_a_foreign_alpha_is_folded_into_b(name: str, adapter: Adapter, saved: Path) -> None:
    if name in ("diffusers", "peft"):
        replace_config(name, saved, {"lora_alpha": 27, "alpha_pattern": {}})
    else:

        def scale(tensors: dict) -> None:
            stems = {key.rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key}
            tensors |= {f"{stem}.alpha": torch.tensor(27.0) for stem in stems}

        rewrite(saved, scale)
    again = Adapter.load(saved)
    for module, factor in adapter.factors.items():
        expected = factor.B * (27 / factor.rank)
        torch.testing.assert_close(again.factors[module].B, expected)


def replace_config(name: str, path: Path, change: dict) -> None:
    if name == "peft":
        config = path.parent / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
        return
    with safe_open(path, "pt") as file:
        header = file.metadata()
    config = json.loads(header["lora_adapter_metadata"])
    config |= {f"unet.{key}": value for key, value in change.items()}
    save_file(load_file(path), path, {**header, "lora_adapter_metadata": json.dumps(config)})


def drop(endings):
    return lambda tensors: tensors.pop(key_of(tensors, *endings))


def put(endings, value):
    def change(tensors: dict) -> None:
        tensors[key_of(tensors, *endings)] = value(tensors[key_of(tensors, *endings)])

    return change


def add(key: str):
    return lambda tensors: tensors.update({key: torch.zeros(2, 2)})


def rename(old: tuple[str, ...], new: str):
    def change(tensors: dict) -> None:
        key = key_of(tensors, *old)
        ending = next(ending for ending in old if key.endswith(ending))
        tensors[key.removesuffix(ending) + new] = tensors.pop(key)

    return change


BAD_TENSORS = {
    "without its partner": drop(DOWN),
    "without its partner .lora_": drop(UP),
    "with r at least 1, but": put(DOWN, lambda a: torch.zeros(5, a.shape[1])),
    r"r at least 1, but .*\(0, ": put(DOWN, lambda a: a[:0].clone()),
    "r at least 1": put(DOWN, lambda a: a[..., None, None].clone()),
    "A of .* holds NaN": put(DOWN, lambda a: a * torch.nan),
    "B of .* holds infinite": put(UP, lambda b: b / 0),
    "is int64": put(DOWN, lambda a: a.long()),
    r"has text_encoder\.x: leave it out": add("text_encoder.x"),
    "is DoRA": add("x.dora_scale"),
    "is LoHa": add("x.hada_w1_a"),
    "is LoKr": add("x.lokr_w1"),
}


@pytest.mark.parametrize("message", BAD_TENSORS)
def test_contradictions_are_named_in_one_line(saved: Path, message: str) -> None:
    rewrite(saved, BAD_TENSORS[message])
    with pytest.raises(FileFormatError, match=message) as caught:
        Adapter.load(saved)
    assert "\n" not in str(caught.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def claim_too_much(path: Path) -> None:
    path.write_bytes((10 * 2**30).to_bytes(8, "little") + path.read_bytes()[8:])


def claim_tensor_beyond_end(path: Path) -> None:
    header = b'{"unet.m.lora_A.weight":{"dtype":"F32","shape":[9,9],"data_offsets":[0,324]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def pickle_instead(path: Path) -> None:
    torch.save({"unet.m.lora_A.weight": torch.zeros(1, 2)}, path)


DAMAGES = {
    truncate: "complete safetensors",
    claim_too_much: "complete safetensors",
    claim_tensor_beyond_end: "complete safetensors",
    pickle_instead: "is a pickle or zip archive",
    lambda path: path.write_text("hello"): "complete safetensors",
    lambda path: path.write_bytes(b""): "complete safetensors",
    lambda path: save_file({}, path): "has none .it has no keys at all",
    lambda path: save_file({"linear.weight": torch.zeros(2)}, path): "its first key is linear",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named_in_one_line(saved: Path, damage) -> None:
    damage(saved)
    with pytest.raises(FileFormatError, match=DAMAGES[damage]) as caught:
        Adapter.load(saved)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="does not exist"):
        Adapter.load(tmp_path / "no.safetensors")
    with pytest.raises(FileFormatError, match="a folder with a LoRA must hold"):
        Adapter.load(tmp_path)


def test_two_formats_in_one_file_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    both = {}
    for name in ("kohya", "diffusers"):
        both |= load_file(adapter.save(target(name, tmp_path), format=name))
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(FileFormatError, match="mixes diffusers and kohya"):
        Adapter.load(tmp_path / "both.safetensors")


def test_a_failed_write_leaves_the_old_file(name: str, saved: Path, monkeypatch) -> None:
    before = saved.read_bytes()

    def full(*_args, **_kwargs) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LorasynthError, match="No space left"):
        Adapter.load(saved).save(saved.parent if name == "peft" else saved, format=name)
    assert saved.read_bytes() == before
    assert not [path for path in saved.parent.iterdir() if path.name.startswith(".tmp-")]
