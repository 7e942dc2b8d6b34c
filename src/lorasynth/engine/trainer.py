"""The one training loop of everything that is trained once: AdamW, schedule, EMA, resume, metrics.

The loss callback draws everything random from `lorasynth.core.randomness` by step number, so the
loop has no random state: a run that is killed and started again goes on from its last checkpoint
and ends with the same bits.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lorasynth.core.atomic import atomic_file, make_parent
from lorasynth.core.checkpoint import State, read_state, write_state
from lorasynth.core.config import to_dict
from lorasynth.core.device import has_fast_bfloat16
from lorasynth.core.errors import BundleError, ConfigError, reason_of
from lorasynth.core.progress import Note, progress
from lorasynth.core.progress import note as say
from lorasynth.core.weights import with_prefix
from lorasynth.engine.optimisation import Optimisation as Optimisation
from lorasynth.engine.processes import Processes, as_parts, whole

#: Returns the loss and a short text for the progress bar; called with the model and the step.
Loss = Callable[[nn.Module, int], tuple[Tensor, Note]]

#: Named figures of the averaged model, which has the last step's gradients; called with it and the
#: count of steps done, it must change no weights.
Figures = Callable[[Any, int], Mapping[str, float]]

#: The file beside the checkpoint to which each recorded row is added, as JSON.
METRICS = "metrics.jsonl"

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Trainer:
    """Trains `model` in place and leaves the averaged weights in it.

    Several processes of a launcher train together: their gradients are averaged, so the loss of
    each must be a mean over its own equal share of the batch (`processes`).  Under FSDP each holds
    a part of the weights, their averages and moments; checkpoints are the same.

    Attributes:
        autocast: compute in bf16; set where bf16 products are fast.
        processes: this one, and how many there are.
        history: recorded rows: the step, the mean loss since the row before, and figures.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Optimisation,
        checkpoint: Path | None,
        device: torch.device,
        settings: Mapping[str, Any] | None = None,
        *,
        shardable: bool = False,
    ) -> None:
        """Prepare a run.

        Args:
            model: what to train.
            config: how.
            checkpoint: file to save to and to resume from; None for neither.
            device: where.
            settings: whatever else the result depends on, as JSON values; a checkpoint of other
                settings is refused.
            shardable: the loss calls nothing of the model but its `forward`, as FSDP needs.

        Raises:
            ConfigError: FSDP is asked for, and the model is not shardable.
        """
        self.whole = self.model = model.to(device)
        self.config = config
        self.identity = {**(settings or {}), "optimisation": to_dict(config)}
        self.checkpoint = checkpoint
        self.device = device
        self.autocast = has_fast_bfloat16(device)
        self.processes = Processes.here(device)
        self.average = AveragedModel(
            self.model, multi_avg_fn=_warmed_up(config.ema), use_buffers=True
        )
        if self.processes.sharded:
            self._shard(shardable)
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.scale_rates({})
        self.history: list[dict[str, float]] = []
        self._every = 100
        self._figures: Figures | None = None
        self._lowest: str | None = None
        self._patience: int | None = None
        self._best: dict[str, Tensor] = {}
        #: Sum of the losses since the last row, and their number.
        self._sum, self._count = torch.zeros((), device=device), 0
        self._seconds = 0.0

    def scale_rates(self, rates: Mapping[str, float]) -> None:
        """Multiply learning rates, before the run: by the names of parameters, by how much."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault(rates.get(name, 1.0), []).append(parameter)
        self.optimiser = torch.optim.AdamW(
            [{"params": params, "rate": rate} for rate, params in groups.items()],
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            fused=self.device.type == "cuda",
        )

    def record(
        self,
        every: int,
        figures: Figures | None = None,
        *,
        lowest: str | None = None,
        patience: int | None = None,
    ) -> None:
        """Record a row every so many steps, and after the last.

        Args:
            every: steps; 100 unless this is called.
            figures: what else stands in the rows, such as held-out losses.
            lowest: the figure of the row whose averaged weights are kept; None: the last row's.
            patience: rows without a new lowest after which training ends; None: it goes on.
        """
        self._every, self._figures = every, figures
        self._lowest, self._patience = lowest, patience

    def run(self, title: str, loss: Loss) -> nn.Module:
        """Train to the last step, from the checkpoint if there is one.

        Raises:
            BundleError: the checkpoint is damaged or belongs to another model.
            ConfigError: the checkpoint was made with other settings, or training diverged.
        """
        self.model.train()
        step, steps = self._resume(), self.config.steps
        begun = saved = time.monotonic()
        before = self._seconds
        shown = self.processes.is_first
        log, figures = self._metrics(title, step), ""
        with progress(title, steps, step, shown=shown) as go:
            while step < steps and not self._ended():
                note = self._step(loss, step)
                step += 1
                if step == steps or step % self._every == 0:
                    row = self._record(step)
                    figures = _as_note(row) if self._figures else ""
                    self._seconds = before + time.monotonic() - begun
                    rate = self.config.lr * self.config.rate(step - 1)
                    log({**row, "rate": rate, "seconds": round(self._seconds, 1)})
                last = step == steps or self._ended()
                due = last or time.monotonic() - saved > self.config.checkpoint_seconds
                if self.processes.agree(self.device, wanted=due):
                    self._save(step)
                    saved = time.monotonic()
                go(note=_beside(note, figures))
        kept = self._best or self.average.module.state_dict()
        self.whole.load_state_dict({name: whole(value) for name, value in kept.items()})
        return self.whole.eval()

    def _shard(self, shardable: bool) -> None:
        if not shardable:
            raise ConfigError(
                "FSDP shares out the weights of predictors alone, but something else is trained: "
                "launch without --use_fsdp"
            )
        self.model = copy.deepcopy(self.whole)
        for model in (self.model, self.average.module):
            self.processes.shard(model, self.device)
        self.whole.cpu()

    def _step(self, loss: Loss, step: int) -> Note:
        rate = self.config.lr * self.config.rate(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            value, note = loss(self.model, step)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        seen = value.detach().float()
        if self.processes.count > 1:
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            self.processes.average([seen, *([] if self.processes.sharded else gradients)])
        nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        self.optimiser.step()
        self.average.update_parameters(self.model)
        self._sum += seen
        self._count += 1
        return note

    def _record(self, step: int) -> dict[str, float]:
        """Add a row: the mean loss since the last one, and figures of the averaged model."""
        row = {"step": float(step), "loss": float(self._sum) / self._count}
        self._sum, self._count = torch.zeros_like(self._sum), 0
        if not math.isfinite(row["loss"]):
            raise ConfigError(
                f"training diverged before step {step} (loss {row['loss']}): use a smaller lr than "
                f"{self.config.lr}, or a longer warm-up"
            )
        if self._figures is not None:
            row |= self._measured(step)
        self.history.append(row)
        if self._lowest is not None and self._rows_since_lowest() == 0:
            state = self.average.module.state_dict()
            self._best = {k: whole(v).to("cpu", copy=True) for k, v in state.items()}
        return row

    @torch.no_grad()
    def _measured(self, step: int) -> dict[str, float]:
        """The figures, the same in all processes, so that they end together."""
        assert self._figures is not None
        averaged = self.average.module.eval()
        for mean, parameter in zip(averaged.parameters(), self.model.parameters(), strict=True):
            mean.grad = parameter.grad
        found = dict(self._figures(averaged, step))
        for mean in averaged.parameters():
            mean.grad = None
        if self.processes.count > 1:
            values = torch.tensor(list(found.values()), device=self.device)
            self.processes.average([values])
            found = dict(zip(found, values.tolist(), strict=True))
        return found

    def _rows_since_lowest(self) -> int:
        assert self._lowest is not None
        figures = [row[self._lowest] for row in self.history]
        return len(figures) - 1 - figures.index(min(figures))

    def _ended(self) -> bool:
        """Whether nothing became better for too long."""
        if self._patience is None or self._lowest is None or not self.history:
            return False
        return self._rows_since_lowest() >= self._patience

    def _metrics(self, title: str, start: int) -> Callable[[dict[str, float]], None]:
        """What adds a row to the file of metrics; rows that a killed run had after `start` go.

        TensorBoard, where it is installed, finds them in the folder `tensorboard` beside it.
        """
        if self.checkpoint is None or not self.processes.is_first:
            return lambda _row: None
        path = self.checkpoint.with_name(METRICS)
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if not _is_after(line, title, start)]
        if kept != lines:
            with atomic_file(path) as temporary:
                temporary.write_text("".join(kept))

        board = _board(path.with_name("tensorboard") / title, start)

        def write(row: dict[str, float]) -> None:
            make_parent(path)
            with path.open("a") as file:
                file.write(json.dumps({"training": title, **row}) + "\n")
            if board is not None:
                for name in row.keys() - {"step"}:
                    board.add_scalar(name, row[name], int(row["step"]))
                board.flush()

        return write

    def _save(self, step: int) -> None:
        processes = self.processes
        if self.checkpoint is None or not (processes.is_first or processes.sharded):
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.module.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self._best.items()}
        for name, parameter in self.parameters.items():
            state = self.optimiser.state[parameter]
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if state}
        tensors["losses"] = self._sum
        tensors = {name: whole(value).cpu() for name, value in tensors.items()}
        facts = {"history": self.history, "count": self._count, "seconds": self._seconds}
        steps = self.config.steps
        if processes.is_first:
            write_state(self.checkpoint, self.identity, tensors, step=step, steps=steps, **facts)

    def _resume(self) -> int:
        """Take over the checkpoint's state, if there is one; the number of steps done."""
        if self.checkpoint is None:
            return 0
        free = ("optimisation.steps", "optimisation.checkpoint_seconds")
        saved = read_state(self.checkpoint, self.identity, free=free)
        if saved is None:
            return 0
        tensors, step = saved.tensors, int(saved.facts["step"])
        self._say_how_it_goes_on(saved)
        try:
            for model, prefix in ((self.model, "model."), (self.average.module, "average.")):
                model.load_state_dict(_like(with_prefix(tensors, prefix), model))
        except RuntimeError as error:
            raise BundleError(
                f"a checkpoint must be of the model being trained, but {self.checkpoint} is not "
                f"({reason_of(error)}): delete it to begin anew"
            ) from error
        self.average.n_averaged.fill_(step)
        self._best = with_prefix(tensors, "best.")
        for name, parameter in self.parameters.items():
            if f"exp_avg.{name}" in tensors:
                moments = {m: as_parts(tensors[f"{m}.{name}"], parameter) for m in _MOMENTS}
                count = torch.tensor(float(step), device=self.device)
                self.optimiser.state[parameter] = {"step": count, **moments}
        if "losses" in tensors:
            self._sum, self._count = tensors["losses"].to(self.device), saved.facts["count"]
        self.history = list(saved.facts.get("history", []))
        self._seconds = float(saved.facts.get("seconds", 0.0))
        return step

    def _say_how_it_goes_on(self, saved: State) -> None:
        """One line where another number of steps is asked for than when the run was begun."""
        done, wanted = int(saved.facts["step"]), self.config.steps
        before = int(saved.facts.get("steps", wanted))
        if before == wanted or not self.processes.is_first:
            return
        begun = f"{self.checkpoint} has done {done} of {before} steps"
        if done >= wanted:
            say(f"{begun}, and {wanted} are asked for: it ends as it is")
            return
        now, then = self.config.rate(done), replace(self.config, steps=before).rate(done)
        say(f"{begun}, and goes on to {wanted}: its learning rate is {now:.2f} of the peak here, "
            f"where it was to be {then:.2f}")  # fmt: skip


def _like(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole weights as a model has its own: on its device, and in parts where it is."""
    own = model.state_dict()
    return {k: as_parts(v, own[k]) if k in own else v for k, v in state.items()}


def _board(folder: Path, start: int) -> Any:
    """TensorBoard's writer of a folder, what it has after `start` taken back; None without it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)


def _beside(note: Note, figures: str) -> Note:
    """This step's text, and the last figures."""
    if callable(note):
        return lambda: "; ".join(filter(None, (note(), figures)))
    return "; ".join(filter(None, (note, figures)))


def _as_note(row: Mapping[str, float]) -> str:
    said = (f"{name} {value:.4g}" for name, value in list(row.items())[1:4])
    return f"at step {row['step']:.0f} {', '.join(said)}"


def _is_after(line: str, title: str, step: int) -> bool:
    """Whether a row of metrics is of this training and of a step that is yet to come."""
    try:
        row = json.loads(line)
        return bool(row["training"] == title and row["step"] > step)
    except (ValueError, TypeError, KeyError):  # cut off by a kill
        return True


def _warmed_up(decay: float) -> Callable[..., None]:
    """An average that forgets the random start: its decay is at most (1 + n) / (10 + n)."""

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        mean = get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))
        for parts in {type(one) for one in averaged}:  # none takes whole tensors and parts at once
            pairs = [p for p in zip(averaged, current, strict=True) if type(p[0]) is parts]
            mean(*map(list, zip(*pairs, strict=True)), n)

    return update
