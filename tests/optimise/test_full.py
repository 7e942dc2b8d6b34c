"""Full fine-tuning, beside a LoRA of full rank and on its own."""

import pytest
import torch

from lorasynth.base import BaseModel, Memory
from lorasynth.core.errors import ConfigError
from lorasynth.engine import OptimizerConfig
from lorasynth.optimise import fine_tune, weights_of

from .test_coordinates import subject


@pytest.fixture(scope="module")
def base(pipeline_folder) -> BaseModel:
    return BaseModel.load(pipeline_folder)


def state(base: BaseModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in base.denoiser.parameters()])


def test_the_base_model_stays_as_it_was_and_images_change_inside_the_context(
    base: BaseModel,
) -> None:
    before = state(base)
    plain = base.sample(["a portrait"], [0])
    trained = fine_tune(base, subject("one"), OptimizerConfig(steps=10, learning_rate=1e-3))
    assert torch.equal(state(base), before)
    assert not any(p.requires_grad for p in base.denoiser.parameters())
    with weights_of(base, trained):
        assert not torch.equal(state(base), before)
        changed = base.sample(["a portrait"], [0])
    assert torch.equal(base.sample(["a portrait"], [0]), plain)
    assert not torch.equal(changed, plain)


def test_every_kind_of_weight_is_trained(base: BaseModel) -> None:
    trained = fine_tune(base, subject("one"), OptimizerConfig(steps=2, learning_rate=1e-2))
    moved = {
        name for name, value in base.denoiser.state_dict().items() if not value.equal(trained[name])
    }
    assert len(moved) > 0.9 * len(trained)


def test_quantised_weights_are_not_trained(pipeline_folder) -> None:
    pytest.importorskip("bitsandbytes")
    base = BaseModel.load(pipeline_folder, memory=Memory(quantize="nf4"))
    with pytest.raises(ConfigError, match="leave out --quantize"):
        fine_tune(base, subject("one"), OptimizerConfig(steps=1))
