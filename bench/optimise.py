"""Settings of mixtures and inversions on validation subjects, from one image and from ten.

    python bench/optimise.py --subjects 12
    python bench/optimise.py rows.json -o runs/mine --images 1

A row of the JSON file says in which "way" adapters are found, "mixture", "inversion" or
"weights2weights", and how that one's config differs from the default.  "start": "synthesised" is
from what the synthesizer says, not from the mean.  "vae" holds the options of a VAE whose latents
are optimised in place of the synthesizer's.  A VAE, and the components of weights2weights, are
fitted to `--library`.  Reports are kept: the same command resumes.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorasynth.adapter import Factors
from lorasynth.avatars.bundle import Bundle
from lorasynth.codec import fit_codec
from lorasynth.core.cache import Cache
from lorasynth.core.config import from_dict, read_json, to_dict
from lorasynth.engine import descend
from lorasynth.evaluation import BenchmarkConfig
from lorasynth.evaluation.contenders import stacked
from lorasynth.images import Subject
from lorasynth.library import Library
from lorasynth.optimise import (
    Coordinates,
    Inversion,
    InversionConfig,
    Mixture,
    MixtureConfig,
    weights2weights,
)
from lorasynth.studies.study import as_json

#: Configs that rows differ from.
WAYS = {
    "mixture": MixtureConfig(),
    "inversion": InversionConfig(),
    "weights2weights": weights2weights.SETTINGS,
}
FIGURES = [
    *("identity_similarity", "identity_similarity_second"),
    *("attribute_accuracy", "prompt_following", "diversity"),
]


@dataclass(frozen=True)
class Row:
    """One setting: a way and its config, the VAE if there is one, and where latents start."""

    way: str
    config: MixtureConfig | InversionConfig
    vae: Mapping[str, Any] | None
    start: str

    @classmethod
    def read(cls, way: str, vae: Any = None, start: str = "mean", **said: Any) -> "Row":
        usual = to_dict(WAYS[way])
        said["optimizer"] = usual["optimizer"] | said.get("optimizer", {})
        return cls(way, from_dict(type(WAYS[way]), usual | said), vae, start)


class Bench:
    """Validation subjects, and the spaces that coordinates are of."""

    def __init__(self, bundle: Bundle, library: Path, config: BenchmarkConfig) -> None:
        self.bundle = bundle
        self.run = bundle.benchmark(config)
        self._library = library

    @cached_property
    def vectors(self) -> Tensor:
        return Library.open(self._library).all_vectors()

    def coordinates(self, row: Row, people: list[Subject]) -> Coordinates:
        """What a row asks for."""
        synthesizer, config = self.bundle.synthesizer, row.config
        codec, known = synthesizer.codec, self.bundle.library.latents
        if row.way == "weights2weights":
            codec = weights2weights.components_of(self.vectors)
            config = weights2weights.in_latents(config, codec)
        elif row.vae is not None:
            codec = fit_codec("vae", self.vectors, row.vae)
        if codec is not synthesizer.codec:
            known = codec.encode(self.vectors)

        def decode(latents: Tensor) -> Factors:
            return synthesizer.layout.unflatten(codec.decode(latents))

        if isinstance(config, MixtureConfig):
            return Mixture(config, len(people), known, decode)
        start = None
        if row.start == "synthesised":
            conditions = synthesizer.conditions(people)
            start = synthesizer.latents(conditions, [one.id for one in people])
        return Inversion(config, len(people), known, decode, start)

    def measure(self, row: Row, images: int) -> dict[str, Any]:
        """One row's adapters, measured."""
        cases = self.run.cases
        people = [case.reference for case in cases]
        if images > 1:
            found = [self.run.subjects.load(case.id) for case in cases]
            people = [
                replace(one, photos=one.photos[:images], captions=one.captions[:images])
                for one in found
            ]
        coordinates = self.coordinates(row, people)
        begun = time.perf_counter()
        made = descend(self.bundle.base, people, coordinates).factors
        seconds = (time.perf_counter() - begun) / len(people)
        contender = stacked(row.way, made, [case.id for case in cases])
        return {"seconds": seconds, **as_json(self.run.measure(contender))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    rows = Path(__file__).with_suffix(".json")
    parser.add_argument("rows", type=Path, nargs="?", default=rows)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/optimise"))
    parser.add_argument("--bundle", type=Path, default=Path("bundle"))
    parser.add_argument("--library", type=Path, default=Path("runs/out/library"))
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 10])
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    config = BenchmarkConfig(subjects=options.subjects, split="validation")
    bench = Bench(bundle, options.library, config)
    table = Table("setting", "images", "seconds", *FIGURES)
    for name, said in read_json(options.rows).items():
        row = Row.read(**said)
        for images in options.images:
            asked = {
                "row": said | to_dict(row.config),
                "images": images,
                "subjects": config,
                "synthesizer": bundle.synthesizer.fingerprint,
                **bench.run.identity,
            }
            measure = partial(bench.measure, row, images)
            report = Cache(options.out).report(f"{name}, {images}", asked, measure)
            means = [f"{torch.tensor(report[figure]).mean():.3f}" for figure in FIGURES]
            table.add_row(name, str(images), f"{report['seconds']:.1f}", *means)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
