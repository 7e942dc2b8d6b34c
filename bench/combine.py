"""How much of two people is left when their adapters are combined.

    python bench/combine.py --pairs 24

Pairs of validation subjects of the shipped bundle, each with the adapter that the synthesizer makes
of one photo.  Joined adapters make one portrait; with regions, one image of twice the width has one
adapter at the left and the other at the right, and each half is compared.  Figures are mean
cosines of the first encoder to the other images of the subject it should show ("own") and of the
other one, with 95 % intervals over pairs.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorasynth.adapter import Adapter, map_factors, scaled, stack, unstack
from lorasynth.adapter.addition import merged
from lorasynth.avatars.bundle import Bundle
from lorasynth.base import SamplingConfig
from lorasynth.condition.similarity import likeness
from lorasynth.evaluation import BenchmarkConfig
from lorasynth.evaluation.bootstrap import bootstrap, in_words
from lorasynth.evaluation.contenders import sampled

_EACH, _PROMPT = 4, "a portrait of sks"
_SIDES = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))


def main() -> None:
    """Measure all rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--bundle", type=Path, default=Path("bundle"))
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle, torch.device("cpu"))
    base, encoder = bundle.base, bundle.first
    run = bundle.benchmark(BenchmarkConfig(subjects=2 * asked.pairs, split="validation"))
    strength = bundle.synthesizer.strength
    ours = [scaled(one, strength) for one in unstack(sampled(bundle.synthesizer)(run.cases))]
    real = [encoder.embed(case.judging.images) for case in run.cases]
    config = SamplingConfig(steps=10)
    seeds = list(range(_EACH))

    def alone(pair: Sequence[int]) -> list[Tensor]:
        adapters = stack([ours[i] for i in pair])
        made = base.sample([_PROMPT] * 2 * _EACH, seeds * 2, adapters, config)
        return list(made.split(_EACH))

    def joined(method: str, weight: float) -> Callable[[Sequence[int]], list[Tensor]]:
        def make(pair: Sequence[int]) -> list[Tensor]:
            parts = [Adapter(ours[i]) for i in pair]
            one, _ = merged(parts, [weight, weight], method, 0.5, 16)
            factors = map_factors(lambda part: part[None], one.factors)
            return [base.sample([_PROMPT] * _EACH, seeds, factors, config)] * 2

        return make

    def apart(regions: bool) -> Callable[[Sequence[int]], list[Tensor]]:
        def make(pair: Sequence[int]) -> list[Tensor]:
            adapters = stack([ours[i] for i in pair])
            size = base.image_size
            wide = SamplingConfig(steps=10, width=2 * size, regions=_SIDES if regions else ())
            if regions:
                made = base.sample([_PROMPT] * 2 * _EACH, seeds * 2, adapters, wide)
            else:
                both = merged([Adapter(ours[i]) for i in pair], [1.0, 1.0], "sum", 1.0, 16)[0]
                factors = map_factors(lambda part: part[None], both.factors)
                made = base.sample([_PROMPT] * _EACH, seeds, factors, wide)
            return [made[:, :, :size].contiguous(), made[:, :, size:].contiguous()]

        return make

    rows: dict[str, Callable[[Sequence[int]], list[Tensor]]] = {
        "each alone": alone,
        "sum": joined("sum", 1.0),
        "sum, half of each": joined("sum", 0.5),
        "TIES, density 0.5": joined("ties", 1.0),
        "DARE, density 0.5": joined("dare", 1.0),
        "sum, twice the width": apart(regions=False),
        "regions, twice the width": apart(regions=True),
    }
    table = Table("", "own", "other", title=f"{asked.pairs} pairs")
    for name, make in rows.items():
        own, other = [], []
        for first in range(0, 2 * asked.pairs, 2):
            pair = (first, first + 1)
            shown = [encoder.embed(images) for images in make(pair)]
            mine = [float(likeness(shown[i][None], real[pair[i]][None])) for i in (0, 1)]
            theirs = [float(likeness(shown[i][None], real[pair[1 - i]][None])) for i in (0, 1)]
            own.append(sum(mine) / 2)
            other.append(sum(theirs) / 2)
        intervals = (bootstrap(torch.tensor(values)) for values in (own, other))
        table.add_row(name, *(in_words(asdict(one)) for one in intervals))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
