"""Train many adapters in one batch of the frozen base model.

The adapters share every pass through the network, and nothing else: the sum of their losses has
for each the gradient of its own loss, the optimisers act element by element, gradients are clipped
adapter by adapter, and random numbers come from streams of their own (`lorasynth.collect.draws`).
So an adapter is the same whatever fleet it is trained in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.adapter import Factor, Factors
from lorasynth.base import BaseModel, StackedAdapters
from lorasynth.collect.draws import Draw, draw_steps
from lorasynth.collect.encoded import EncodedSubjects, encode_subjects
from lorasynth.collect.recipe import Recipe
from lorasynth.errors import CollectionError, ConfigError
from lorasynth.pictures import Subject
from lorasynth.randomness import torch_stream

#: Called after each step with the number of steps done and each adapter's loss, on the device.
OnStep = Callable[[int, Tensor], None]


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
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    on_step: OnStep | None = None,
) -> Fleet:
    """Train one adapter for each subject, all in one batch.

    Args:
        base: the frozen base model, on its device and in its precision.
        recipe: how each adapter is trained.
        subjects: what each adapter is trained on.
        anchor: factors (n or 1 adapters, any scale folded in) to start from, and to be pulled
            toward by weight decay; None: start as the recipe says, decay toward zero.
        dtype: of the factors and their optimiser.
        autocast: precision for the network's products (bfloat16; float16 has no loss scaling
            here); None: that of the base model's weights.
        on_step: called after each step.

    Raises:
        CollectionError: there is no subject, or one has no pictures or captions.
        ConfigError: a target matches no module, or is narrower than the rank.
    """
    encoded = encode_subjects(base, subjects)
    ids = [subject.id for subject in subjects]
    targets = base.target_linears(recipe.targets)
    if anchor is None:
        start = start_factors(targets, recipe, ids)
    else:
        start = {name: Factor(f.A, f.B / recipe.scale) for name, f in anchor.items()}
    factors = _leaves(start, recipe, len(ids), base.device, dtype)
    trainer = _Trainer(recipe, factors, anchored=anchor is not None)
    draws = draw_steps(
        recipe,
        ids,
        encoded.counts,
        timesteps=base.scheduler.config.num_train_timesteps,
        latent_shape=tuple(encoded.latents.shape[1:]),
        device=base.device,
        dtype=encoded.latents.dtype,
    )
    losses = []
    with StackedAdapters(base.unet, factors, recipe.scale):
        for step, draw in enumerate(draws):
            with torch.autocast(base.device.type, autocast, enabled=autocast is not None):
                loss = denoising_losses(base, encoded, draw)
            trainer.step(loss)
            losses.append(loss.detach())
            if on_step is not None:
                on_step(step + 1, losses[-1])
    return Fleet(trainer.result(), torch.stack(losses, dim=1))


def denoising_losses(base: BaseModel, encoded: EncodedSubjects, draw: Draw) -> Float[Tensor, " n"]:
    """Each subject's mean squared error of what the base model predicts, over its own samples."""
    latents, texts = encoded.pick(draw.pictures, draw.dropped)
    noise, timesteps = draw.noise.flatten(0, 1), draw.timesteps.flatten()
    noisy, target = base.add_noise(latents, noise, timesteps)
    predicted = base.denoise(noisy, timesteps, texts)
    exact = torch.promote_types(predicted.dtype, torch.float32)
    error = predicted.to(exact) - target.to(exact)
    losses: Tensor = error.square().reshape(len(draw.pictures), -1).mean(dim=1)
    return losses


class _Trainer:
    """The optimiser, clipping, decay and averaging of n adapters, each as if it were alone."""

    def __init__(self, recipe: Recipe, factors: Factors, *, anchored: bool) -> None:
        self.recipe = recipe
        self.factors = factors
        self.trained = [p for factor in factors.values() for p in factor if p.requires_grad]
        self.anchors = [
            p.detach().clone() if anchored else torch.zeros_like(p) for p in self.trained
        ]
        self.means = [torch.zeros_like(p) for p in self.trained]
        self.steps = 0
        self.optimiser: torch.optim.Optimizer = (
            torch.optim.Adam(self.trained, lr=recipe.learning_rate)
            if recipe.optimiser == "adam"
            else torch.optim.SGD(self.trained, lr=recipe.learning_rate, momentum=recipe.momentum)
        )

    def step(self, losses: Float[Tensor, " n"]) -> None:
        self.optimiser.zero_grad()
        losses.sum().backward()
        if self.recipe.clip is not None:
            clip_each([p.grad for p in self.trained if p.grad is not None], self.recipe.clip)
        rate = self.recipe.rate(self.steps)
        self.optimiser.param_groups[0]["lr"] = rate
        with torch.no_grad():
            if self.recipe.weight_decay:
                weight = rate * self.recipe.weight_decay
                torch._foreach_lerp_(self.trained, self.anchors, weight)
            self.optimiser.step()
            self.steps += 1
            averaged = self.steps - (self.recipe.steps - self.recipe.averaged_steps)
            if averaged > 0:
                torch._foreach_lerp_(self.means, self.trained, 1 / averaged)

    def result(self) -> Factors:
        """The averaged factors, with the recipe's scale folded into B."""
        means = dict(zip(map(id, self.trained), self.means, strict=True))
        return {
            name: Factor(
                means.get(id(factor.A), factor.A).detach(),
                means[id(factor.B)] * self.recipe.scale,
            )
            for name, factor in self.factors.items()
        }


def clip_each(gradients: Sequence[Float[Tensor, "n _ _"]], limit: float) -> None:
    """Scale down, in place, the gradients of each adapter whose norm over all modules is too large.

    As `torch.nn.utils.clip_grad_norm_` does for one adapter.
    """
    norms = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)[:, None, None]
    for gradient in gradients:
        gradient.mul_(factor)


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
