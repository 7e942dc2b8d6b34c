"""The training of a `VAE`, on vectors in memory or on disk; a run that was killed goes on.

All that is random in an epoch comes from a stream named by the epoch, so the loop has no random
state: with its checkpoint it ends with the same bits as if it had not been killed.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.errors import ConfigError
from lorasynth.core.progress import Advance, progress
from lorasynth.core.randomness import torch_stream
from lorasynth.core.weights import optimiser_state, optimiser_tensors, with_prefix

if TYPE_CHECKING:
    from lorasynth.codec.vae import VAE, VAEConfig


@runtime_checkable
class Examples(Protocol):
    """Scaled vectors, some of them held out."""

    def __len__(self) -> int:
        """Number of vectors to train on."""
        ...

    def batches(self, groups: Sequence[Int64[Tensor, "_"]]) -> Iterator[Float[Tensor, "_ D"]]:
        """Vectors to train on, by their numbers; one may be overwritten when the next is due."""
        ...

    def sample(self) -> Iterator[Float[Tensor, "_ D"]]:
        """Those among the vectors to train on by which an epoch is described, in blocks."""
        ...

    def held_out(self) -> Iterator[Float[Tensor, "_ D"]]:
        """Those that judge, in blocks."""
        ...


class InMemory:
    """Vectors in memory; all that are trained on describe an epoch."""

    def __init__(self, x: Float[Tensor, "n D"], config: "VAEConfig") -> None:
        train, held_out = split(len(x), config)
        self._train, self._held_out = x[train.to(x.device)], x[held_out.to(x.device)]

    def __len__(self) -> int:
        """Number of vectors to train on."""
        return len(self._train)

    def batches(self, groups: Sequence[Int64[Tensor, "_"]]) -> Iterator[Float[Tensor, "_ D"]]:
        """Vectors to train on, by their numbers."""
        for rows in groups:
            yield self._train[rows.to(self._train.device)]

    def sample(self) -> Iterator[Float[Tensor, "_ D"]]:
        """All vectors to train on."""
        yield self._train

    def held_out(self) -> Iterator[Float[Tensor, "_ D"]]:
        """Those that judge."""
        yield self._held_out


def split(count: int, config: "VAEConfig") -> tuple[Int64[Tensor, " m"], Int64[Tensor, " l"]]:
    """Numbers of the vectors to train on, and of at least one that is held out."""
    order = torch.randperm(count, generator=torch_stream(config.seed, "vae", "split"))
    held_out = min(max(round(config.validation * count), 1), count - 1)
    return order[held_out:], order[:held_out]


class Training:
    """One training run.

    Args:
        codec: what is trained, in place; its scaling is fitted already.
        examples: vectors scaled by it.
        checkpoint: where to keep what there is; None for nowhere.
        large: for weights that fill the memory: those that are best so far are kept in the
            checkpoint's folder alone, and AdamW makes one pass over the weights, not several.
            Its last bits differ, so smaller ones are trained as ever.
    """

    def __init__(
        self,
        codec: "VAE",
        examples: Examples,
        checkpoint: Checkpoint | None = None,
        *,
        large: bool = False,
    ) -> None:
        self.codec = codec
        self.config: VAEConfig = codec.config
        self.examples = examples
        self.checkpoint = checkpoint or Checkpoint(None, {})
        self.spill = large and self.checkpoint.folder is not None
        self.optimiser = torch.optim.AdamW(
            [
                {"params": layer.parameters(), "lr": self.config.lr / layer.in_features}
                for layer in (*codec.encoder, *codec.decoder)
                if isinstance(layer, nn.Linear)
            ],
            weight_decay=self.config.weight_decay,
            fused=large or None,
        )
        self.cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, self.config.epochs)
        self.history: list[dict[str, float]] = []
        #: Steps of the epoch that are done already.
        self.done = 0
        self.best: dict[str, Tensor] = {}

    def run(self) -> None:
        """Train until nothing improves, and leave the best weights and the loss terms in place.

        Raises:
            ConfigError: training diverged, or the checkpoint is of another run.
            BundleError: the checkpoint is damaged.
        """
        self._resume()
        finished = len(self.history) * len(self.examples) + self.done * self.config.batch
        with progress("fit VAE", self.config.epochs * len(self.examples), finished) as advance:
            while not self._ended():
                for _ in self.steps(advance):
                    if self.checkpoint.due():
                        self._save()
                self._judge()
                advance(0, note=f"held-out loss {self.history[-1]['held_out_loss']:.4f}")
        self.codec.load_state_dict(self._best())
        self.codec.report = {"epochs": self.history}
        self.codec.eval().requires_grad_(requires_grad=False)

    def steps(self, advance: Advance) -> Iterator[None]:
        """The steps of an epoch that are left; control returns between them."""
        stream = torch_stream(self.config.seed, "vae", "epoch", len(self.history))
        groups = torch.randperm(len(self.examples), generator=stream).split(self.config.batch)
        noises = (torch.randn(len(g), self.codec.latents, generator=stream) for g in groups)
        for _ in range(self.done):
            next(noises)
        for batch in self.examples.batches(groups[self.done :]):
            terms = self.codec.terms(batch, next(noises).to(batch))
            self.optimiser.zero_grad(set_to_none=True)
            (terms.reconstruction + self.config.beta * terms.divergence).backward()
            self.optimiser.step()
            self.done += 1
            advance(len(batch))
            if self.done < len(groups):
                yield

    def _judge(self) -> None:
        """End an epoch."""
        self.cosine.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.history.append(
            self._evaluate(self.examples.sample(), "")
            | self._evaluate(self.examples.held_out(), "held_out_")
        )
        self.done = 0
        loss = self.history[-1]["held_out_loss"]
        if not math.isfinite(loss):
            raise ConfigError(
                f"a VAE's training diverged in epoch {len(self.history) - 1} (loss {loss}): use a "
                f"smaller lr than {self.config.lr}"
            )
        if self._best_epoch() == len(self.history) - 1:
            if self.spill:
                self.checkpoint.save("best", self.codec.state_dict())
            else:
                self.best = copy.deepcopy(self.codec.state_dict())
        if self.checkpoint.due():
            self._save()

    @torch.no_grad()
    def _evaluate(self, blocks: Iterable[Float[Tensor, "_ D"]], prefix: str) -> dict[str, float]:
        """Loss terms at z = mu, without the latents' noise, so that epochs compare."""
        found, counts = [], []
        for block in blocks:
            terms = self.codec.terms(block, block.new_zeros(len(block), self.codec.latents))
            loss = terms.reconstruction + self.config.beta * terms.divergence
            found.append((float(loss), float(terms.reconstruction), float(terms.divergence)))
            counts.append(len(block))
        shares = [count / sum(counts) for count in counts]
        means = [
            math.fsum(share * value for share, value in zip(shares, values, strict=True))
            for values in zip(*found, strict=True)
        ]
        names = ("loss", "reconstruction", "divergence")
        return {f"{prefix}{name}": mean for name, mean in zip(names, means, strict=True)}

    def _best_epoch(self) -> int:
        losses = [epoch["held_out_loss"] for epoch in self.history]
        return losses.index(min(losses))

    def _ended(self) -> bool:
        epoch = len(self.history)
        if epoch == 0 or self.done:
            return False
        return epoch == self.config.epochs or epoch - 1 - self._best_epoch() >= self.config.patience

    def _best(self) -> dict[str, Tensor]:
        kept = self.checkpoint.load("best") if self.spill else None
        return self.best if kept is None else kept.tensors

    def _save(self) -> None:
        tensors = {f"codec.{name}": value for name, value in self.codec.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= optimiser_tensors(self.optimiser, "optimiser.")
        rates = [group["lr"] for group in self.optimiser.param_groups]
        self.checkpoint.save("training", tensors, history=self.history, done=self.done, rates=rates)

    def _resume(self) -> None:
        """Take over the checkpoint's state, if there is one."""
        device = self.codec.scaled.mean.device
        saved = self.checkpoint.load("training", device)
        if saved is None:
            return
        self.codec.load_state_dict(with_prefix(saved.tensors, "codec."))
        self.best = with_prefix(saved.tensors, "best.")
        self.history, self.done = saved.facts["history"], saved.facts["done"]
        groups = self.optimiser.state_dict()["param_groups"]
        state = optimiser_state(saved.tensors, "optimiser.")
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.cosine.last_epoch = len(self.history)
        for group, rate in zip(self.optimiser.param_groups, saved.facts["rates"], strict=True):
            group["lr"] = rate
