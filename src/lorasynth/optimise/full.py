"""Full fine-tuning of the base model on one subject: what LoRA is compared with."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, nn
from typing_extensions import override

from lorasynth.adapter import Factors
from lorasynth.base import BaseModel
from lorasynth.core.errors import ConfigError
from lorasynth.engine import OptimizerConfig, Trainable, descend
from lorasynth.images import Subject

#: All weights of a denoiser, by name.
Weights: TypeAlias = dict[str, Tensor]


class FullWeights(Trainable):
    """Every weight of a denoiser, in place; of one subject, since nothing is common to two."""

    def __init__(self, base: BaseModel, config: OptimizerConfig) -> None:
        super().__init__(config)
        if not all(p.is_floating_point() for p in base.denoiser.parameters()):
            raise ConfigError("all weights can be trained only whole: leave out --quantize")
        # Views with the axis of subjects, which share the weights' memory.
        self._views = nn.ParameterList(
            nn.Parameter(p.data[None]) for p in base.denoiser.parameters()
        )

    @override
    def forward(self) -> Factors:
        return {}

    @override
    @contextmanager
    def attached(self, base: BaseModel) -> Iterator[Callable[[], None]]:
        def moved_to(view: nn.Parameter) -> Callable[[Tensor], None]:
            def move(weight: Tensor) -> None:
                assert weight.grad is not None
                view.grad, weight.grad = weight.grad[None], None

            return move

        handles = []
        for weight, view in zip(base.denoiser.parameters(), self._views, strict=True):
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(moved_to(view)))
        try:
            yield lambda *_: None
        finally:
            for handle in handles:
                handle.remove()
            base.denoiser.requires_grad_(False)


def fine_tune(base: BaseModel, subject: Subject, config: OptimizerConfig) -> Weights:
    """Train every weight of the denoiser, with the draws that a LoRA would see.

    Args:
        base: whose denoiser is trained, and is as it was afterwards.
        subject: who.
        config: how.

    Returns:
        The trained weights.

    Raises:
        CollectionError: the subject has no images or captions.
        ConfigError: the base model is quantised.
    """
    weights, before = FullWeights(base, config), _copy(base)
    try:
        descend(base, [subject], weights)
        return _copy(base)
    finally:
        base.denoiser.load_state_dict(before)


@contextmanager
def weights_of(base: BaseModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The base model with other weights of its denoiser inside the context."""
    before = _copy(base)
    base.denoiser.load_state_dict(dict(weights))
    try:
        yield
    finally:
        base.denoiser.load_state_dict(before)


def _copy(base: BaseModel) -> Weights:
    return {name: value.detach().clone() for name, value in base.denoiser.state_dict().items()}
