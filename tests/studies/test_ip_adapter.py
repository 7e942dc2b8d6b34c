"""The IP-Adapter learns who has which colour, and leaves the base model as it was."""

import pytest
import torch

from lorasynth.base import BaseModel
from lorasynth.core.errors import ConfigError
from lorasynth.engine.trainer import Optimisation
from lorasynth.studies.ip_adapter import IPAdapter, IPAdapterConfig, train_ip_adapter
from predict.test_predict import Colours, MeanColour, base, losses_of_all

__all__ = ["base"]  # a fixture

SMALL = IPAdapterConfig(
    tokens=2, optimisation=Optimisation(steps=60, batch=6, lr=3e-2, warmup=1, ema=0.9)
)


@pytest.fixture(scope="module")
def trained(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> IPAdapter:
    checkpoint = tmp_path_factory.mktemp("run") / "ip.safetensors"
    return train_ip_adapter(base, MeanColour(), Colours(), SMALL, checkpoint)


def test_a_subjects_own_condition_denoises_it_best(base: BaseModel, trained: IPAdapter) -> None:
    own = torch.cat([MeanColour().embed(Colours().load(name).images)[:1] for name in Colours().ids])
    found = {}
    for name, conditions in (("own", own), ("other", own.roll(1, dims=0)), ("none", 0 * own)):
        with trained.attached(base.denoiser, conditions):
            found[name] = losses_of_all(base).mean()
    assert found["own"] < 0.998 * min(found["other"], found["none"])


def test_the_base_model_is_as_it_was(base: BaseModel, trained: IPAdapter) -> None:
    plain = base.sample(["a portrait"], [0])
    with trained.attached(base.denoiser, torch.zeros(1, 4)):
        assert not torch.equal(base.sample(["a portrait"], [0]), plain)
    assert torch.equal(base.sample(["a portrait"], [0]), plain)
    assert base.denoiser.encoder_hid_proj is None


def test_a_batch_that_cuts_a_block_is_refused(base: BaseModel, trained: IPAdapter) -> None:
    with (
        trained.attached(base.denoiser, torch.zeros(3, 4)),
        pytest.raises(ConfigError, match="multiple of an IP-Adapter's 3 conditions, but has 8"),
    ):
        base.sample(["a portrait"] * 4, [0] * 4)


def test_blocks_of_the_batch_have_their_own_conditions(base: BaseModel, trained: IPAdapter) -> None:
    conditions = torch.nn.functional.normalize(torch.randn(2, 4), dim=1)
    noisy = torch.randn(1, *base.latent_shape).expand(4, -1, -1, -1)
    times, text = torch.full((4,), 500), base.encode_prompts(["a portrait"] * 4)
    with trained.attached(base.denoiser, conditions):
        both = base.denoise(noisy, times, text)
    with trained.attached(base.denoiser, conditions[1:]):
        one = base.denoise(noisy, times, text)
    torch.testing.assert_close(both[2:], one[2:])
    assert not torch.allclose(both[0], one[0])
