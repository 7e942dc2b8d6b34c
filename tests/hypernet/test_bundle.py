"""The shipped synthesizers give the latents that they gave when they were made."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorasynth.codec import load_codec
from lorasynth.hypernet import load_hypernet

BUNDLE = Path(__file__).parents[2] / "bundle"

#: For each, from the code of 0.1, in float64: four values of the first row, two of the second and
#: the root mean square, of encoded vectors, of decoded latents, and of latents sampled with
#: conditions and without.
EXPECTED = {
    "synthesizer": (
        [-0.3277328, 0.56306226, -0.48715033, -0.09103167, 0.69278663, -0.20325125, 1.11358213],
        [-0.00417407, -0.10741603, -0.1100278, -0.0560155, -0.02493179, -0.03782337, 0.12899111],
        [3.11441465, -3.87028897, 1.94260019, -5.61406539, -0.0431337, 0.08955659, 1.06390327],
        [5.12879473, 4.95890589, 2.0957724, -1.86722591, -0.05939464, 0.06494578, 1.0225647],
    ),
    "pretrained": (
        [0.43134849, 0.65769249, 0.06864879, -0.20909168, -0.0623191, -0.04444653, 1.20419043],
        [-0.00417407, -0.107416, -0.11002782, -0.05601551, -0.065991, -0.18869656, 0.12709754],
        [-2.81077741, -4.46059495, -1.01325767, 5.517157, 0.00098335, -0.001926, 1.05849452],
        [0.0] * 7,
    ),
}


def wave(width: int, step: float) -> Tensor:
    """Two rows that any machine makes alike."""
    return torch.sin(step * torch.arange(1, 2 * width + 1, dtype=torch.float64)).view(2, width)


def seen(x: Tensor) -> Tensor:
    return torch.cat([x[0, :4], x[1, -2:], x.square().mean().sqrt()[None]])


@pytest.mark.parametrize("name", EXPECTED)
def test_latents_are_as_before(name: str) -> None:
    codec = load_codec(BUNDLE / name / "codec").double()
    hypernet = load_hypernet(BUNDLE / name / "hypernet").double()
    condition = wave(hypernet.condition_width, 0.23)
    condition = condition / condition.norm(dim=1, keepdim=True)
    noise = 1.4 * wave(hypernet.latents, 0.91)
    found = (
        codec.encode(0.01 * wave(codec.width, 0.37)),
        codec.decode(wave(codec.latents, 0.61)),
        hypernet.sample(condition, noise),
        hypernet.sample(None, noise),
    )
    for value, expected in zip(found, EXPECTED[name], strict=True):
        torch.testing.assert_close(seen(value), torch.tensor(expected).double(), atol=1e-6, rtol=0)
