"""Exponential moving average of a model's weights: diffusers' `EMAModel`, made storable and usable.

`EMAModel` does the averaging (with its warm-up of (1 + step)/(10 + step)).  Added is what it lacks
here: its state as named tensors, since its own way to disk wants a diffusers model class, and a
context in which the averaged weights are in place.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class AveragedWeights:
    """The running average of a module's parameters.

    Args:
        module: the module that is trained; it is not copied.
        decay: the weight of the past at each step, once warmed up.
        foreach: treat all tensors at once, which those that FSDP2 shards among processes refuse.
    """

    def __init__(self, module: nn.Module, decay: float, *, foreach: bool = True) -> None:
        self._module = module
        self._average = EMAModel(module.parameters(), decay=decay, foreach=foreach)

    def step(self) -> None:
        """Take the module's present weights into the average."""
        self._average.step(self._module.parameters())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the module has the averaged weights, and is in evaluation mode."""
        training = self._module.training
        self._average.store(self._module.parameters())
        self._average.copy_to(self._module.parameters())
        self._module.eval()
        try:
            yield
        finally:
            self._average.restore(self._module.parameters())
            self._module.train(training)

    def keep(self) -> None:
        """Leave the averaged weights in the module for good."""
        self._average.copy_to(self._module.parameters())

    def weights(self) -> dict[str, Tensor]:
        """The average by parameter name."""
        names = [name for name, _ in self._module.named_parameters()]
        return dict(zip(names, self._average.shadow_params, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name, and the count of steps."""
        return {**self.weights(), "step": torch.tensor(self._average.optimization_step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved average."""
        self._average.optimization_step = int(state["step"])
        for shadow, (name, _) in zip(
            self._average.shadow_params, self._module.named_parameters(), strict=True
        ):
            shadow.copy_(state[name])
