"""Gradient descent on the denoising loss for n subjects at once, each as if it were alone.

Whatever an adapter is made of (its factors, the coefficients of a mixture, a latent) is found by
this one loop.  The subjects share every pass through the network, and nothing else: the sum of
their losses has for each the gradient of its own loss, the optimisers act element by element,
gradients are clipped subject by subject, and random numbers come from streams of their own
(`lorasynth.engine.draws`).  So the result does not depend on who else is in the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.adapter import Factors, map_factors
from lorasynth.base import BaseModel, StackedAdapters
from lorasynth.engine.draws import Draw, draw_steps
from lorasynth.engine.encoded import EncodedSubjects, cut, encode_subjects
from lorasynth.engine.recipe import OptimizerConfig
from lorasynth.images import Subject

#: Multiplies the loss of models in float16, whose small gradients would be lost otherwise; divided
#: out again before they are used.
_HALF_GAIN = 1024.0

#: Called after each step with the number of steps done and each subject's loss, on the device;
#: where it returns True, that step was the last.
OnStep = Callable[[int, Tensor], bool | None]

#: Called before a pass with the adapter of each of its samples; None for all in their order.
Renew: TypeAlias = Callable[..., None]


class Trainable(nn.Module, ABC):
    """Adapters of n subjects, each a function of parameters of its own.

    The first axis of every parameter runs over the subjects.

    Attributes:
        config: how the parameters are found.
        scale: multiplies ΔW while training.
        anchored: weight decay pulls toward where the parameters start, not toward zero.
    """

    scale: float = 1.0
    anchored: bool = False

    def __init__(self, config: OptimizerConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self) -> Factors:
        """The adapters as they follow from the parameters, stacked."""

    def penalties(self) -> Float[Tensor, " n"] | None:
        """What is added to each subject's denoising loss; None for nothing."""
        return None

    @torch.no_grad()
    def adapters(self) -> Factors:
        """The adapters that the parameters stand for now, any scale folded into B."""
        return map_factors(torch.clone, self())

    @contextmanager
    def attached(self, base: BaseModel) -> Iterator[Renew]:
        """The base model with the adapters; what is yielded is called before each pass.

        It is told whose adapters each sample of the pass takes, if not all in their order.
        """
        with StackedAdapters(base.denoiser, self(), self.scale) as stacked:

            def renew(whose: Tensor | None = None) -> None:
                now = self()
                some = now if whose is None else map_factors(lambda part: part[whose], now)
                stacked.factors = some

            yield renew


class Fleet(NamedTuple):
    """Adapters trained together.

    Attributes:
        factors: module name -> factors stacked over the n subjects, any scale folded into B.
        losses: denoising loss of each adapter at each step.
    """

    factors: Factors
    losses: Float[Tensor, "n steps"]


def descend(
    base: BaseModel,
    subjects: Sequence[Subject],
    trainable: Trainable,
    *,
    on_step: OnStep | None = None,
) -> Fleet:
    """Minimise, in place, the denoising loss of the subjects' images over the parameters.

    Args:
        base: the frozen base model, on its device and in its precision.
        subjects: n subjects.
        trainable: of n adapters; its parameters end as the average over the last steps, or, if
            `on_step` ended it, as they were then.
        on_step: called after each step; may end the descent.

    Raises:
        CollectionError: there is no subject, or one has no images or captions.
        LayoutError: the adapters do not fit the base model.
    """
    encoded = encode_subjects(base, subjects)
    gain = _HALF_GAIN if base.dtype == torch.float16 else 1.0
    stepper = _Stepper(trainable.to(base.device), gain)
    ids = [subject.id for subject in subjects]
    losses = []
    with trainable.attached(base) as renew:
        for step, draw in enumerate(draw_steps(base, trainable.config, ids, encoded.counts)):
            exact = torch.promote_types(base.dtype, torch.float32)
            losses.append(torch.zeros(len(ids), dtype=exact, device=base.device))
            stepper.step(_passes(base, encoded, draw, trainable, renew, losses[-1]))
            if on_step is not None and on_step(step + 1, losses[-1]):
                break
        else:
            stepper.finish()
    return Fleet(trainable.adapters(), torch.stack(losses, dim=1))


def _passes(
    base: BaseModel,
    encoded: EncodedSubjects,
    draw: Draw,
    trainable: Trainable,
    renew: Renew,
    found: Float[Tensor, " n"],
) -> Iterator[Float[Tensor, " _"]]:
    """The losses of a step, pass after pass; the subjects' denoising losses are added to `found`.

    Each must have gone backward before the next begins, which may have other adapters attached.
    """
    if encoded.sides is None:
        renew()
        loss, extra = denoising_losses(base, encoded, draw), trainable.penalties()
        found += loss.detach()
        yield loss if extra is None else loss + extra
        return
    for whose, some, part in encoded.of_equal_sides(draw):
        renew(whose)
        loss = denoising_losses(base, some, part) / draw.images.shape[1]
        found.index_add_(0, whose, loss.detach())
        yield loss
    renew()
    if (extra := trainable.penalties()) is not None:
        yield extra


def denoising_losses(base: BaseModel, encoded: EncodedSubjects, draw: Draw) -> Float[Tensor, " n"]:
    """Each subject's mean squared error of what the base model predicts, over its own samples.

    The images have equal sides.
    """
    latents, texts = encoded.pick(draw.images, draw.dropped)
    noise, times = cut(draw.noise.flatten(0, 1), latents.shape[2:]), draw.times.flatten()
    noisy, target = base.add_noise(latents, noise, times)
    predicted = base.denoise(noisy, times, texts)
    exact = torch.promote_types(predicted.dtype, torch.float32)
    error = predicted.to(exact) - target.to(exact)
    losses: Tensor = error.square().reshape(len(draw.images), -1).mean(dim=1)
    return losses


class _Stepper:
    """The optimiser, clipping, decay and averaging of n subjects, each as if it were alone."""

    def __init__(self, trainable: Trainable, gain: float) -> None:
        self.config = config = trainable.config
        self.gain = gain
        self.params: list[Tensor] = list(trainable.parameters())
        self.steps = 0
        self.means = [torch.zeros_like(p) for p in self.params]
        self.centres: list[Tensor] = []
        if config.weight_decay:
            self.centres = [
                p.detach().clone() if trainable.anchored else torch.zeros_like(p)
                for p in self.params
            ]
        rate = config.learning_rate
        self.optimiser: torch.optim.Optimizer = (
            torch.optim.Adam(self.params, lr=rate)
            if config.optimiser == "adam"
            else torch.optim.SGD(self.params, lr=rate, momentum=config.momentum)
        )

    def step(self, losses: Iterable[Float[Tensor, " _"]]) -> None:
        self.optimiser.zero_grad()
        for part in losses:
            (part.sum() * self.gain).backward()
        gradients = [p.grad for p in self.params if p.grad is not None]
        if self.gain != 1:
            torch._foreach_div_(gradients, self.gain)
        if self.config.clip is not None:
            clip_each(gradients, self.config.clip)
        rate = self.config.rate(self.steps)
        self.optimiser.param_groups[0]["lr"] = rate
        with torch.no_grad():
            if self.centres:
                torch._foreach_lerp_(self.params, self.centres, rate * self.config.weight_decay)
            self.optimiser.step()
            self.steps += 1
            averaged = self.steps - (self.config.steps - self.config.averaged_steps)
            if averaged > 0:
                torch._foreach_lerp_(self.means, self.params, 1 / averaged)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the averages in place of the last step's parameters."""
        torch._foreach_copy_(self.params, self.means)


def clip_each(gradients: Sequence[Float[Tensor, "n ..."]], limit: float) -> None:
    """Scale down, in place, the gradients of each subject whose norm over all of them is too large.

    As `torch.nn.utils.clip_grad_norm_` does for one.
    """
    norms = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.reshape(-1, *[1] * (gradient.dim() - 1)))
