"""Training of the hypernetwork under accelerate: on CPU, one GPU or several, on many machines.

All that is random at a step comes from a stream named by the step, so the loop has no random
state.  A checkpoint (one safetensors file, replaced atomically) holds weights, average, optimiser
and curve; a run that was killed goes on from it and ends as if it had not been.

Several processes (DDP or FSDP2) share a batch and give the curve that one would
(`lorasynth.hypernet.share`).  Each needs the checkpoint to resume from, so its folder must be one
that all see; the main process alone writes it, calls the probes and shows progress.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.core.checkpoint import read_state, write_state
from lorasynth.core.config import to_dict
from lorasynth.core.errors import ConfigError
from lorasynth.core.progress import progress
from lorasynth.core.randomness import stream_seed, torch_stream
from lorasynth.core.weights import fingerprint, optimiser_state, optimiser_tensors, with_prefix
from lorasynth.diffusion.ema import AveragedWeights
from lorasynth.engine.trainer import Optimisation
from lorasynth.hypernet.batches import Batch, TrainingSet, draw_batch
from lorasynth.hypernet.contract import Objective, Prediction, Probe
from lorasynth.hypernet.latent_diffusion import LatentDiffusion, LatentDiffusionConfig
from lorasynth.hypernet.regression import LatentRegression
from lorasynth.hypernet.sharded import all_whole, placed_like, whole
from lorasynth.hypernet.share import Share, share_dropout

#: Several processes agree on whether to write a checkpoint once in so many steps.
_AGREE_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class HypernetConfig:
    """How a hypernetwork is built and trained.

    Attributes:
        model: what is trained.
        optimisation: steps, batch, learning rate, averaging and seed.
        whitening: how noise and loss spread over the latents: 1 (default) in proportion to each
            one's spread, 0 alike for all (see `Normaliser.fit`).
        condition_dropout: share of rows trained without condition, for guidance and for sampling
            without.
        condition_noise: standard deviation of noise added to conditions, whose own overall spread
            is 1; guards against learning the training embeddings by heart.
        mixing: share of rows that are convex mixtures of two subjects.
        min_snr: gamma of Min-SNR weighting (Hang et al. 2023; 5 is usual); None (default) for the
            parameterisation's own squared error.
        latent_weight: weight of the latent loss beside the objectives.
        record_every: steps between rows of the curve, where the probes are called.
        keep_lowest: a figure of the curve, such as a probe's `x0_error`; the averaged weights of
            the row where it is lowest are kept.  None (default) keeps the last.
    """

    model: LatentDiffusionConfig = field(default_factory=LatentDiffusionConfig)
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=5000, batch=64, lr=5e-4)
    )
    whitening: float = 1.0
    condition_dropout: float = 0.1
    condition_noise: float = 0.0
    mixing: float = 0.0
    min_snr: float | None = None
    latent_weight: float = 1.0
    record_every: int = 500
    keep_lowest: str | None = None

    def __post_init__(self) -> None:
        for name in ("condition_dropout", "mixing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name} is a share and must be from 0 to 1, but got {getattr(self, name)}"
                )
        if self.record_every < 1:
            raise ConfigError(f"record_every must be at least 1, but got {self.record_every}")


def accelerator_on(device: torch.device) -> Accelerator:
    """What trains on a device."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device.type == "cpu")


def train(
    data: TrainingSet,
    config: HypernetConfig | None = None,
    *,
    objectives: Sequence[Objective] = (),
    probes: Sequence[Probe] = (),
    anchor: LatentRegression | None = None,
    checkpoint: Path | str | None = None,
    accelerator: Accelerator | None = None,
) -> LatentDiffusion:
    """Train a hypernetwork, from its checkpoint if there is one, and return it ready to sample.

    Args:
        data: latents and conditions to learn from.
        config: None for the defaults; its batch is that of all processes together.
        objectives: further losses on the predicted latents; means over the rows they see, if
            several processes are to give what one does.
        probes: measurements for the curve, of the averaged weights.
        anchor: a regression in the data's latents that diffusion is relative to, which stays as it
            is (`in_latents_of` makes one of a pretrained one); None for none.
        checkpoint: file to save to and to resume from; None for neither.
        accelerator: where and how to compute; None for accelerate's own choice.

    Raises:
        ConfigError: the checkpoint belongs to another config or other data, or training diverged,
            or the batch is no multiple of the number of processes.
        BundleError: the checkpoint is damaged.
    """
    config = config or HypernetConfig()
    accelerator = accelerator or Accelerator()
    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        run = _Run(data, config, objectives, probes, anchor, checkpoint, accelerator)
        return run.finish()


class _Run:
    """One training run."""

    def __init__(
        self,
        data: TrainingSet,
        config: HypernetConfig,
        objectives: Sequence[Objective],
        probes: Sequence[Probe],
        anchor: LatentRegression | None,
        checkpoint: Path | str | None,
        accelerator: Accelerator,
    ) -> None:
        self.config = config
        self.optimisation = config.optimisation
        self.objectives = objectives
        self.probes = probes
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.accelerator = accelerator
        self.share = Share(accelerator.process_index, accelerator.num_processes)
        self.share.require_even(self.optimisation.batch)
        self.identity = _identity(config, data, anchor)
        self.data = data.to(accelerator.device)
        self.model = _build(config, self.data, anchor).to(accelerator.device)
        #: The model with whole weights: itself, unless its weights are shared among processes.
        self.plain = deepcopy(self.model) if accelerator.is_fsdp2 else self.model
        denoiser = share_dropout(self.model.denoiser, self.share)
        self.optimiser = torch.optim.AdamW(
            denoiser.parameters(),
            lr=self.optimisation.lr,
            weight_decay=self.optimisation.weight_decay,
            fused=not accelerator.is_fsdp2,  # which shards weights as tensors that it refuses
        )
        self.parallel: nn.Module
        self.parallel, self.stepper = accelerator.prepare(denoiser, self.optimiser)
        at_once = not accelerator.is_fsdp2
        self.average = AveragedWeights(denoiser, self.optimisation.ema, foreach=at_once)
        #: Sums of each loss term since the last row of the curve.
        self.window: dict[str, Tensor] = {}
        #: The weights that `keep_lowest` chose so far.
        self.best: dict[str, Tensor] = {}

    def finish(self) -> LatentDiffusion:
        """Train to the last step and leave the averaged weights in the model."""
        start = self._resume()
        saved = time.monotonic()
        self.model.train()
        shown, steps = self.accelerator.is_main_process, self.optimisation.steps
        with progress("train hypernetwork", steps, done=start, shown=shown) as advance:
            for step in range(start, steps):
                self._step(step)
                last = step + 1 == steps
                if last or (step + 1) % self.config.record_every == 0:
                    self._record(step + 1)
                    advance(0, note=_note(self.model.history[-1]))
                advance()
                if last or self._is_late(step, saved):
                    self._save(step + 1)
                    saved = time.monotonic()
        self.average.keep()
        model = self._whole_model()
        if self.best:
            model.denoiser.load_state_dict(self.best, strict=False)
        return model.eval().requires_grad_(requires_grad=False)

    def _step(self, step: int) -> None:
        seed = self.optimisation.seed
        torch.manual_seed(stream_seed(seed, "dropout", step, 0))
        for group in self.optimiser.param_groups:
            group["lr"] = self.optimisation.lr * self.optimisation.rate(step)
        batch = draw_batch(
            self.data,
            self.optimisation.batch,
            torch_stream(seed, "batch", step, 0),
            dropout=self.config.condition_dropout,
            mixing=self.config.mixing,
        ).map(self.share.of)
        with self.accelerator.autocast():
            terms = self._loss(batch, step)
        self.stepper.zero_grad(set_to_none=True)
        self.accelerator.backward(torch.stack(list(terms.values())).sum())
        self.accelerator.clip_grad_norm_(self.parallel.parameters(), self.optimisation.clip)
        self.stepper.step()
        self.average.step()
        ones = {"count": torch.ones((), device=batch.t.device)}
        for name, value in (ones | terms).items():
            self.window[name] = self.window.get(name, 0) + value.detach()

    def _loss(self, batch: Batch, step: int) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms of the loss."""
        model, config = self.model, self.config
        condition = batch.condition
        centre = model.centre(condition, len(batch.t), batch.keep)
        if condition is not None and batch.condition_noise is not None:
            condition = model.condition_normaliser(condition)
            condition = condition + config.condition_noise * batch.condition_noise
        x0, t = model.latent_normaliser(batch.latents) - centre, model.schedule.times(batch.t)
        x_t = model.schedule.mix(x0, batch.eps, t)
        prediction = self.parallel(x_t, t, condition, batch.keep)
        error = (prediction - model.parameterisation.target(x0, batch.eps, t)).square().mean(1)
        weight = model.parameterisation.loss_weight(t, config.min_snr)
        terms = {"loss": config.latent_weight * (weight * error).mean()}
        if self.objectives:
            clean = model.parameterisation.to_x0(prediction, x_t, t) + centre
            seen = Prediction(
                x0=model.latent_normaliser.inverse(clean),
                truth=batch.latents,
                t=t,
                snr=model.schedule.log_snr(t).exp(),
                subjects=batch.subjects,
                step=step,
            )
            for objective in self.objectives:
                terms |= objective(seen)
        return terms

    def _record(self, step: int) -> None:
        """Add a row to the curve: mean loss terms since the last row, and the probes' figures."""
        self._pool_window()
        count = self.window.pop("count")
        row = {"step": float(step)}
        row |= {name: float(total / count) for name, total in self.window.items()}
        self.window = {}
        if not math.isfinite(row["loss"]):
            raise ConfigError(
                f"training diverged before step {step} (loss {row['loss']}): use a smaller lr than "
                f"{self.optimisation.lr}, or a longer warm-up"
            )
        row |= self._probe(step)
        self.model.history.append(row)
        figure = self.config.keep_lowest
        if figure is None:
            return
        if figure not in row:
            raise ConfigError(
                f"keep_lowest must be a figure of the curve, but got {figure!r}: this run has "
                f"{', '.join(row)}"
            )
        if row[figure] <= min(earlier[figure] for earlier in self.model.history):
            weights = all_whole(self.average.weights())
            self.best = {name: value.clone() for name, value in weights.items()}

    def _pool_window(self) -> None:
        """Make the sums of loss terms their means over processes."""
        if self.share.count > 1:
            self.window = self.accelerator.reduce(self.window, "mean")

    def _probe(self, step: int) -> dict[str, float]:
        """The probes' figures, which the main process measures and tells the others."""
        found: list[dict[str, float]] = [{}]
        with self.average.applied(), torch.no_grad():
            model = self._whole_model() if self.probes else self.plain
            if self.accelerator.is_main_process:
                for probe in self.probes:
                    found[0] |= probe(step, model)
        return broadcast_object_list(found)[0] if self.share.count > 1 else found[0]

    def _whole_model(self) -> LatentDiffusion:
        """The model with the weights and gradients it has now, all of them whole."""
        if self.plain is not self.model:
            self.plain.load_state_dict(all_whole(self.model.state_dict()))
            self.plain.history = self.model.history
            held = dict(self.model.named_parameters())
            for name, parameter in self.plain.named_parameters():
                grad = held[name].grad
                parameter.grad = None if grad is None else whole(grad)
            self.plain.train(self.model.training)
            self.plain.denoiser.train(self.model.denoiser.training)
        return self.plain

    def _is_late(self, step: int, saved: float) -> bool:
        """Whether it is time for a checkpoint, on which all processes agree."""
        late = time.monotonic() - saved > self.optimisation.checkpoint_seconds
        if self.share.count == 1:
            return late
        return step % _AGREE_EVERY == 0 and bool(broadcast_object_list([late])[0])

    def _save(self, step: int) -> None:
        if self.checkpoint is None:
            return
        self._pool_window()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"window.{name}": value for name, value in self.window.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= optimiser_tensors(self.optimiser, "optimiser.")
        tensors = all_whole(tensors)
        if not self.accelerator.is_main_process:
            return
        write_state(self.checkpoint, self.identity, tensors, step=step, history=self.model.history)

    def _resume(self) -> int:
        """Take over the checkpoint's state, if there is one; the number of steps done."""
        saved = None if self.checkpoint is None else read_state(self.checkpoint, self.identity)
        if saved is None:
            return 0
        tensors = saved.tensors
        held = self.model.state_dict()
        self.model.load_state_dict(placed_like(with_prefix(tensors, "model."), held))
        average = placed_like(with_prefix(tensors, "average."), self.average.weights())
        self.average.load_state_dict(average)
        device = self.accelerator.device
        self.window = {k: v.to(device) for k, v in with_prefix(tensors, "window.").items()}
        self.best = {k: v.to(device) for k, v in with_prefix(tensors, "best.").items()}
        parameters = list(self.model.denoiser.parameters())
        kept = {}
        for index, moments in optimiser_state(tensors, "optimiser.").items():
            like = {name: parameters[index] for name, value in moments.items() if value.dim()}
            kept[index] = placed_like(moments, like)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": kept, "param_groups": groups})
        self.model.history = saved.facts["history"]
        return int(saved.facts["step"])


def _build(
    config: HypernetConfig, data: TrainingSet, anchor: LatentRegression | None
) -> LatentDiffusion:
    """A fresh model with its normalisers fitted; a width of 1 stands in for no condition."""
    torch.manual_seed(stream_seed(config.optimisation.seed, "weights"))
    width = 1 if data.conditions is None else data.conditions.shape[2]
    options = replace(config.model, anchor=None if anchor is None else anchor.config)
    model = LatentDiffusion(options, data.latents.shape[1], width)
    if model.anchor is not None and anchor is not None:
        model.anchor.load_state_dict(anchor.state_dict())
        model.anchor.requires_grad_(requires_grad=False)
    model.latent_normaliser.fit(data.latents, config.whitening)
    if data.conditions is not None:
        model.condition_normaliser.fit(data.conditions.flatten(0, 1), whitening=0.0)
    return model


def _identity(
    config: HypernetConfig, data: TrainingSet, anchor: LatentRegression | None
) -> dict[str, Any]:
    """All that a run depends on, apart from the machine."""
    digest = hashlib.sha256()
    for tensor in (data.latents, data.conditions):
        if tensor is not None:
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return {
        "config": to_dict(config),
        "data": digest.hexdigest(),
        "anchor": None if anchor is None else fingerprint(anchor),
    }


def _note(row: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in list(row.items())[1:4])
