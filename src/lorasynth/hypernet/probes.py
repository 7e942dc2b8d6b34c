"""Measurements during training that need nothing from outside."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.core.randomness import torch_stream
from lorasynth.hypernet.batches import TrainingSet
from lorasynth.hypernet.latent_diffusion import LatentDiffusion


class CleanError:
    """Mean squared error of the predicted x_0 on held-out subjects, at a few noise levels.

    In normalised units, where the latents' variance is about 1: 1 means that nothing is known.  It
    is the same unit for every parameterisation, which their losses are not.

    Args:
        latents: of held-out adapters, in the codec's units.
        conditions: one for each.
    """

    #: The figure that is the mean over the levels.
    mean = "x0_error"
    #: Sigma/alpha of the noise, which is the same at every call.
    levels = (0.1, 0.3, 1.0, 3.0, 10.0)

    @classmethod
    def of(cls, held_out: TrainingSet) -> "CleanError":
        """On held-out subjects, with the first condition of each."""
        return cls(held_out.latents, held_out.conditions[:, 0])

    def __init__(self, latents: Float[Tensor, "n k"], conditions: Float[Tensor, "n m"]) -> None:
        self.latents, self.conditions = latents, conditions
        self.eps = torch.randn(latents.shape, generator=torch_stream(0, "probe"))

    def __call__(self, step: int, model: LatentDiffusion) -> Mapping[str, float]:  # noqa: ARG002
        """`x0_error` is the mean over the levels, `x0_error_<level>` the error at one."""
        like = model.latent_normaliser.mean
        truth, eps, condition = (x.to(like) for x in (self.latents, self.eps, self.conditions))
        errors = {}
        for level in self.levels:
            found = model.clean(truth, condition, eps, level)
            error = model.latent_normaliser(found) - model.latent_normaliser(truth)
            errors[f"{self.mean}_{level:g}"] = float(error.square().mean())
        return {self.mean: sum(errors.values()) / len(errors), **errors}


def gradient_norms(step: int, model: LatentDiffusion) -> Mapping[str, float]:  # noqa: ARG001
    """The gradient in each layer at the last step (paper, 4.3); clipping changes neither figure.

    `gradient_<i>_<layer>` is the share of the whole gradient's norm, `weight_<i>_<layer>` the root
    mean square over the layer's weights, as a multiple of that over all weights.  Layers are in the
    order in which the denoiser names them: the first part of a parameter's name, with its number
    where it is one of several.
    """
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name, parameter in model.denoiser.named_parameters():
        if parameter.grad is None:
            continue
        first, second, *_ = [*name.split("."), ""]
        layer = f"{first}{second}" if second.isdigit() else first
        squares[layer] = squares.get(layer, 0) + parameter.grad.square().sum()
        counts[layer] = counts.get(layer, 0) + parameter.numel()
    whole = torch.stack(list(squares.values())).sum().clamp(min=1e-30)
    found = {}
    for i, (layer, value) in enumerate(squares.items()):
        share = float(value / whole)
        found[f"gradient_{i:02d}_{layer}"] = share**0.5
        found[f"weight_{i:02d}_{layer}"] = (share * sum(counts.values()) / counts[layer]) ** 0.5
    return found
