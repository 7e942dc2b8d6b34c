"""LoRAs handed to pipelines in memory; model cards; the hub, by a stand-in on this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from hub_stand_in import TOKEN, Hub, hub
from lorasynth import Adapter, Card, Synthesizer
from lorasynth.adapter import AdapterMetadata, Factor
from lorasynth.core.errors import ConfigError, LayoutError, LorasynthError
from tiny_pipelines import build

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "examples" / "photo.png"
CROSS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def synth() -> Synthesizer:
    return Synthesizer.from_pretrained(ROOT / "bundle" / "synthesizer")


@pytest.fixture(scope="module")
def adapter(synth: Synthesizer) -> Adapter:
    return synth(PHOTO)


@pytest.fixture
def pipe():
    return build("StableDiffusionPipeline")


def lora_for(pipe, module: str, component: str = "unet", seed: int = 0) -> Adapter:
    outputs, inputs = getattr(pipe, component).get_submodule(module).weight.shape
    stream = torch.Generator().manual_seed(seed)
    factor = Factor(
        torch.randn(2, inputs, generator=stream), torch.randn(outputs, 2, generator=stream)
    )
    name = module if component == "unet" else f"{component}.{module}"
    return Adapter({name: factor}, AdapterMetadata(extra={"base_name": "tiny"}))


# In memory


@pytest.mark.parametrize("form", ["kohya", "diffusers", "comfyui", "auto"])
def test_a_state_dict_is_that_of_the_file(adapter: Adapter, tmp_path: Path, form: str) -> None:
    file = load_file(adapter.save(tmp_path / "me.safetensors", form))
    tensors = adapter.state_dict(form)
    assert tensors.keys() == file.keys()
    for key, tensor in tensors.items():
        assert torch.equal(tensor, file[key])


@pytest.mark.parametrize("name", ["me", "time", "b"])
@pytest.mark.parametrize("module", [CROSS, "time_embedding.linear_1"])
def test_a_pipeline_has_the_lora_at_its_strength(pipe, module: str, name: str) -> None:
    layer = pipe.unet.get_submodule(module)
    x = torch.randn(3, layer.weight.shape[1])
    before = layer(x)
    lora = lora_for(pipe, module)
    a, b = lora.factors[module]
    for strength in (0.5, 2.0):  # the second replaces the first
        lora.load_into(pipe, name, strength)
        assert pipe.get_active_adapters() == [name]
        now = pipe.unet.get_submodule(module)(x)
        torch.testing.assert_close(now, before + strength * (x @ a.T @ b.T))


def test_another_lora_stays_loaded(pipe) -> None:
    lora_for(pipe, CROSS).load_into(pipe, "me")
    lora = lora_for(pipe, "encoder.layers.0.self_attn.q_proj", "text_encoder")
    [factor] = lora.factors.values()
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    Adapter({name: factor}).load_into(pipe, "style")
    assert {name for names in pipe.get_list_adapters().values() for name in names} == {
        "me",
        "style",
    }
    pipe.set_adapters(["me", "style"], [1.0, 0.5])


def test_a_lora_of_another_base_is_refused_and_leaves_nothing(pipe, adapter: Adapter) -> None:
    with pytest.raises(LayoutError, match=r"for base, .* \(64, 64\), but \(32, 32\) in it"):
        adapter.load_into(pipe)
    assert not any(pipe.get_list_adapters().values())
    foreign = Adapter({"blocks.0.attn1.to_q": Factor(torch.ones(1, 4), torch.ones(4, 1))})
    with pytest.raises(LayoutError, match=r"another base model, .* it has no blocks\.0"):
        foreign.load_into(pipe)
    with pytest.raises(LayoutError, match="object has no load_lora_weights"):
        adapter.load_into(object())
    lora_for(pipe, CROSS).load_into(pipe)  # which it still takes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_computes_in_another_precision(adapter: Adapter, dtype: torch.dtype) -> None:
    fresh = Synthesizer.from_pretrained(ROOT / "bundle" / "synthesizer").to("cpu", dtype)
    assert fresh.dtype == dtype
    made, expected = fresh(PHOTO).to_vector(), adapter.to_vector()
    assert made.dtype == dtype
    assert (made.float() - expected).norm() < 0.02 * expected.norm()


# Cards


def front_of(card: Path) -> dict[str, object]:
    text = card.read_text(encoding="utf-8")
    front: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return front


def assert_private(text: str) -> None:
    """No path of this disk and no user's name."""
    for word in (str(ROOT), "/home/", "/tmp", "somebody"):
        assert word not in text
    assert not re.search(r"[\s`'\"(]/\w+/", text)


def with_base(adapter: Adapter, base: str) -> Adapter:
    extra = {**adapter.metadata.extra, "base_name": base, "source": "/home/somebody/photos/x.png"}
    metadata = AdapterMetadata(trigger_phrase="sks", synthesised=True, extra=extra)
    return Adapter(adapter.factors, metadata, adapter.kernels)


def test_the_card_of_a_lora(adapter: Adapter, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png")
    card = Card(
        licence="apache-2.0",
        consent="A drawn avatar: nobody.",
        figures={"identity similarity": 0.77},
        samples={"a portrait of sks": tmp_path / "made.png"},
        notes="For tests.",
    )
    folder = tmp_path / "lora"
    for _ in range(2):
        with_base(adapter, "hub:owner/base").save(folder, "diffusers", card)
    assert sorted(path.name for path in folder.rglob("*.*")) == [
        "0.png",
        "README.md",
        "pytorch_lora_weights.safetensors",
    ]
    front, text = front_of(folder / "README.md"), (folder / "README.md").read_text()
    assert front["base_model"] == "owner/base"
    assert front["instance_prompt"] == "sks"
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "diffusers"
    assert {"lora", "text-to-image", "template:sd-lora", "synthetic"} <= set(front["tags"])
    assert front["widget"] == [{"text": "a portrait of sks", "output": {"url": "images/0.png"}}]
    for words in ("not trained", "A drawn avatar: nobody.", "| identity similarity | 0.77 |"):
        assert words in text
    assert "For tests." in text
    assert "<Gallery />" in text
    assert_private(text)


def test_the_card_of_a_peft_folder(adapter: Adapter, tmp_path: Path) -> None:
    for _ in range(2):
        with_base(adapter, "hub:owner/base").save(tmp_path / "peft", "peft", Card())
    front, text = (
        front_of(tmp_path / "peft" / "README.md"),
        (tmp_path / "peft/README.md").read_text(),
    )
    assert front["library_name"] == "peft"
    assert "base_model:adapter:owner/base" in front["tags"]
    assert front["license"] == "unknown"
    assert "is not stated here" in text
    assert Adapter.load(tmp_path / "peft").factors.keys() == adapter.factors.keys()


def test_a_card_replaces_only_a_card(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine\n")
    with pytest.raises(LorasynthError, match="another text is there"):
        adapter.save(tmp_path / "me.safetensors", card=Card())
    assert (tmp_path / "README.md").read_text() == "mine\n"
    with pytest.raises(LorasynthError, match="must be an image file"):
        adapter.save(
            tmp_path / "b" / "x.safetensors", card=Card(samples={"p": tmp_path / "no.png"})
        )


def test_the_card_of_a_synthesizer(synth: Synthesizer, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "synth"
    card = Card(licence="apache-2.0", figures={"identity similarity": 0.77})
    for _ in range(2):
        synth.save_pretrained(folder, card)
    front, text = front_of(folder / "README.md"), (folder / "README.md").read_text()
    assert "base_model" not in front, "a folder is no repository"
    assert front["instance_prompt"] == "sks"
    assert front["library_name"] == "lorasynth"
    for words in ("drawn avatars", "0.955", "| identity similarity | 0.77 |", "PCA, 128 latents"):
        assert words in text
    assert_private(text)
    (folder / "README.md").write_text(text + "\nMore.\n")  # a card may be written on
    assert Synthesizer.from_pretrained(folder).fingerprint == synth.fingerprint
    synth.save(folder)  # without one, none is left of another state
    assert not (folder / "README.md").exists()


# The hub

SCRIPT = """
import sys
from lorasynth import Card, Synthesizer
from lorasynth.core.errors import LorasynthError

bundle, photo, cache, token = sys.argv[1:]
synth = Synthesizer.from_pretrained(bundle)
print(synth.push_to_hub("me/synth", Card(licence="mit"), private=True, token=token))
print(synth.push_to_hub("hub:me/synth", token=token, revision="next", commit_message="Again"))
for options in ({"token": token}, {"token": token, "revision": "next"}):
    again = Synthesizer.from_pretrained("hub:me/synth", cache_dir=cache, **options)
    assert again.fingerprint == synth.fingerprint
adapter = synth(photo)
print(adapter.push_to_hub("me/lora", Card(consent="Nobody."), token=token))
for what in (
    lambda: Synthesizer.from_pretrained("hub:me/synth", token="hf_" + "y" * 34),
    lambda: Synthesizer.from_pretrained("hub:me/nothing", token=token),
    lambda: Synthesizer.from_pretrained("hub:me/synth", token=token, revision="never"),
    lambda: synth.push_to_hub("me/other", token="hf_" + "y" * 34),
    lambda: synth.push_to_hub("no name", token=token),
):
    try:
        what()
    except LorasynthError as error:
        print("error:", error)
"""


def run_at(server: Hub, home: Path, script: str, *arguments: object) -> str:
    """What a script prints, in a process for which the stand-in is the hub."""
    environment = {
        **os.environ,
        # As in this process: the last bits of an embedding, which name its noise, depend on it.
        "OMP_NUM_THREADS": "1",
        "HF_ENDPOINT": server.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home / "home"),
        "HF_TOKEN": TOKEN,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hub, list[str], Path]:
    """The stand-in after all was pushed and fetched, what was printed, and the cache."""
    home = tmp_path_factory.mktemp("hub")
    with hub() as server:
        places = [ROOT / "bundle" / "synthesizer", PHOTO, home / "cache", TOKEN]
        printed = run_at(server, home, SCRIPT, *places).splitlines()
    return server, printed, home / "cache"


def test_a_synthesizer_goes_to_the_hub_and_comes_back(pushed: tuple[Hub, list[str], Path]) -> None:
    server, printed, cache = pushed
    assert server.private == {"me/synth": True, "me/lora": False}
    main = server.repositories["me/synth"]["main"]
    assert "license: mit" in main["README.md"].decode()
    assert "synthesizer.json" in main
    assert server.messages == ["Upload by lorasynth", "Again", "Upload by lorasynth"]
    assert printed[0].startswith(f"{server.address}/me/synth/commit/")
    assert len(list(cache.glob("models--me--synth/snapshots/*"))) == 2, "one a revision"


def test_a_lora_goes_to_the_hub_as_pipelines_load_it(
    pushed: tuple[Hub, list[str], Path], adapter: Adapter, tmp_path: Path
) -> None:
    files = pushed[0].repositories["me/lora"]["main"]
    assert set(files) == {"README.md", "pytorch_lora_weights.safetensors"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    torch.testing.assert_close(Adapter.load(tmp_path).to_vector(), adapter.to_vector())
    text = files["README.md"].decode()
    assert 'load_lora_weights("me/lora"' in text
    assert_private(text)


def test_what_the_hub_refuses_is_a_line(pushed: tuple[Hub, list[str], Path]) -> None:
    errors = [line for line in pushed[1] if line.startswith("error:")]
    assert len(errors) == 5
    for line, words in zip(
        errors,
        ("hub:me/synth", "hub:me/nothing", "hub:me/synth", "me/other", "owner/name"),
        strict=True,
    ):
        assert words in line
        assert TOKEN not in line


def test_a_lora_is_shared_only_with_consent(adapter: Adapter) -> None:
    with pytest.raises(ConfigError, match=r"must say whom .* give Card\(consent=...\)"):
        adapter.push_to_hub("me/lora", Card())


def test_the_blocks_of_the_page_run_one_after_another(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 5
    for name in ("bundle", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    check = "\nprint(image.size, pipe.get_active_adapters(), again.knows)"
    with hub() as server:
        printed = run_at(server, tmp_path, "".join(blocks) + check)
    assert printed.split("\n")[0] == "(64, 64) ['by_hand'] drawn avatars"
    assert set(server.repositories) == {"me/my-synthesizer", "me/my-lora"}
    assert (tmp_path / "my-lora" / "pytorch_lora_weights.safetensors").is_file()
    assert_private((tmp_path / "my-synthesizer" / "README.md").read_text())
