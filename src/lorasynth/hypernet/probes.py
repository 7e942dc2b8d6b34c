"""Measurements during training that need nothing from outside."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.hypernet.latent_diffusion import LatentDiffusion
from lorasynth.randomness import torch_stream


class CleanError:
    """Mean squared error of the predicted x_0 on held-out subjects, at a few noise levels.

    In normalised units, where the latents' variance is about 1: 1 means that nothing is known.  It
    is the same unit for every parameterisation, which their losses are not.

    Args:
        latents: of held-out adapters, in the codec's units.
        conditions: one for each; None to measure without.
        levels: sigma/alpha of the noise.
        seed: of the noise, which is the same at every call.
    """

    def __init__(
        self,
        latents: Float[Tensor, "n k"],
        conditions: Float[Tensor, "n m"] | None,
        *,
        levels: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
        seed: int = 0,
    ) -> None:
        self.latents = latents
        self.conditions = conditions
        self.levels = levels
        self.eps = torch.randn(latents.shape, generator=torch_stream(seed, "probe"))

    def __call__(self, step: int, model: LatentDiffusion) -> Mapping[str, float]:  # noqa: ARG002
        """`x0_error` is the mean over the levels, `x0_error_<level>` the error at one."""
        like = model.latent_normaliser.mean
        truth, eps = self.latents.to(like), self.eps.to(like)
        condition = None if self.conditions is None else self.conditions.to(like)
        errors = {}
        for level in self.levels:
            found = model.clean(truth, condition, eps, level)
            error = model.latent_normaliser(found) - model.latent_normaliser(truth)
            errors[f"x0_error_{level:g}"] = float(error.square().mean())
        return {"x0_error": sum(errors.values()) / len(errors), **errors}


class GradientNorms:
    """The gradient's norm in each layer at the last step, as a share of the whole (paper, 4.3).

    `gradient_<i>_<layer>`, in the order in which the denoiser names its layers: the first part of a
    parameter's name, with its number where it is one of several.  Clipping does not change shares.
    """

    def __call__(self, step: int, model: LatentDiffusion) -> Mapping[str, float]:  # noqa: ARG002
        """Read the gradients that the last step left."""
        squares: dict[str, Tensor] = {}
        for name, parameter in model.denoiser.named_parameters():
            if parameter.grad is None:
                continue
            first, second, *_ = [*name.split("."), ""]
            layer = f"{first}{second}" if second.isdigit() else first
            squares[layer] = squares.get(layer, 0) + parameter.grad.square().sum()
        whole = torch.stack(list(squares.values())).sum().clamp(min=1e-30)
        return {
            f"gradient_{i:02d}_{layer}": float((value / whole).sqrt())
            for i, (layer, value) in enumerate(squares.items())
        }
