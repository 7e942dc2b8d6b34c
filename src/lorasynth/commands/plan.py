"""`lorasynth plan`: memory and hours of each step, before any is spent."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from lorasynth.commands.shared import WithBase, memory_of
from lorasynth.core.command import Command
from lorasynth.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasynth.base import BaseModel
    from lorasynth.engine.plan import Need

_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Plan(Command, WithBase):
    """Say which memory and how many hours each step will take, from the base model's files alone.

    Memory is counted by running the real code on tensors without numbers. Hours are operations
    divided by --tflops, which is an assumption about the GPU and not a measurement.

    Example: lorasynth plan --base hub:stabilityai/stable-diffusion-xl-base-1.0 --dtype bfloat16
    --gradient-checkpointing --gpu 24GB

    Attributes:
        gpu: Memory of the GPU.
        tflops: Rate that the GPU reaches in training, in TFLOP/s; an H100 in bf16 about 400, an
            A100 about 125, a 4090 about 65.
        pretrain_steps: Steps of `pretrain`.
        subjects_per_step: Subjects in a step of `pretrain`.
        adapters: Adapters that `collect` trains.
        adapter_steps: Steps of each.
        images_per_step: Images in each of those.
        rank: Rank of the adapters.
        targets: Endings of the names of the linear layers to adapt; default: the family's.
    """

    group: ClassVar[str] = "Make a synthesizer"

    gpu: str = "24GB"
    tflops: Annotated[float, Field(gt=0)] = 125.0
    pretrain_steps: Annotated[int, Field(ge=1)] = 10_000
    subjects_per_step: Annotated[int, Field(ge=1)] = 64
    adapters: Annotated[int, Field(ge=1)] = 1_000
    adapter_steps: Annotated[int, Field(ge=1)] = 100
    images_per_step: Annotated[int, Field(ge=1)] = 4
    rank: Annotated[int, Field(ge=1)] = 4
    targets: tuple[str, ...] = ()

    def run(self) -> list[dict[str, Any]]:
        """Print the table; its rows.

        Raises:
            ConfigError: a step does not fit.
        """
        rows = self.rows()
        self.show(rows)
        return rows

    def rows(self, *steps: str) -> list[dict[str, Any]]:
        """For each step, or those named, its name, how much fits at once, and what that takes."""
        import torch

        from lorasynth.base import BaseModel
        from lorasynth.engine import plan

        sketch = BaseModel.load(self.base, "meta", image_size=self.size)
        budget, number = memory_of(self.gpu, "--gpu"), getattr(torch, self.dtype)
        with plan.fake(sketch, self.base, number, self.quantize) as base:
            self.memory_options.apply(base.denoiser, base.name)
            return [
                self._row(name, need, budget, samples)
                for name, need, samples in self._steps(base)
                if not steps or name in steps
            ]

    def _steps(self, base: "BaseModel") -> "Iterator[tuple[str, Callable[[int], Need], int]]":
        """Each step's name, what it needs for so many samples at once, and how many in all."""
        from lorasynth.engine import plan

        targets, denoiser = self.targets or base.default_targets, [base.denoiser]
        encoders = [base.vae, *base.text_encoders.values()]
        size = sum(f.B.numel() for f in plan.zero_factors(base, targets, self.rank, 1).values())
        alone = self.offload
        # A predictor's last layer has 128 inputs and a bias for each number of B.
        yield "encode", lambda n: plan.need_of(plan.encoding(base, n), encoders, alone=alone), 0

        def pretrain(n: int) -> "Need":
            step = plan.training(base, plan.zero_factors(base, targets, self.rank, n), n)
            return plan.need_of(step, denoiser, 129 * size)

        def collect(n: int) -> "Need":
            factors = plan.zero_factors(base, targets, self.rank, n)
            step = plan.training(base, factors, n * self.images_per_step)
            return plan.need_of(step, denoiser, n * size)

        yield "pretrain", pretrain, self.pretrain_steps * self.subjects_per_step
        yield "collect", collect, self.adapters * self.adapter_steps
        networks = list(base._networks())
        yield "images", lambda n: plan.need_of(plan.sampling(base, n), networks, alone=alone), 0
        yield "decode", lambda n: plan.need_of(plan.decoding(base, n), networks, alone=alone), 0

    def _row(
        self, name: str, need: "Callable[[int], Need]", budget: int, samples: int
    ) -> dict[str, Any]:
        from lorasynth.engine import plan

        most, one = {"pretrain": self.subjects_per_step}.get(name, 64), need(1)
        fits, taken = plan.largest_batch(one, need(2), budget, most)
        return {
            "step": name,
            "at_once": fits,
            "weights_gb": round(one.weights / _GB, 2),
            "memory_gb": round(taken / _GB, 2),
            "hours": round(plan.hours(one.operations, samples, self.tflops), 2)
            if samples
            else None,
        }

    def show(self, rows: list[dict[str, Any]], how: str = "assumed") -> None:
        """Print the table; `how` says where the rate is from.

        Raises:
            ConfigError: a step does not fit.
        """
        name = self.base
        print(f"{name}, {self.dtype}, a GPU of {self.gpu} at {self.tflops:.3g} TFLOP/s ({how}):")
        print(f"{'step':<10}{'at once':>9}{'weights':>10}{'in all':>10}{'hours':>9}")
        for row in rows:
            hours = "" if row["hours"] is None else f"{row['hours']:.1f}"
            print(
                f"{row['step']:<10}{row['at_once']:>9}{row['weights_gb']:>7} GB"
                f"{row['memory_gb']:>7} GB{hours:>9}"
            )
        if short := [row["step"] for row in rows if not row["at_once"]]:
            raise ConfigError(
                f"each step must fit into {self.gpu}, but {', '.join(short)} of {name} does not: "
                "try --dtype bfloat16, --gradient-checkpointing, --offload, --quantize nf4, or a "
                "smaller --size or --rank"
            )
