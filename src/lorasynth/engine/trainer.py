"""The one training loop of the embedded models: AdamW, warm-up and cosine decay, EMA, resume.

The loss callback draws everything random from `lorasynth.core.randomness` by step number, so the
loop has no random state: a run that is killed and started again goes on from its last checkpoint
and ends with the same weights.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lorasynth.core.checkpoint import read_state, write_state
from lorasynth.core.config import to_dict
from lorasynth.core.device import has_fast_bfloat16
from lorasynth.core.errors import BundleError, ConfigError
from lorasynth.core.progress import progress
from lorasynth.core.weights import with_prefix

#: What looks on between steps: called with the averaged model and the count of steps done.
Watch = Callable[[nn.Module, int], None]

#: Returns the loss and a short text for the progress bar; called with the model and the step.
Loss = Callable[[nn.Module, int], tuple[Tensor, str]]

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a model is trained.

    Attributes:
        steps: optimiser steps.
        batch: samples per step.
        lr: peak learning rate, reached after `warmup` steps.
        decay: the last share of the steps after those, in which the rate falls to zero by a half
            cosine.  Below 1, `steps` can be changed until the fall begins.
        weight_decay: of AdamW.
        ema: decay of the exponential moving average of the weights, which is what is kept.
        clip: the norm that gradients are clipped to.
        seed: of every random stream.
        checkpoint_seconds: how often a checkpoint is written.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 200
    decay: float = 1.0
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        least = {"steps": 0, "batch": 1, "warmup": 0, "weight_decay": 0, "checkpoint_seconds": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ConfigError(
                    f"training's {name} must be at least {bound}, but got {getattr(self, name)}"
                )
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"training's {name} must be above 0, but got {getattr(self, name)}"
                )
        if not 0 <= self.ema < 1:
            raise ConfigError(f"training's ema must be from 0 to below 1, but got {self.ema}")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"training's decay must be above 0 and at most 1, but {self.decay}")

    @property
    def falls_at(self) -> int:
        """The step at which the rate begins to fall."""
        return self.warmup + round((1 - self.decay) * max(self.steps - self.warmup, 0))

    def rate(self, step: int) -> float:
        """The learning rate at a step, as a share of `lr`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = max(step - self.falls_at, 0) / max(self.steps - self.falls_at, 1)
        return 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))


class Trainer:
    """Trains `model` in place and leaves the averaged weights in it."""

    def __init__(
        self,
        model: nn.Module,
        config: Optimisation,
        checkpoint: Path,
        device: torch.device,
        settings: Mapping[str, Any] | None = None,
        *,
        autocast: bool | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: what to train.
            config: how.
            checkpoint: file to save to and to resume from.
            device: where.
            settings: whatever else the result depends on, as JSON values; a checkpoint of other
                settings is refused.
            autocast: compute in bf16; None: where bf16 products are fast.
        """
        self.model = model.to(device)
        self.config = config
        self.identity = {**(settings or {}), "optimisation": to_dict(config)}
        if config.decay < 1:  # what was done before the rate falls is the same for any `steps`
            del self.identity["optimisation"]["steps"]
        self.watchers: list[tuple[int, Watch]] = []
        self.checkpoint = checkpoint
        self.device = device
        self.autocast = has_fast_bfloat16(device) if autocast is None else autocast
        self.average = AveragedModel(
            self.model, multi_avg_fn=_warmed_up(config.ema), use_buffers=True
        )
        self.parameters = dict(self.model.named_parameters())
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=device.type == "cuda",
        )

    def watch(self, every: int, watcher: Watch) -> None:
        """Call a watcher after every so many steps; it must change no weights."""
        self.watchers.append((every, watcher))

    def run(self, title: str, loss: Loss) -> nn.Module:
        """Train to the last step, from the checkpoint if there is one.

        Raises:
            BundleError: the checkpoint is damaged or belongs to another model.
            ConfigError: the checkpoint was made with other settings.
        """
        self.model.train()
        start = self._resume()
        saved = time.monotonic()
        with progress(title, self.config.steps, done=start) as advance:
            for step in range(start, self.config.steps):
                note = self._step(loss, step)
                advance(note=note)
                for every, watcher in self.watchers:
                    if (step + 1) % every == 0:
                        watcher(self.average.module.eval(), step + 1)
                last = step + 1 == self.config.steps
                if last or time.monotonic() - saved > self.config.checkpoint_seconds:
                    self._save(step + 1)
                    saved = time.monotonic()
        self.model.load_state_dict(self.average.module.state_dict())
        return self.model.eval()

    def _step(self, loss: Loss, step: int) -> str:
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * self.config.rate(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            value, note = loss(self.model, step)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        self.optimiser.step()
        self.average.update_parameters(self.model)
        return note

    def _save(self, step: int) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.module.state_dict().items()}
        for name, parameter in self.parameters.items():
            state = self.optimiser.state[parameter]
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if state}
        steps = self.config.steps
        write_state(self.checkpoint, self.identity, tensors, step=step, steps=steps)

    def _resume(self) -> int:
        """Take over the checkpoint's state, if there is one; the number of steps done."""
        saved = read_state(self.checkpoint, self.identity)
        if saved is None:
            return 0
        tensors, step = saved.tensors, int(saved.facts["step"])
        steps = int(saved.facts.get("steps", self.config.steps))
        if steps != self.config.steps and step > min(
            self.config.falls_at, replace(self.config, steps=steps).falls_at
        ):
            raise ConfigError(
                f"a run of {steps} steps can have {self.config.steps} until its rate falls, but "
                f"{self.checkpoint} has done {step}: go on with {steps}"
            )
        try:
            self.model.load_state_dict(with_prefix(tensors, "model."))
            self.average.module.load_state_dict(with_prefix(tensors, "average."))
        except RuntimeError as error:
            raise BundleError(
                f"a checkpoint must be of the model being trained, but {self.checkpoint} is not "
                f"({str(error).splitlines()[0]}): delete it to begin anew"
            ) from error
        self.average.n_averaged.fill_(step)
        for name, parameter in self.parameters.items():
            if f"exp_avg.{name}" in tensors:
                moments = {m: tensors[f"{m}.{name}"].to(self.device) for m in _MOMENTS}
                count = torch.tensor(float(step), device=self.device)
                self.optimiser.state[parameter] = {"step": count, **moments}
        return step


def _warmed_up(decay: float) -> Callable[..., None]:
    """An average that forgets the random start: its decay is at most (1 + n) / (10 + n)."""

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, n)

    return update
