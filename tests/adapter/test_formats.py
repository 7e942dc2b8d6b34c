"""What each single format does in its own way."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_kohya,
    convert_unet_state_dict_to_peft,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorasynth.adapter import Adapter, AdapterMetadata, Factor
from lorasynth.adapter.files import formats, read
from lorasynth.adapter.files.container import read_tensors, to_bytes
from lorasynth.adapter.lowrank import narrowed
from lorasynth.core.errors import FileFormatError

PATH = "down_blocks.0.attentions.1.transformer_blocks.0"
#: One module of each kind that a U-Net of diffusers has.
UNET_MODULES = [
    *[f"{PATH}.attn{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0")],
    *[f"{PATH}.ff.net.0.proj", f"{PATH}.ff.net.2"],
    *["mid_block.attentions.0.proj_in", "up_blocks.1.attentions.2.proj_out"],
    *["down_blocks.1.resnets.0.time_emb_proj", "time_embedding.linear_1"],
]


@pytest.fixture
def unet_adapter(make_factors) -> Adapter:
    shapes = dict.fromkeys(UNET_MODULES, (6, 4))
    return Adapter(make_factors(None, shapes=shapes), AdapterMetadata(trigger_phrase="sks"))


def test_diffusers_folder_has_the_usual_name(unet_adapter: Adapter, tmp_path: Path) -> None:
    path = unet_adapter.save(tmp_path / "lora", format="diffusers")
    assert path == tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert Adapter.load(tmp_path / "lora").layout == unet_adapter.layout


def test_kohya_keys_are_those_of_diffusers_converter(unet_adapter: Adapter, tmp_path) -> None:
    written = load_file(unet_adapter.save(tmp_path / "k.safetensors", format="kohya"))
    diffusers = load_file(unet_adapter.save(tmp_path / "d.safetensors", format="diffusers"))
    expected = convert_state_dict_to_kohya(dict(diffusers))
    assert written.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(written[key].float(), tensor.float())


def test_kohya_names_come_back_as_diffusers_reads_them(unet_adapter: Adapter, tmp_path) -> None:
    path = unet_adapter.save(tmp_path / "k.safetensors", format="kohya")
    theirs, alphas = _convert_non_diffusers_lora_to_diffusers(load_file(path))
    theirs = convert_unet_state_dict_to_peft(theirs)
    ours = load_file(Adapter.load(path).save(tmp_path / "d.safetensors", format="diffusers"))
    assert theirs.keys() == ours.keys()
    assert set(alphas.values()) == {2.0}


def test_kohya_header(unet_adapter: Adapter, make_factors, tmp_path: Path) -> None:
    wide = Adapter(make_factors(None, shapes={f"{PATH}.attn2.to_k": (768, 4)}, rank=1))
    with safe_open(wide.save(tmp_path / "w.safetensors", format="kohya"), "pt") as file:
        header = file.metadata()
    assert header["ss_network_module"] == "networks.lora"
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "1"
    assert header["ss_base_model_version"] == "sd_v1"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    with safe_open(unet_adapter.save(tmp_path / "u.safetensors", format="kohya"), "pt") as file:
        header = file.metadata()
    assert header["modelspec.trigger_phrase"] == "sks"
    assert "modelspec.architecture" not in header, "no known base model has these widths"
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert "lorasynth.modules" not in header


def test_a_foreign_kohya_file_gives_its_trigger_phrase(unet_adapter: Adapter, tmp_path) -> None:
    path = unet_adapter.save(tmp_path / "k.safetensors", format="kohya")
    save_file(load_file(path), path, metadata={"modelspec.trigger_phrase": "ohwx"})
    again = Adapter.load(path)
    assert again.metadata.trigger_phrase == "ohwx"
    assert again.metadata.created_by == ""
    assert torch.equal(again.to_vector(), unet_adapter.to_vector())


def test_kohya_keeps_names_that_it_cannot_guess(make_factors, tmp_path: Path) -> None:
    adapter = Adapter(make_factors(None, shapes={"my_block.odd_name.x": (3, 2)}))
    path = adapter.save(tmp_path / "k.safetensors", format="kohya")
    assert Adapter.load(path).factors.keys() == {"my_block.odd_name.x"}
    save_file(load_file(path), path)
    with pytest.raises(FileFormatError, match=r"of a known family, but .*my_block_odd_name_x"):
        Adapter.load(path)


def test_kohya_refuses_names_that_collide(make_factors, tmp_path: Path) -> None:
    adapter = Adapter(make_factors(None, shapes={"a.b": (3, 2), "a_b": (3, 2)}))
    with pytest.raises(FileFormatError, match="has the name of another module"):
        adapter.save(tmp_path / "k.safetensors", format="kohya")


def test_kohya_alpha_must_be_one_finite_number(unet_adapter: Adapter, tmp_path: Path) -> None:
    path = unet_adapter.save(tmp_path / "k.safetensors", format="kohya")
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith(".alpha"))
    for value, message in ((torch.ones(2), "one number"), (torch.tensor(torch.inf), "finite")):
        save_file({**tensors, key: value}, path)
        with pytest.raises(FileFormatError, match=f"alpha must be {message}"):
            Adapter.load(path)


def test_peft_without_config_is_refused(unet_adapter: Adapter, tmp_path: Path) -> None:
    path = unet_adapter.save(tmp_path / "p", format="peft")
    (path / "adapter_config.json").unlink()
    with pytest.raises(FileFormatError, match="needs its configuration, which holds alpha"):
        Adapter.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "is LOHA"),
        ({"use_dora": True}, "is DoRA"),
        ({"lora_alpha": "many"}, "must be numbers"),
        ({"alpha_pattern": [1]}, "must map names to numbers"),
    ],
)
def test_peft_config_of_another_kind(unet_adapter, tmp_path, change: dict, message: str) -> None:
    path = unet_adapter.save(tmp_path / "p", format="peft")
    config = path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(FileFormatError, match=message):
        Adapter.load(path)


def test_peft_rank_stabilised_scale(unet_adapter: Adapter, tmp_path: Path) -> None:
    path = unet_adapter.save(tmp_path / "p", format="peft")
    config = path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_rslora": True}))
    again = Adapter.load(path).factors[UNET_MODULES[0]]
    torch.testing.assert_close(again.B, unet_adapter.factors[UNET_MODULES[0]].B * 2**0.5)


def test_peft_does_not_replace_a_foreign_folder(unet_adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("a photo")
    with pytest.raises(FileFormatError, match="holds other files"):
        unet_adapter.save(tmp_path, format="peft")
    assert (tmp_path / "holiday.jpg").read_text() == "a photo"
    with pytest.raises(FileFormatError, match="is a folder, but"):
        unet_adapter.save(tmp_path / "me.safetensors", format="peft")


def test_an_adapter_of_the_text_encoder_alone(make_factors, tmp_path: Path) -> None:
    module = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    adapter = Adapter(make_factors(None, shapes={module: (6, 8)}))
    for name in ("diffusers", "kohya"):
        path = adapter.save(tmp_path / f"{name}.safetensors", format=name)
        assert read(path).format == name
        assert Adapter.load(path).layout == adapter.layout
    with pytest.raises(FileFormatError, match="this one changes text_encoder too"):
        adapter.save(tmp_path / "peft", format="peft")


@pytest.mark.parametrize("length", [0x580, 0x780, 0x10380])
def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path, length: int) -> None:
    path = Adapter({"conv_in": Factor(torch.ones(1, 2), torch.ones(3, 1))}).save(
        tmp_path / "a.safetensors"
    )
    size = int.from_bytes(path.read_bytes()[:8], "little")
    assert size <= length
    data = path.read_bytes()
    padded = data[8 : 8 + size].ljust(length) + data[8 + size :]
    path.write_bytes(length.to_bytes(8, "little") + padded)
    assert Adapter.load(path).factors.keys() == {"conv_in"}


def test_half_precision_alpha_does_not_overflow(tmp_path: Path) -> None:
    factor = Factor(torch.ones(1, 2).half(), torch.full((3, 1), 6e4).half())
    path = Adapter({"conv_in": factor}).save(tmp_path / "k.safetensors", format="kohya")
    save_file({**load_file(path), "lora_unet_conv_in.alpha": torch.tensor(27.0)}, path)
    assert Adapter.load(path).factors["conv_in"].B.max() > 1e6


def test_a_file_is_what_the_package_would_write_but_for_the_order_of_its_header(tmp_path) -> None:
    tensors = {
        "b": torch.randn(3, 2),
        "a": torch.randn(2, 3).half(),
        "ö": torch.randn(4, 4)[:, 1:3],
        "c.alpha": torch.tensor(2.0),
        "d": torch.randn(1, 5).bfloat16(),
        "e": torch.randn(2).double(),
    }
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_bytes(to_bytes(tensors, {"key": 'quoted "value"', "a": "1"}))
    content = read_tensors(ours)
    assert all(content.tensors[key].equal(value) for key, value in tensors.items())
    assert content.header.pop("key") == 'quoted "value"'
    numbers = ours.read_bytes()[8 + int.from_bytes(ours.read_bytes()[:8], "little") :]
    digest = hashlib.sha256(numbers).hexdigest()
    assert content.header["sshs_model_hash"] == digest
    assert content.header["modelspec.hash_sha256"] == f"0x{digest}"
    save_file({key: value.contiguous() for key, value in tensors.items()}, theirs)
    assert theirs.read_bytes().endswith(numbers)


FOREIGN = {
    "modelspec.title": "Портрет v1.0",
    "modelspec.author": "somebody",
    "modelspec.license": "CC-BY-NC-4.0",
    "modelspec.usage_hint": "strength 0.7",
    "ss_base_model_version": "sd_1.5",
    "ss_tag_frequency": json.dumps({"10_ohwx": {"a photo of ohwx person": 12}}),
}


@pytest.mark.parametrize("name", ["kohya", "diffusers", "comfyui", "peft"])
def test_foreign_entries_of_a_header_are_kept_but_no_path(name, make_factors, tmp_path) -> None:
    shapes = {f"{PATH}.attn2.to_k": (768, 4)}
    path = Adapter(make_factors(None, shapes=shapes)).save(tmp_path / "k.safetensors", "kohya")
    paths = {
        "ss_sd_model_name": "/home/alice/models/base.safetensors",
        "ss_dataset_dirs": json.dumps({"C:/Users/alice/10_ohwx": {"n_repeats": 10}}),
        "ss_datasets": json.dumps([{"image_dir": r"\\nas\alice\10_ohwx"}]),
        "ss_training_comment": "as in file:///home/alice/notes and https://a.org/b/c",
        "modelspec.thumbnail": "data:image/jpeg;base64,/9j/4AAQ/SkZJ",
        "ss_network_dim": "99",
    }
    save_file(load_file(path), path, {**FOREIGN, **paths})
    out = tmp_path / (name if name == "peft" else "out.safetensors")
    written = Adapter.load(path).save(out, format=name)
    with safe_open(written / "adapter_model.safetensors" if name == "peft" else written, "pt") as f:
        header = f.metadata()
    assert {key: header[key] for key in FOREIGN} == FOREIGN
    assert header["ss_sd_model_name"] == "base.safetensors"
    assert json.loads(header["ss_dataset_dirs"]) == {"10_ohwx": {"n_repeats": 10}}
    assert json.loads(header["ss_datasets"]) == [{"image_dir": "10_ohwx"}]
    assert header["ss_training_comment"] == "as in notes and https://a.org/b/c"
    assert header["modelspec.thumbnail"] == paths["modelspec.thumbnail"]
    assert header["ss_network_dim"] == "2"
    assert "alice" not in str(header)


def test_the_date_is_that_of_the_environment_if_it_says_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = Adapter({"conv_in": Factor(torch.ones(1, 2), torch.ones(3, 1))}).save(
        tmp_path / "a.safetensors"
    )
    assert read_tensors(path).header["modelspec.date"] == "2023-11-14"


def test_a_whole_checkpoint_is_told(tmp_path: Path) -> None:
    tensors = {f"model.diffusion_model.blocks.{n}.weight": torch.ones(2, 2) for n in range(5)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FileFormatError, match=r"is a whole checkpoint of 5 .*lorasynth extract"):
        read(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_8_bits_are_read_exactly_and_written_in_16(dtype, tmp_path: Path) -> None:
    stem = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{stem}.lora_down.weight": torch.randn(2, 1536).to(dtype)}
    tensors |= {f"{stem}.lora_up.weight": torch.randn(1536, 2).to(dtype)}
    save_file({**tensors, f"{stem}.alpha": torch.tensor(1.0)}, tmp_path / "x.safetensors")
    found = read(tmp_path / "x.safetensors")
    a, b = (tensor.float() for tensor in tensors.values())
    [factor] = found.adapter.factors.values()
    assert factor.A.float().equal(a)
    assert factor.B.float().equal(b / 2)
    assert found.dtype == dtype
    kept = narrowed(found.adapter.factors, found.dtype)
    assert next(iter(kept.values())).B.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.float4_e2m1fn_x2])
def test_an_alpha_that_is_no_number_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 36)}
    tensors |= {"lora_unet_conv_in.lora_up.weight": torch.ones(320, 1)}
    alpha = (
        torch.ones(1).view(torch.uint8)[:1].view(dtype) if dtype.itemsize == 1 else torch.ones(1)
    )
    save_file({**tensors, "lora_unet_conv_in.alpha": alpha.to(dtype)}, tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match="alpha must be a real number"):
        read(tmp_path / "x.safetensors")


def test_a_file_that_would_be_mostly_zeros_is_refused(make_factors, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "_MOST_PADDED", 0)
    shapes = {f"up_blocks.{n % 4}.resnets.{n // 4}.time_emb_proj": (8, 8) for n in range(40)}
    ones = make_factors(None, rank=1, shapes=shapes)
    high = {"conv_in": Factor(torch.ones(100, 8), torch.ones(8, 100))}
    with pytest.raises(FileFormatError, match=r"ranks up to 100 .*lorasynth resize"):
        Adapter({**ones, **high}).save(tmp_path / "x.safetensors")
