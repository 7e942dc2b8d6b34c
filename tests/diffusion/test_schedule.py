import math

import pytest
import torch
from diffusers import DDPMScheduler

from lorasynth.diffusion import Cosine, discretise


def test_the_cosine_schedule_is_nichol_and_dhariwals_and_preserves_variance() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    f = [math.cos((float(x) + 0.008) / 1.008 * math.pi / 2) ** 2 for x in t]
    expected = torch.tensor(f, dtype=torch.float64) / f[0]
    torch.testing.assert_close(Cosine().alpha(t).square(), expected)
    total = Cosine().alpha(t).square() + Cosine().sigma(t).square()
    torch.testing.assert_close(total, torch.ones_like(t))


@pytest.mark.parametrize("steps", [10, 1000])
def test_the_discrete_schedule_is_diffusers_cosine(steps: int) -> None:
    theirs = DDPMScheduler(num_train_timesteps=steps, beta_schedule="squaredcos_cap_v2").betas
    torch.testing.assert_close(discretise(Cosine(), steps), theirs, atol=1e-6, rtol=1e-5)
