"""Gradient descent on the denoising loss for n subjects at once, each as if it were alone.

Whatever an adapter is made of (its factors, the coefficients of a mixture, a latent) is found by
this one loop.  The subjects share every pass through the network, and nothing else: the sum of
their losses has for each the gradient of its own loss, the optimisers act element by element,
gradients are clipped subject by subject, and random numbers come from streams of their own
(`lorasynth.engine.draws`).  So the result does not depend on who else is in the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors
from lorasynth.base import BaseModel, StackedAdapters
from lorasynth.engine.descent import Descent
from lorasynth.engine.draws import Draw, draw_steps
from lorasynth.engine.encoded import EncodedSubjects, encode_subjects
from lorasynth.images import Subject

#: Multiplies the loss of models in float16, whose small gradients would be lost otherwise; divided
#: out again before they are used.
_HALF_GAIN = 1024.0

#: Called after each step with the number of steps done and each subject's loss, on the device.
OnStep = Callable[[int, Tensor], None]


def descend(
    base: BaseModel,
    config: Descent,
    subjects: Sequence[Subject],
    numbers: Sequence[Float[Tensor, "n ..."]],
    factors: Callable[[], Factors],
    *,
    scale: float = 1.0,
    penalties: Callable[[], Float[Tensor, " n"]] | None = None,
    anchored: bool = False,
    on_step: OnStep | None = None,
) -> Float[Tensor, "n steps"]:
    """Find, in place, the `numbers` whose adapters denoise their subjects' images best.

    Args:
        base: the frozen base model, on its device and in its precision.
        config: how.
        subjects: n subjects.
        numbers: leaves that require gradients; the first axis runs over subjects.  They end as
            the average over the last steps.
        factors: adapters as they follow from `numbers`, stacked over the subjects.
        scale: multiplies ΔW of all adapters.
        penalties: added to the losses of the subjects.
        anchored: weight decay pulls toward where the numbers start, not toward zero.
        on_step: called after each step.

    Returns:
        The denoising loss of each subject at each step.

    Raises:
        CollectionError: there is no subject, or one has no images or captions.
    """
    encoded = encode_subjects(base, subjects)
    gain = _HALF_GAIN if base.dtype == torch.float16 else 1.0
    stepper = _Stepper(config, numbers, anchored=anchored, gain=gain)
    draws = draws_of(base, config, [subject.id for subject in subjects], encoded)
    losses = []
    with StackedAdapters(base.denoiser, factors(), scale) as stacked:
        for step, draw in enumerate(draws):
            stacked.factors = factors()
            loss = denoising_losses(base, encoded, draw)
            stepper.step(loss if penalties is None else loss + penalties())
            losses.append(loss.detach())
            if on_step is not None:
                on_step(step + 1, losses[-1])
    stepper.finish()
    return torch.stack(losses, dim=1)


def draws_of(
    base: BaseModel, config: Descent, subject_ids: Sequence[str], encoded: EncodedSubjects
) -> Iterator[Draw]:
    """The draws of each step for encoded subjects, in the form that the base model takes."""
    return draw_steps(
        config,
        subject_ids,
        encoded.counts,
        draw_times=base.draw_times,
        latent_shape=tuple(encoded.latents.shape[1:]),
        device=base.device,
        dtype=encoded.latents.dtype,
    )


def denoising_losses(base: BaseModel, encoded: EncodedSubjects, draw: Draw) -> Float[Tensor, " n"]:
    """Each subject's mean squared error of what the base model predicts, over its own samples."""
    latents, texts = encoded.pick(draw.images, draw.dropped)
    noise, times = draw.noise.flatten(0, 1), draw.times.flatten()
    noisy, target = base.add_noise(latents, noise, times)
    predicted = base.denoise(noisy, times, texts)
    exact = torch.promote_types(predicted.dtype, torch.float32)
    error = predicted.to(exact) - target.to(exact)
    losses: Tensor = error.square().reshape(len(draw.images), -1).mean(dim=1)
    return losses


class _Stepper:
    """The optimiser, clipping, decay and averaging of n subjects, each as if it were alone."""

    def __init__(
        self, config: Descent, numbers: Sequence[Tensor], *, anchored: bool, gain: float
    ) -> None:
        self.config = config
        self.gain = gain
        self.numbers = list(numbers)
        self.anchors = [
            p.detach().clone() if anchored else torch.zeros_like(p) for p in self.numbers
        ]
        self.means = [torch.zeros_like(p) for p in self.numbers]
        self.steps = 0
        options: dict[str, Any] = {"lr": config.learning_rate}
        self.optimiser: torch.optim.Optimizer = (
            torch.optim.Adam(self.numbers, **options)
            if config.optimiser == "adam"
            else torch.optim.SGD(self.numbers, **options, momentum=config.momentum)
        )

    def step(self, losses: Float[Tensor, " n"]) -> None:
        self.optimiser.zero_grad()
        (losses.sum() * self.gain).backward()
        gradients = [p.grad for p in self.numbers if p.grad is not None]
        if self.gain != 1:
            torch._foreach_div_(gradients, self.gain)
        if self.config.clip is not None:
            clip_each(gradients, self.config.clip)
        rate = self.config.rate(self.steps)
        self.optimiser.param_groups[0]["lr"] = rate
        with torch.no_grad():
            if self.config.weight_decay:
                weight = rate * self.config.weight_decay
                torch._foreach_lerp_(self.numbers, self.anchors, weight)
            self.optimiser.step()
            self.steps += 1
            averaged = self.steps - (self.config.steps - self.config.averaged_steps)
            if averaged > 0:
                torch._foreach_lerp_(self.means, self.numbers, 1 / averaged)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the averages in place of the last step's numbers."""
        torch._foreach_copy_(self.numbers, self.means)


def clip_each(gradients: Sequence[Float[Tensor, "n ..."]], limit: float) -> None:
    """Scale down, in place, the gradients of each subject whose norm over all of them is too large.

    As `torch.nn.utils.clip_grad_norm_` does for one.
    """
    norms = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.reshape(-1, *[1] * (gradient.dim() - 1)))
