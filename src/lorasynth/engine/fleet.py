"""Train many adapters in one batch of the frozen base model.

An adapter is the same whatever fleet it is trained in (`lorasynth.engine.descent`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.adapter import Factor, Factors
from lorasynth.base import BaseModel
from lorasynth.core.errors import CollectionError, ConfigError
from lorasynth.core.randomness import torch_stream
from lorasynth.engine.loop import OnStep, descend
from lorasynth.engine.prior import class_latents, prior_losses
from lorasynth.engine.recipe import Recipe
from lorasynth.images import Subject


class Fleet(NamedTuple):
    """Adapters trained together.

    Attributes:
        factors: module name -> factors stacked over the n subjects, any scale folded into B.
        losses: denoising loss of each adapter at each step.
    """

    factors: Factors
    losses: Float[Tensor, "n steps"]


def train_fleet(
    base: BaseModel,
    recipe: Recipe,
    subjects: Sequence[Subject],
    *,
    anchor: Factors | None = None,
    classes: Float[Tensor, "p c h w"] | None = None,
    dtype: torch.dtype = torch.float32,
    on_step: OnStep | None = None,
) -> Fleet:
    """Train one adapter for each subject, all in one batch.

    Args:
        base: the frozen base model, on its device and in its precision.
        recipe: how each adapter is trained.
        subjects: what each adapter is trained on.
        anchor: factors (n or 1 adapters, any scale folded in) to start from, and to be pulled
            toward by weight decay; None: start as the recipe says, decay toward zero.
        classes: latents of the images that the recipe's prior asks for; None: make them, if it
            does.
        dtype: of the factors and their optimiser.
        on_step: called after each step.

    Raises:
        CollectionError: there is no subject, or one has no images or captions.
        ConfigError: a target matches no module, or is narrower than the rank.
    """
    ids = [subject.id for subject in subjects]
    targets = base.target_linears(recipe.targets)
    if anchor is None:
        start = start_factors(targets, recipe, ids)
    else:
        start = {name: Factor(f.A, f.B / recipe.scale) for name, f in anchor.items()}
    factors = _leaves(start, recipe, len(ids), base.device, dtype)
    penalties = None
    if recipe.prior is not None:
        if classes is None:
            classes = class_latents(base, recipe.prior, recipe.seed)
        penalties = prior_losses(base, recipe, recipe.prior, classes, ids)
    losses = descend(
        base,
        recipe,
        subjects,
        [part for factor in factors.values() for part in factor if part.requires_grad],
        lambda: factors,
        scale=recipe.scale,
        penalties=penalties,
        anchored=anchor is not None,
        on_step=on_step,
    )
    folded = {
        name: Factor(f.A.detach(), f.B.detach() * recipe.scale) for name, f in factors.items()
    }
    return Fleet(folded, losses)


def start_factors(
    targets: Mapping[str, nn.Linear], recipe: Recipe, subject_ids: Sequence[str] = ()
) -> Factors:
    """The recipe's A, and B = 0; leading axis 1 where all subjects share it.

    Args:
        targets: module name -> module.
        recipe: how adapters are trained.
        subject_ids: whose adapters start from an A of their own, if the recipe says so.

    Raises:
        ConfigError: a target is narrower than the rank.
    """
    for name, module in targets.items():
        if recipe.rank > min(module.in_features, module.out_features):
            raise ConfigError(
                f"Recipe.rank must be at most the narrower side of each target, but is "
                f"{recipe.rank}, and {name} is {module.in_features} -> {module.out_features}"
            )
    if recipe.start == "shared":
        parts = {name: [_orthonormal(name, m, recipe)] for name, m in targets.items()}
    else:
        parts = {name: [] for name in targets}
        for subject in subject_ids:
            stream = torch_stream(recipe.seed, "subject", subject, "start")
            for name, module in targets.items():
                uniform = 2 * torch.rand(recipe.rank, module.in_features, generator=stream) - 1
                parts[name].append(uniform.double() / math.sqrt(module.in_features))
    return {
        name: Factor(
            torch.stack(parts[name]),
            torch.zeros(1, module.out_features, recipe.rank, dtype=torch.float64),
        )
        for name, module in targets.items()
    }


def _orthonormal(name: str, module: nn.Linear, recipe: Recipe) -> Float[Tensor, "r in"]:
    stream = torch_stream(recipe.seed, "shared", "start", name)
    square = torch.randn(module.in_features, recipe.rank, generator=stream, dtype=torch.float64)
    rows: Tensor = torch.linalg.qr(square).Q.mT
    return rows * recipe.start_scale


def _leaves(
    start: Factors,
    recipe: Recipe,
    n: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Factors:
    """Stacked factors of `n` adapters, those that are trained as leaves of their own memory."""

    def leaf(part: Tensor, trained: bool) -> Tensor:
        if len(part) not in (1, n):
            raise CollectionError(
                f"an anchor must hold 1 adapter or one for each of the {n} subjects, but holds "
                f"{len(part)}"
            )
        part = part.detach().to(device, dtype).expand(n, -1, -1)
        return (
            part.clone(memory_format=torch.contiguous_format).requires_grad_() if trained else part
        )

    return {
        name: Factor(leaf(factor.A, recipe.trained == "both"), leaf(factor.B, True))
        for name, factor in start.items()
    }
