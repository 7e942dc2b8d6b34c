"""Principal components (the paper's 4.1) of any number of vectors, within a given memory.

How they are computed follows from the number of vectors, their width, the number of latents and the
memory (`plan`): exactly through the smaller Gram matrix, or by block Krylov to a stated accuracy.
What there is so far is kept in a folder, so a fit that is killed goes on and ends with the same
bits (on the same machine and number of threads).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor
from typing_extensions import override

from lorasynth.codec.config import Budget, PCAConfig, ScaledConfig
from lorasynth.codec.contract import CODECS, Codec
from lorasynth.codec.gram import eigen_of_columns, eigen_of_rows
from lorasynth.codec.krylov import leading_eigenvectors
from lorasynth.codec.plan import Plan, make_plan
from lorasynth.codec.scaled import Scaled
from lorasynth.codec.sources import accumulate, bytes_left, moments, settled
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.config import to_dict
from lorasynth.core.device import exact_device
from lorasynth.core.errors import ConfigError
from lorasynth.core.progress import note
from lorasynth.core.randomness import torch_stream
from lorasynth.library.blocks import BlockSource
from lorasynth.library.statistics import Moments

#: Components whose variance is a smaller share of the largest are rounding errors: the eigenvalues
#: come from a product in float64, whose own error is about 1e-14 of the largest.
RANK_TOLERANCE = 1e-12

#: Components whose signs are fixed at a time.
_SIGN_ROWS = 64


@CODECS.register("pca")
class PCA(Codec):
    """z = V^T (x - mean) / unit, with V the leading eigenvectors of the covariance.

    Latents are uncorrelated over the fitted vectors, in falling order of variance; their mean
    square is 1 over all of them (`whiten=False`) or each (`whiten=True`).  Signs are fixed: the
    largest entry of each component is positive.  The report holds `explained_variance`, the
    cumulative share of variance per component (Figure 3).
    """

    config_class = PCAConfig
    figures = ("explained_variance.png",)
    components: Tensor
    unit: Tensor

    def __init__(self, config: PCAConfig, width: int, latents: int) -> None:
        super().__init__(config, width, latents)
        self.scaled = Scaled(ScaledConfig(scale=config.scale), width, width)
        self.register_buffer("components", torch.zeros(latents, width))
        self.register_buffer("unit", torch.ones(latents))

    @override
    @classmethod
    def _fit(cls, source: BlockSource, config: PCAConfig, budget: Budget) -> "PCA":
        most = min(len(source) - 1, source.width)
        if config.latents is not None:
            _require_latents(config.latents, most, len(source))
        identity = {
            "config": to_dict(config),
            "tolerance": budget.tolerance,
            "memory": budget.memory,
            "vectors": source.fingerprint,
            "shape": [len(source), source.width],
        }
        sizes = (len(source), source.width, config.latents)
        facts = settled(budget, identity, lambda: asdict(make_plan(*sizes, bytes_left(budget))))
        plan = Plan(**facts)
        identity["plan"] = facts
        checkpoint = Checkpoint(budget.run, identity, budget.checkpoint_seconds)
        return _Fit(source, config, budget, plan, checkpoint).codec()

    @classmethod
    def of(
        cls,
        config: PCAConfig,
        scaled: Scaled,
        components: Float[Tensor, "k D"],
        variances: Float[Tensor, " k"],
    ) -> "PCA":
        """A codec of orthonormal components of scaled vectors, and the variances along them."""
        latents, width = components.shape
        like = scaled.mean
        with torch.device("meta"):  # a second matrix of components may not fit into memory
            codec = cls(config, width, latents)
        codec.scaled = scaled
        codec.components = components.to(like)
        unit = variances if config.whiten else variances.mean().expand(latents)
        codec.unit = unit.sqrt().to(like)
        return codec

    @override
    def draw(self, folder: Path) -> None:
        """Draw the cumulative share of variance by number of components (Figure 3)."""
        from matplotlib.figure import Figure  # takes most of a second

        from lorasynth.core.figures import save_figure

        shares = self.report["explained_variance"]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(1, len(shares) + 1), shares)
        for mark in (0.5, 0.9, 0.95):
            if mark <= shares[-1]:
                needed = next(number for number, share in enumerate(shares, 1) if share >= mark)
                place, offset = (needed, shares[needed - 1]), (6, -12)
                axes.plot(*place, "o", color="C1")
                text = f"{mark:.0%}: {needed:,}"
                axes.annotate(text, place, xytext=offset, textcoords="offset points")
        axes.set(xlabel="components", ylabel="share of the variance", ylim=(0, 1.02))
        axes.set(title=f"{self.width:,} parameters", xlim=(0, len(shares)))
        axes.grid(alpha=0.3)
        save_figure(figure, folder / self.figures[0])

    @override
    def _encode(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n k"]:
        return self.scaled.encode(x) @ self.components.T / self.unit

    @override
    def _decode(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n D"]:
        return self.scaled.decode((z * self.unit) @ self.components)


class _Fit:
    """One fit by a plan."""

    def __init__(
        self,
        source: BlockSource,
        config: PCAConfig,
        budget: Budget,
        plan: Plan,
        checkpoint: Checkpoint,
    ) -> None:
        self.source, self.config, self.budget = source, config, budget
        self.plan, self.checkpoint = plan, checkpoint
        self.report: dict[str, Any] = {"way": plan.way, "vectors": len(source)}
        #: Components to look for.
        self.wanted = config.latents or min(len(source) - 1, source.width)

    def codec(self) -> PCA:
        """The fitted codec."""
        krylov, rows = self.plan.way == "krylov", self.plan.rows
        home = exact_device(torch.device(self.budget.device))
        sketch = self._mixing if krylov else None
        found, mixtures = moments(self.source, rows, self.checkpoint, home, sketch)
        scaling = ScaledConfig(scale=self.config.scale)
        scaled = Scaled.of(scaling, found.mean.float(), found.variance.sqrt().float())
        unit = scaled.unit.double()
        if krylov:
            components, squares = self._leading(found, unit, mixtures)
        else:
            components, squares = self._all(found, unit)
        total = float((found.variance / unit.square()).sum())
        variances = squares / len(self.source)
        _fix_signs(components)
        codec = PCA.of(self.config, scaled, components, variances)
        codec.report = {
            "explained_variance": (variances.cumsum(0) / total).tolist(),
            "computation": self.report,
        }
        return codec

    def _mixing(self, row: int, count: int) -> Float32[Tensor, "l n"]:
        return torch.randn(self.plan.block, count, generator=torch_stream(0, "pca", row))

    def _leading(
        self, moments: Moments, unit: Float64[Tensor, " D"], mixtures: Float32[Tensor, "l D"]
    ) -> tuple[Float32[Tensor, "k D"], Float64[Tensor, " k"]]:
        if moments.total == 0:
            _require_latents(self.wanted, 0, len(self.source))
        inverse, mean = (1 / unit).float(), moments.mean.float()

        def apply(rows: Float32[Tensor, "l D"], name: str) -> Float32[Tensor, "l D"]:
            inner = (rows * inverse).T
            image = torch.zeros_like(rows)

            def add(_row: int, block: Float32[Tensor, "n D"]) -> None:
                image.addmm_((block.sub_(mean) @ inner).T, block)

            sums = {"image": image}
            accumulate(self.source, self.plan.rows, add, sums, self.checkpoint, name)
            return image.mul_(inverse)

        found = leading_eigenvectors(
            apply,
            mixtures.mul_(inverse),
            self.wanted,
            self.plan.capacity,
            self.budget.tolerance,
            self.checkpoint,
        )
        kept = _substantial(found.values)
        _require_latents(self.wanted, len(kept), len(self.source))
        self.report |= {"missing": found.missing, "blocks": found.blocks}
        if found.missing > self.budget.tolerance:
            note(
                f"PCA ended after {found.blocks} blocks with {found.missing:.2%} of the variance "
                f"missing, by estimate, instead of {self.budget.tolerance:.2%}: more memory makes "
                "larger blocks"
            )
        return found.vectors, found.values

    def _all(
        self, moments: Moments, unit: Float64[Tensor, " D"]
    ) -> tuple[Float32[Tensor, "k D"], Float64[Tensor, " k"]]:
        given = (self.source, moments, unit)
        if len(self.source) <= self.source.width:
            size = self.plan.columns
            components, values = eigen_of_rows(*given, size, self.wanted, self.checkpoint)
        else:
            size = self.plan.rows
            components, values = eigen_of_columns(*given, size, self.wanted, self.checkpoint)
        rank = len(_substantial(values))
        latents = rank if self.config.latents is None else self.config.latents
        _require_latents(latents, rank, len(self.source))
        return components[:latents], values[:latents]


def _require_latents(latents: int, rank: int, vectors: int) -> None:
    """Refuse more components than there are.

    Raises:
        ConfigError: says how many there are.
    """
    if not 1 <= latents <= rank:
        raise ConfigError(
            f"PCA of these {vectors} vectors has from 1 to {rank} components, but got "
            f"latents={latents}: ask for fewer, or for all by None"
        )


def _fix_signs(components: Float[Tensor, "k D"]) -> None:
    """Make the largest entry of each component positive, in place."""
    for rows in components.split(_SIGN_ROWS):
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        rows *= largest.sign()


def _substantial(values: Float[Tensor, " m"]) -> Int[Tensor, " r"]:
    """Indices of the eigenvalues that are not rounding errors, largest first."""
    order = values.argsort(descending=True)
    return order[values[order] > RANK_TOLERANCE * values.max().clamp(min=0)]
