"""`PCA` of more vectors than fit in memory: the same codec, within a given amount of memory.

How it is computed follows from the number of vectors, their width, the number of latents and the
memory (`plan`): all at once where that fits, else exactly through the smaller Gram matrix, else by
block Krylov to a stated accuracy.  What it has so far is kept in a folder, so a run that is killed
goes on and ends with the same bits (on the same machine and number of threads).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorasynth.codec import passes
from lorasynth.codec.contract import VectorSource, require_several
from lorasynth.codec.gram import eigen_of_columns, eigen_of_rows
from lorasynth.codec.krylov import leading_eigenvectors
from lorasynth.codec.pca import PCA, PCAConfig, fix_signs, require_latents, substantial
from lorasynth.codec.plan import Method, Plan, bytes_left, make_plan
from lorasynth.codec.scaled import Scaled, ScaledConfig
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.config import to_dict
from lorasynth.core.device import exact_device
from lorasynth.core.progress import console
from lorasynth.core.randomness import torch_stream
from lorasynth.library.blocks import BlockSource
from lorasynth.library.statistics import Moments


class Source(BlockSource, VectorSource, Protocol):
    """Vectors that can be read in blocks or all at once."""


@dataclass(frozen=True, kw_only=True)
class OutOfCoreConfig:
    """How components are computed; they are the same up to `tolerance`.

    Attributes:
        memory: bytes that the process may have, all that it has already included.
        method: `auto` (default: the quickest that fits), `exact` or `krylov`.
        tolerance: share of the variance that k components could capture which those of `krylov`
            may miss; 0.001 is far below what k itself leaves out.
        seed: of the random mixtures that `krylov` starts from.
        checkpoint_seconds: how often a pass over the vectors is saved.
    """

    memory: int
    method: Method = "auto"
    tolerance: float = 1e-3
    seed: int = 0
    checkpoint_seconds: float = 60.0


def fit_out_of_core(
    source: Source,
    config: PCAConfig,
    how: OutOfCoreConfig,
    *,
    run: Path | None = None,
    device: torch.device | str = "cpu",
) -> PCA:
    """Fit `PCA` to vectors on disk.

    Args:
        source: a library, a view of one, or a `VectorFile`.
        config: what is fitted.
        how: within which memory.
        run: folder of checkpoints; None for none, so that a killed run begins anew.
        device: where to compute, and where the codec is left.

    Raises:
        LibraryError: fewer than two vectors, a value that is not finite, or a damaged shard.
        ConfigError: more latents than components, or nothing fits into the memory.
    """
    require_several(source)
    if config.latents is not None:
        require_latents(config.latents, min(len(source) - 1, source.width), len(source))
    budget = bytes_left(how.memory, torch.device(device))
    # the plan depends on what the process has by now, which differs from run to run
    plan = _planned(source, config, how, budget, run)
    if plan.way == "memory":
        codec = PCA.fit(source, config, device=device)
        codec.report["computation"] = {"way": plan.way, "vectors": len(source)}
        return codec
    home = exact_device(torch.device(device))
    codec = _Fit(source, config, how, plan, run, home).codec()
    return codec.to(device)


def _planned(
    source: Source, config: PCAConfig, how: OutOfCoreConfig, budget: int, run: Path | None
) -> Plan:
    """The plan of the run's first start, or a new one."""
    kept = Checkpoint(run, {"plan of": _identity(source, config, how)}, 0.0)
    saved = kept.load("plan")
    if saved is not None:
        return Plan(**saved.facts)
    spill = run is not None
    plan = make_plan(len(source), source.width, config.latents, budget, how.method, spill=spill)
    if plan.way != "memory":
        kept.save("plan", {}, **to_dict(plan))
    return plan


def _identity(source: Source, config: PCAConfig, how: OutOfCoreConfig) -> dict[str, Any]:
    """All that the components depend on, beside the plan."""
    stated = to_dict(how)
    del stated["checkpoint_seconds"]
    return {
        "config": to_dict(config),
        "how": stated,
        "vectors": source.fingerprint,
        "shape": [len(source), source.width],
    }


class _Fit:
    """One fit by a plan that leaves the vectors on disk."""

    def __init__(
        self,
        source: Source,
        config: PCAConfig,
        how: OutOfCoreConfig,
        plan: Plan,
        run: Path | None,
        device: torch.device,
    ) -> None:
        self.source = source
        self.config = config
        self.how = how
        self.plan = plan
        self.device = device
        identity = {**_identity(source, config, how), "plan": to_dict(plan)}
        self.checkpoint = Checkpoint(run, identity, how.checkpoint_seconds)
        self.report: dict[str, Any] = {"way": plan.way, "vectors": len(source)}
        #: Components to look for.
        self.wanted = config.latents or min(len(source) - 1, source.width)

    def codec(self) -> PCA:
        """The fitted codec."""
        krylov = self.plan.way == "krylov"
        moments, mixtures = passes.moments(
            self.source,
            self.plan.rows,
            self.checkpoint,
            self.device,
            self._mixing if krylov else None,
            self.plan.block if krylov else 0,
        )
        scaled = Scaled.of(
            ScaledConfig(scale=self.config.scale),
            moments.mean.float(),
            moments.variance.sqrt().float(),
        )
        unit = scaled.unit.double()
        if krylov:
            components, squares = self._leading(moments, unit, mixtures)
        else:
            components, squares = self._all(moments, unit)
        total = float((moments.variance / unit.square()).sum())
        variances = squares / len(self.source)
        fix_signs(components)
        codec = PCA.of(self.config, scaled, components, variances)
        codec.report = {
            "explained_variance": (variances.cumsum(0) / total).tolist(),
            "computation": self.report,
        }
        return codec

    def _mixing(self, row: int, count: int) -> Float32[Tensor, "l n"]:
        stream = torch_stream(self.how.seed, "pca", "mixtures", row)
        return torch.randn(self.plan.block, count, generator=stream)

    def _leading(
        self,
        moments: Moments,
        unit: Float64[Tensor, " D"],
        mixtures: Float32[Tensor, "l D"],
    ) -> tuple[Float32[Tensor, "k D"], Float64[Tensor, " k"]]:
        if moments.total == 0:
            require_latents(self.wanted, 0, len(self.source))
        inverse, less = (1 / unit).float(), moments.mean.float().cpu()

        def apply(rows: Float32[Tensor, "l D"], name: str) -> Float32[Tensor, "l D"]:
            inner = (rows * inverse).T
            image = torch.zeros_like(rows)

            def add(_row: int, block: Float32[Tensor, "n D"]) -> None:
                image.addmm_((block @ inner).T, block)

            sums = {"image": image}
            passes.accumulate(
                self.source, self.plan.rows, add, sums, self.checkpoint, name, less=less
            )
            return image.mul_(inverse)

        found = leading_eigenvectors(
            apply,
            mixtures.mul_(inverse),
            self.wanted,
            self.plan.capacity,
            self.how.tolerance,
            self.checkpoint,
            spill=self.plan.spill,
        )
        kept = substantial(found.values)
        require_latents(self.wanted, len(kept), len(self.source))
        self.report |= {"missing": found.missing, "blocks": found.blocks}
        if found.missing > self.how.tolerance:
            console.print(
                f"PCA ended after {found.blocks} blocks with {found.missing:.2%} of the variance "
                f"missing, by estimate, instead of {self.how.tolerance:.2%}: more memory makes "
                "larger blocks",
                soft_wrap=True,
            )
        return found.vectors, found.values

    def _all(
        self, moments: Moments, unit: Float64[Tensor, " D"]
    ) -> tuple[Float32[Tensor, "k D"], Float64[Tensor, " k"]]:
        if len(self.source) <= self.source.width:
            components, values = eigen_of_rows(
                self.source, moments, unit, self.plan.columns, self.wanted, self.checkpoint
            )
        else:
            components, values = eigen_of_columns(
                self.source, moments, unit, self.plan.rows, self.wanted, self.checkpoint
            )
        rank = len(substantial(values))
        latents = rank if self.config.latents is None else self.config.latents
        require_latents(latents, rank, len(self.source))
        return components[:latents], values[:latents]
