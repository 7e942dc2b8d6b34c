"""Files written here, loaded by diffusers and PEFT into the full U-Net of Stable Diffusion 1.5.

Its weights are random, in fp32.  A file that was not loaded at all would have an error of 1; what
loaders make of the other families' files is in test_table.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import PeftModel
from torch import Tensor, nn

from lorasynth.adapter import Adapter, Factor, Layout, Slot

TOLERANCE = 1e-3
RANK = 2


def random_weights(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a network that was made without weights; such that signals keep their size."""
    stream = torch.Generator().manual_seed(seed)
    network.to_empty(device="cpu")
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            nn.init.constant_(parameter, float(name.endswith("weight")))
        else:
            parameter.data.normal_(generator=stream).mul_(parameter[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)


def adapter_for(network: nn.Module, endings: tuple[str, ...], size: float = 0.3) -> Adapter:
    """An adapter on every layer whose name has one of the endings, of odd ranks too."""
    stream = torch.Generator().manual_seed(1)
    factors, kernels = {}, {}
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or not name.endswith(endings):
            continue
        inside, out = module.weight[0].numel(), module.weight.shape[0]
        scale = size * (inside * RANK) ** -0.5
        factors[name] = Factor(
            torch.randn(RANK, inside, generator=stream),
            scale * torch.randn(out, RANK, generator=stream),
        )
        if isinstance(module, nn.Conv2d):
            kernels[name] = (module.kernel_size[0], module.kernel_size[1])
    return Adapter(factors, kernels=kernels)


@contextmanager
def merged(network: nn.Module, adapter: Adapter) -> Iterator[None]:
    """The network with W + ΔW made by hand inside the context."""
    updates = {name: factor.B @ factor.A for name, factor in adapter.factors.items()}
    weights = {name: network.get_submodule(name).weight for name in updates}
    before = {name: weight.data.clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.data += updates[name].view_as(weight)
    yield
    for name, weight in weights.items():
        weight.data = before[name]


class Case:
    """One architecture: a network, what it says of a fixed input, and how files are loaded."""

    def __init__(
        self, network: nn.Module, inputs: dict[str, Any], endings: tuple[str, ...]
    ) -> None:
        self.network = network
        self.inputs = inputs
        self.adapter = adapter_for(network, endings)
        self.base = self.output(network)
        with merged(network, self.adapter):
            self.reference = self.output(network)

    def output(self, network: nn.Module) -> Tensor:
        with torch.no_grad():
            result: Tensor = network(**self.inputs, return_dict=False)[0]
        return result

    def error(self, network: nn.Module) -> float:
        """|loaded - reference| / |reference - base|."""
        changed = (self.reference - self.base).norm()
        assert changed > 0.01 * self.base.norm(), "the adapter must do something"
        return float((self.output(network) - self.reference).norm() / changed)


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYTHING = (
    *ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2",
    "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv",
)  # fmt: skip


@pytest.fixture(scope="module")
def sd1() -> Case:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    stream = torch.Generator().manual_seed(2)
    inputs = {
        "sample": torch.randn(1, 4, 16, 16, generator=stream),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 7, 768, generator=stream),
    }
    return Case(random_weights(unet), inputs, EVERYTHING)


def pipeline_of(unet: nn.Module) -> StableDiffusionPipeline:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@contextmanager
def loaded(pipe: Any, path: Path) -> Iterator[None]:
    """A pipeline with a file loaded, and without it afterwards."""
    pipe.load_lora_weights(str(path))
    yield
    pipe.unload_lora_weights()


@pytest.mark.parametrize("name", ["diffusers", "kohya"])
def test_stable_diffusion_1_loads_a_file(sd1: Case, name: str, tmp_path: Path) -> None:
    path = sd1.adapter.save(tmp_path / "me.safetensors", format=name)
    with loaded(pipeline_of(sd1.network), path):
        assert sd1.error(sd1.network) < TOLERANCE
    assert sd1.error(sd1.network) == pytest.approx(1, abs=1e-3), "unloaded, so nothing is left"


def test_stable_diffusion_1_loads_a_peft_folder(sd1: Case, tmp_path: Path) -> None:
    path = sd1.adapter.save(tmp_path / "peft", format="peft")
    network = PeftModel.from_pretrained(sd1.network, path)
    assert sd1.error(network) < TOLERANCE
    network.unload()


@pytest.mark.parametrize("name", ["diffusers", "kohya"])
def test_a_weights2weights_vector_fits_stable_diffusion_1(
    sd1: Case, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    modules = {
        n: m
        for n, m in sd1.network.named_modules()
        if n.endswith(("attn1.to_q", "attn1.to_v", "attn2.to_q", "attn2.to_v"))
    }
    layout = Layout.from_slots(
        Slot(n, m.in_features, m.out_features, 1) for n, m in modules.items()
    )
    assert (len(layout.slots), layout.size) == (64, 99_648)
    vector = torch.randn(layout.size, generator=torch.Generator().manual_seed(3))
    adapter = Adapter.from_vector(vector, layout)
    pipe = pipeline_of(sd1.network)
    logging.getLogger("diffusers").setLevel(logging.WARNING)
    with (
        caplog.at_level(logging.WARNING),
        loaded(pipe, adapter.save(tmp_path / "w.safetensors", name)),
    ):
        parameters = dict(sd1.network.named_parameters())
        for module, factor in adapter.factors.items():
            [key] = [k for k in parameters if k.startswith(f"{module}.lora_A.")]
            assert torch.equal(parameters[key], factor.A)
            assert torch.equal(parameters[key.replace("lora_A", "lora_B")], factor.B)
    assert "unexpected key" not in caplog.text.lower()
