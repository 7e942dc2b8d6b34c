"""Noise schedules in continuous time."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lorasynth.diffusion.contract import SCHEDULES, Schedule

#: Keeps the noise at the first of many steps from vanishing (Nichol & Dhariwal 2021, sec. 3.2).
OFFSET = 0.008


@SCHEDULES.register("cosine")
class Cosine(Schedule):
    """Variance preserving: alpha-bar(t) = f(t)/f(0), f(t) = cos^2((t + s)/(1 + s) pi/2).

    Nichol & Dhariwal 2021, eq. 17; alpha = sqrt(alpha-bar) and sigma = sqrt(1 - alpha-bar).
    """

    @override
    def alpha(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """sqrt(alpha-bar(t))."""
        return torch.cos(_angle(t)) / math.cos(_START)

    @override
    def sigma(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """sqrt(1 - alpha-bar(t)), written without the cancellation near t = 0."""
        start, angle = _START, _angle(t)
        return (torch.sin(angle - start) * torch.sin(angle + start)).sqrt() / math.cos(start)

    @override
    def time(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The time at which alpha-bar = sigmoid(log_snr)."""
        # sin of the angle, not its cosine: near t = 0 the cosine is flat and would lose the digits.
        sine_squared = torch.sigmoid(-log_snr) * math.cos(_START) ** 2 + math.sin(_START) ** 2
        angle = torch.asin(sine_squared.clamp(max=1).sqrt())
        return (angle * (1 + OFFSET) / (math.pi / 2) - OFFSET).clamp(0, 1)


def _angle(t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
    return (t + OFFSET) / (1 + OFFSET) * (math.pi / 2)


_START = OFFSET / (1 + OFFSET) * (math.pi / 2)
