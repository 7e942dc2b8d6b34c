"""The trained diffusion hypernetwork: denoises latents under a condition."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from lorasynth.core.config import from_dict
from lorasynth.diffusion import PARAMETERISATIONS, SCHEDULES, sample, solver_times
from lorasynth.hypernet.config import LatentDiffusionConfig
from lorasynth.hypernet.contract import DENOISERS, Layer, State
from lorasynth.hypernet.hypernetwork import HYPERNETWORKS, Hypernetwork
from lorasynth.hypernet.normaliser import Normaliser
from lorasynth.hypernet.regression import LatentRegression


@HYPERNETWORKS.register("diffusion")
class LatentDiffusion(Hypernetwork):
    """Denoiser, normalisers, schedule, parameterisation and sampler: all that sampling needs.

    With an anchor, the denoiser works in coordinates relative to what a frozen regression predicts
    from the condition (without a condition: to the mean), so that it need only learn what the
    regression misses, and how far that scatters.  Guidance costs a second evaluation of the
    denoiser unless it is 1 or 0.

    Attributes:
        anchor: the regression, in the codec's units; None for none.
    """

    config_class = LatentDiffusionConfig

    def __init__(self, config: LatentDiffusionConfig, latents: int, condition_width: int) -> None:
        super().__init__(config, latents, condition_width)
        kind = DENOISERS.get(config.denoiser)
        options = from_dict(kind.config_class, config.denoiser_options)
        self.denoiser = kind(options, latents, condition_width)
        self.latent_normaliser = Normaliser(latents)
        self.condition_normaliser = Normaliser(condition_width)
        self.anchor = None
        if config.anchor is not None:
            self.anchor = LatentRegression(config.anchor, latents, condition_width)
        self.schedule = SCHEDULES.get(config.schedule)()
        self.parameterisation = PARAMETERISATIONS.get(config.parameterisation)(self.schedule)

    @override
    def _sample(
        self,
        condition: Float[Tensor, "n m"] | None,
        noise: Float[Tensor, "n k"],
        steps: int | None,
        guidance: float | None,
    ) -> Float[Tensor, "n k"]:
        guidance = self.config.guidance if guidance is None else guidance
        steps = self.config.steps if steps is None else steps
        branches: list[tuple[Float[Tensor, "n m"] | None, float]]
        if condition is None or guidance == 0:
            branches = [(None, 1.0)]
        elif guidance == 1:
            branches = [(condition, 1.0)]
        else:
            branches = [(condition, guidance), (None, 1 - guidance)]
        rows, copies = len(noise), len(branches)
        given = [self._prepare(seen, rows) for seen, _ in branches]
        state = self.denoiser.prepare(torch.cat([y for y, _ in given]))
        centre = None if self.anchor is None else torch.cat([c for _, c in given])
        evaluations = self._evaluations(
            solver_times(self.schedule, steps), state, centre, rows * copies
        )

        def denoise(x_t: Float[Tensor, "n k"], _t: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
            to_x0 = next(evaluations)
            if copies == 1:
                return to_x0(x_t)
            parts = zip(branches, to_x0(x_t.repeat(copies, 1)).chunk(copies), strict=True)
            return torch.stack([weight * part for (_, weight), part in parts]).sum(0)

        clean = sample(denoise, noise, self.schedule, steps, self.config.solver)
        return self.latent_normaliser.inverse(clean)

    def clean(
        self,
        latents: Float[Tensor, "n k"],
        condition: Float[Tensor, "n m"] | None,
        noise: Float[Tensor, "n k"],
        level: float,
    ) -> Float[Tensor, "n k"]:
        """What one evaluation makes of latents to which noise was added.

        Args:
            latents: in the codec's units.
            condition: one per row; None to do without.
            noise: standard normal.
            level: sigma/alpha of the noise, in normalised units.
        """
        rows = len(latents)
        seen, centre = self._prepare(condition, rows)
        time = self.schedule.time(-2 * torch.tensor(level, dtype=torch.float64).log())
        x_t = self.schedule.mix(self.latent_normaliser(latents), noise, time.to(noise).expand(rows))
        state = self.denoiser.prepare(seen)
        around = None if self.anchor is None else centre
        [to_x0] = self._evaluations([float(time)], state, around, rows)
        return self.latent_normaliser.inverse(to_x0(x_t))

    def centre(
        self,
        condition: Float[Tensor, "b m"] | None,
        rows: int,
        keep: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """What the denoiser's latents are relative to, in normalised units.

        Args:
            condition: in the encoder's units; None for no condition in any row.
            rows: b.
            keep: rows whose condition counts; None for all.
        """
        none = torch.zeros(rows, self.latents).to(self.latent_normaliser.mean)
        if self.anchor is None or condition is None:
            return none
        centre: Tensor = self.latent_normaliser(self.anchor(condition))
        return centre if keep is None else torch.where(keep[:, None], centre, none)

    def _prepare(
        self, condition: Float[Tensor, "b m"] | None, rows: int
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b k"]]:
        """The condition as the denoiser takes it, and what its latents are relative to."""
        centre = self.centre(condition, rows)
        if condition is not None:
            condition = self.condition_normaliser(condition)
        return self.denoiser.fill(condition, rows), centre

    def _evaluations(
        self,
        times: Sequence[float],
        state: State,
        centre: Float[Tensor, "b k"] | None,
        rows: int,
    ) -> Iterator[Callable[[Float[Tensor, "b k"]], Float[Tensor, "b k"]]]:
        """What gives the expected clean point, in normalised units, at each of a solver's times.

        All that the times decide is computed before.
        """
        at = torch.tensor(times, dtype=torch.float64)
        coefficients = (self.schedule.alpha(at), *self.parameterisation.affine(at))
        nets = self.denoiser.trajectory(times, state, rows)
        for alpha, kept, used, net in zip(*(c.tolist() for c in coefficients), nets, strict=True):
            yield partial(_relative_x0, alpha, kept, used, net, centre)


def _relative_x0(
    alpha: float,
    kept: float,
    used: float,
    net: Layer,
    centre: Float[Tensor, "b k"] | None,
    x_t: Float[Tensor, "b k"],
) -> Float[Tensor, "b k"]:
    """The clean point, kept · x + used · net(x), with x relative to the centre if there is one."""
    if centre is None:
        return torch.add(used * net(x_t), x_t, alpha=kept)
    relative = x_t - alpha * centre
    return torch.add(used * net(relative), relative, alpha=kept) + centre
