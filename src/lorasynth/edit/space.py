"""Adapters as points among a codec's latents; what the codec cannot hold of one is kept.

An edit is a difference of two decoded latents that is added to the given adapter, so it works on
any LoRA of the base model: one that was refined, or that another program trained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Adapter, AdapterMetadata, Factor, Factors, Layout, project, scaled
from lorasynth.adapter.addition import add
from lorasynth.adapter.gauge import GAUGES
from lorasynth.codec import Codec
from lorasynth.edit.attributes import direction
from lorasynth.edit.latent_library import LatentLibrary

#: A step of 1, in differences between subjects with an attribute and without.  One difference
#: leaves many images as they were: 1.5 makes glasses come in 16 of 16 validation subjects and go
#: in 14 of 16, where 1 did in 9 and 12 (docs/experiments.md, 2026-11-30).
UNIT = 1.5


def lerp(
    start: Float[Tensor, " k"], end: Float[Tensor, " k"], shares: Float[Tensor, " n"]
) -> Float[Tensor, "n k"]:
    """The straight line."""
    return torch.lerp(start, end, shares[:, None])


def slerp(
    start: Float[Tensor, " k"], end: Float[Tensor, " k"], shares: Float[Tensor, " n"]
) -> Float[Tensor, "n k"]:
    """The arc of a great circle, with a length between those of its ends (Shoemake 1985).

    Far points of many dimensions lie near a sphere, and a straight line between them leaves it.
    Where the ends point the same or opposite ways, it is the straight line.
    """
    lengths = torch.lerp(start.norm(), end.norm(), shares)[:, None]
    first, last = start / start.norm(), end / end.norm()
    cosine = first @ last
    if not cosine.abs() < 1 - 1e-6:
        return lerp(start, end, shares)
    angle = torch.arccos(cosine)
    weights = torch.sin(torch.stack([1 - shares, shares], dim=1) * angle) / torch.sin(angle)
    return lengths * (weights @ torch.stack([first, last]))


#: From two latents and shares of the way between them to latents.
Interpolation = Callable[[Tensor, Tensor, Tensor], Tensor]
PATHS: dict[str, Interpolation] = {"lerp": lerp, "slerp": slerp}


@dataclass(frozen=True)
class LatentSpace:
    """The latents of a codec, with a library's adapters in them.

    Attributes:
        layout: of the codec's vectors.
        codec: latents to vectors.
        library: says the gauge, and which latents occur.
    """

    layout: Layout
    codec: Codec
    library: LatentLibrary

    @torch.no_grad()
    def latent(self, adapter: Adapter) -> Float[Tensor, " k"]:
        """The latent of the nearest adapter that the layout can hold.

        Raises:
            LayoutError: the adapter has no module of the layout, or other widths.
        """
        vector = project(adapter.factors, self.layout, self.library.gauge, self._reference)
        return self.codec.encode(vector[None])[0]

    @torch.no_grad()
    def decode(self, latent: Float[Tensor, " k"]) -> Factors:
        """The update of a latent; in the gauge `shared` it is written in the reference's own A."""
        factors = self.layout.unflatten(self.codec.decode(latent[None])[0])
        reference = self._reference
        if reference is None or GAUGES.get(self.library.gauge).balanced:
            return factors
        return {name: Factor(reference[name].A, factor.B) for name, factor in factors.items()}

    def adapters(
        self, latents: Float[Tensor, "n k"], metadata: AdapterMetadata, strength: float = 1.0
    ) -> list[Adapter]:
        """Adapters of latents, with ΔW multiplied by `strength`; the metadata states it."""
        stated = replace(metadata, extra=metadata.extra | {"strength": f"{strength:g}"})
        kernels = self.layout.kernels
        return [Adapter(scaled(self.decode(one), strength), stated, kernels) for one in latents]

    def moved(self, adapter: Adapter, step: Float[Tensor, " k"]) -> Adapter:
        """The adapter with a step in latents added; of its own update nothing is lost.

        The step is multiplied by the strength that the adapter's metadata states, as its own
        latent was.

        Raises:
            LayoutError: see `latent`.
        """
        strength, latent = _strength_of(adapter.metadata), self.latent(adapter)
        change = [scaled(self.decode(latent + step), strength)]
        change.append(scaled(self.decode(latent), -strength))
        kernels = {**self.layout.kernels, **adapter.kernels}
        return replace(adapter, factors=add([adapter.factors, *change]), kernels=kernels)

    def direction(self, steps: Mapping[str, float]) -> Float[Tensor, " k"]:
        """The step by which attributes rise: how much, by their names, in units of `UNIT`.

        Raises:
            ConfigError: there is no such attribute, or all subjects agree in it.
        """
        known = self.library
        parts = [by * direction(known.latents, known.columns, name) for name, by in steps.items()]
        return UNIT * torch.stack(parts).sum(dim=0)

    def between(
        self,
        start: Adapter,
        end: Adapter,
        shares: Sequence[float],
        path: Interpolation = lerp,
    ) -> list[Adapter]:
        """Adapters on the way from `start` (share 0) to `end` (share 1), which are met exactly.

        What the codec cannot hold of the ends is mixed linearly.

        Args:
            start: any adapter of the base model.
            end: another.
            shares: of the way.
            path: one of `PATHS`.

        Raises:
            LayoutError: see `latent`.
        """
        ends, own = (start, end), [self.latent(start), self.latent(end)]
        way = path(own[0], own[1], torch.tensor(shares).to(own[0]))
        kernels = {**self.layout.kernels, **start.kernels, **end.kernels}
        synthesised = start.metadata.synthesised or end.metadata.synthesised
        made = []
        for share, latent in zip(shares, way, strict=True):
            factors = self._mixed(share, latent, ends, own)
            extra = {"interpolated": f"{share:g}"}
            metadata = replace(start.metadata, synthesised=synthesised, extra=extra)
            present = {name: kernel for name, kernel in kernels.items() if name in factors}
            made.append(Adapter(factors, metadata, present))
        return made

    def _mixed(
        self,
        share: float,
        latent: Float[Tensor, " k"],
        ends: Sequence[Adapter],
        own: Sequence[Float[Tensor, " k"]],
    ) -> Factors:
        """The update of a latent, and shares of what the ends' own latents lack of the ends."""
        if share in (0, 1):
            return ends[int(share)].factors
        parts = [self.decode(latent)]
        for weight, adapter, lies in zip((1 - share, share), ends, own, strict=True):
            parts += [scaled(adapter.factors, weight), scaled(self.decode(lies), -weight)]
        return add(parts)

    @cached_property
    def _reference(self) -> Factors | None:
        vector = self.library.reference
        return None if vector is None else self.layout.unflatten(vector)


def _strength_of(metadata: AdapterMetadata) -> float:
    """What a synthesised adapter's decoded update was multiplied by; 1 where nothing is stated."""
    try:
        return float(metadata.extra["strength"])
    except (KeyError, ValueError):
        return 1.0


@torch.no_grad()
def moved(
    codec: Codec, vectors: Float[Tensor, "n D"], step: Float[Tensor, "*n k"]
) -> Float[Tensor, "n D"]:
    """Vectors moved by what the step in latents changes once decoded; a step of zero keeps them.

    Args:
        codec: in whose latents the step is.
        vectors: canonical vectors.
        step: one for all, for example a `direction` times a strength, or one for each.
    """
    latents = codec.encode(vectors)
    return vectors + codec.decode(latents + step) - codec.decode(latents)
