"""What each single format does in its own way."""

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
from lorasynth.adapter.files import detect, get_format
from lorasynth.adapter.files._safetensors import read_tensors, write_tensors
from lorasynth.errors import FileFormatError

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
    assert Adapter.load(
        adapter.save(tmp_path / "k.safetensors", format="kohya")
    ).factors.keys() == {"my_block.odd_name.x"}


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
        ({"alpha_pattern": [1]}, "must be numbers"),
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
        assert type(detect(path)) is type(get_format(name))
        assert Adapter.load(path).layout == adapter.layout
    with pytest.raises(FileFormatError, match="this one changes text_encoder"):
        adapter.save(tmp_path / "peft", format="peft")


@pytest.mark.parametrize("length", [0x280, 0x480, 0x10380])
def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path, length: int) -> None:
    path = Adapter({"m": Factor(torch.ones(1, 2), torch.ones(3, 1))}).save(
        tmp_path / "a.safetensors"
    )
    size = int.from_bytes(path.read_bytes()[:8], "little")
    data = path.read_bytes()
    padded = data[8 : 8 + size].ljust(length) + data[8 + size :]
    path.write_bytes(length.to_bytes(8, "little") + padded)
    assert Adapter.load(path).factors.keys() == {"m"}


def test_half_precision_alpha_does_not_overflow(tmp_path: Path) -> None:
    factor = Factor(torch.ones(1, 2).half(), torch.full((3, 1), 6e4).half())
    path = Adapter({"m": factor}).save(tmp_path / "k.safetensors", format="kohya")
    save_file({**load_file(path), "lora_unet_m.alpha": torch.tensor(27.0)}, path)
    assert Adapter.load(path).factors["m"].B.max() > 1e6


def test_a_file_has_the_bytes_that_the_package_would_write(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 2),
        "a": torch.randn(2, 3).half(),
        "ö": torch.randn(4, 4)[:, 1:3],
        "c.alpha": torch.tensor(2.0),
        "d": torch.randn(1, 5).bfloat16(),
        "e": torch.randn(2).double(),
    }
    write_tensors(tmp_path / "ours", tensors, {"key": 'quoted "value"'})
    content = read_tensors(tmp_path / "ours")
    assert content.header == {"format": "pt", "key": 'quoted "value"'}
    assert all(content.tensors[key].equal(value) for key, value in tensors.items())
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    save_file(contiguous, tmp_path / "theirs", {"format": "pt"})
    write_tensors(tmp_path / "ours", tensors, {})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
