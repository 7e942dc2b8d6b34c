"""Train many adapters in one batch of the frozen base model: the factors themselves by descent.

An adapter is the same whatever fleet it is trained in (`lorasynth.engine.loop`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lorasynth.adapter import Factor, Factors
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.core.errors import CollectionError, ConfigError
from lorasynth.core.progress import progress
from lorasynth.core.randomness import stream_seed, torch_stream
from lorasynth.engine.draws import draw_steps
from lorasynth.engine.encoded import EncodedSubjects
from lorasynth.engine.loop import Fleet, OnStep, Trainable, denoising_losses, descend
from lorasynth.engine.recipe import Recipe
from lorasynth.images import Subject

#: Class images made between two reports of progress.
_CHUNK = 16


class LowRank(Trainable):
    """The factors of n adapters, those that are trained as parameters of their own memory.

    Args:
        base: the frozen base model, on its device and in its precision.
        recipe: how each adapter is trained.
        subject_ids: whose adapters they are.
        init: factors (n or 1 adapters, any scale folded in) to start from, and to be pulled
            toward by weight decay; None: start as the recipe says, decay toward zero.
        classes: latents of the class images that the recipe asks for; None: make them.

    Raises:
        CollectionError: `init` holds another number of adapters.
        ConfigError: a target matches no module, or is narrower than the rank.
    """

    def __init__(
        self,
        base: BaseModel,
        recipe: Recipe,
        subject_ids: Sequence[str],
        init: Factors | None = None,
        classes: Float[Tensor, "p c h w"] | None = None,
    ) -> None:
        super().__init__(recipe)
        self.scale, self.anchored = recipe.scale, init is not None
        n = len(subject_ids)
        if init is None:
            start = start_factors(base.target_linears(recipe.targets), recipe, subject_ids)
        else:
            start = {name: Factor(f.A, f.B / recipe.scale) for name, f in init.items()}
        dtype = torch.promote_types(base.dtype, torch.float32)

        def leaf(part: Tensor, *, trained: bool) -> Tensor:
            if len(part) not in (1, n):
                raise CollectionError(
                    f"training must start from 1 adapter or one for each of the {n} subjects, but "
                    f"got {len(part)}"
                )
            part = part.detach().to(base.device, dtype).expand(n, -1, -1)
            if not trained:
                return part
            return nn.Parameter(part.clone(memory_format=torch.contiguous_format))

        both = recipe.trained == "both"
        self._factors = {
            name: Factor(leaf(factor.A, trained=both), leaf(factor.B, trained=True))
            for name, factor in start.items()
        }
        parts = [part for factor in self._factors.values() for part in factor]
        self._leaves = nn.ParameterList(part for part in parts if isinstance(part, nn.Parameter))
        self._penalties: Callable[[], Tensor] | None = None
        if recipe.prior.prompt:
            if classes is None:
                classes = class_latents(base, recipe)
            self._penalties = class_losses(base, recipe, classes, subject_ids)

    @override
    def forward(self) -> Factors:
        return self._factors

    @override
    def penalties(self) -> Float[Tensor, " n"] | None:
        return None if self._penalties is None else self._penalties()

    @override
    def adapters(self) -> Factors:
        return {
            name: Factor(f.A.detach(), f.B.detach() * self.scale)
            for name, f in self._factors.items()
        }


def train_fleet(
    base: BaseModel,
    recipe: Recipe,
    subjects: Sequence[Subject],
    *,
    init: Factors | None = None,
    classes: Float[Tensor, "p c h w"] | None = None,
    on_step: OnStep | None = None,
) -> Fleet:
    """Train one adapter for each subject, all in one batch; see `LowRank` and `descend`.

    Raises:
        CollectionError: there is no subject, or one has no images or captions.
        ConfigError: a target matches no module, or is narrower than the rank.
    """
    if not subjects:
        raise CollectionError("a fleet must have at least one subject, but got none")
    trainable = LowRank(base, recipe, [subject.id for subject in subjects], init, classes)
    return descend(base, subjects, trainable, on_step=on_step)


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


def class_latents(base: BaseModel, recipe: Recipe) -> Float[Tensor, "p c h w"]:
    """Let the base model make the images of the class, from named streams, and encode them."""
    prior, parts = recipe.prior, []
    assert prior.prompt, "the caller has seen that there are class images"
    sampling = SamplingConfig(steps=prior.steps, guidance=prior.guidance)
    seeds = [stream_seed(recipe.seed, "class", prior.prompt, i) for i in range(prior.images)]
    with progress("class images", prior.images) as advance:
        for start in range(0, prior.images, _CHUNK):
            some = seeds[start : start + _CHUNK]
            images = base.sample([prior.prompt] * len(some), some, config=sampling)
            parts.append(base.encode_images(images))
            advance(len(some))
    return torch.cat(parts)


def class_losses(
    base: BaseModel,
    recipe: Recipe,
    latents: Float[Tensor, "p c h w"],
    subject_ids: Sequence[str],
) -> Callable[[], Float[Tensor, " n"]]:
    """The weighted loss of class images for each of n adapters; to be called once a step.

    What a subject draws comes from streams of its own, so it does not depend on the fleet.
    """
    n, count, prior = len(subject_ids), len(latents), recipe.prior
    text = base.encode_prompts([prior.prompt or ""])
    encoded = EncodedSubjects(
        latents=latents.to(base.device, base.dtype),
        texts=text.map(lambda part: part.expand(count, *part.shape[1:])),
        empty=text,
        first=torch.zeros(n, dtype=torch.int64, device=base.device),
        counts=(count,) * n,
    )
    own = replace(recipe, seed=stream_seed(recipe.seed, "prior"), caption_dropout=0.0)
    draws = draw_steps(base, own, subject_ids, encoded.counts)
    return lambda: prior.weight * denoising_losses(base, encoded, next(draws))
