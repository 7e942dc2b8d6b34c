"""Settings of mixtures and inversions on validation subjects, from one picture and from ten.

    python bench/optimise.py --subjects 12
    python bench/optimise.py rows.json -o runs/mine --pictures 1

A row of the JSON file says how a `MixtureConfig` ("way": "mixture") or an `InversionConfig` ("way":
"inversion") differs from the default.  An inversion starts at the mean, or with "start":
"synthesised" from what the synthesizer says.  "codec" is the synthesizer's ("own"),
weights2weights' ("w2w": 1,000 components of standardised weights) or a VAE ("vae", with "vae" for
its options); the latter two are fitted to `--library`.  Reports are kept: the same command resumes.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorasynth.codec import Codec, fit_codec
from lorasynth.config import from_dict, read_json, to_dict
from lorasynth.experiments.bundle import Bundle
from lorasynth.experiments.reports import kept_report
from lorasynth.experiments.trial import Trial, TrialConfig
from lorasynth.library import Library
from lorasynth.optimise import (
    Coordinates,
    Inversion,
    InversionConfig,
    Mixture,
    MixtureConfig,
    personalise,
)
from lorasynth.pictures import Subject

FIGURES = ("likeness", "likeness_second", "attribute_accuracy", "prompt_following", "diversity")


class Bench:
    """Validation subjects, and the spaces that coordinates are of."""

    def __init__(self, bundle: Bundle, library: Path, config: TrialConfig) -> None:
        self.bundle = bundle
        self.library = library
        self.run = Trial(bundle.instruments, config)
        self._codecs: dict[str, tuple[Codec, Tensor]] = {}

    def codec(self, row: Mapping[str, Any]) -> tuple[Codec, Tensor]:
        """A codec, and the latents of the library's adapters."""
        name, options = row.get("codec", "own"), row.get("vae", {})
        if name == "own":
            return self.bundle.synthesizer.codec, self.bundle.library.latents
        key = f"{name} {options}"
        if key not in self._codecs:
            vectors = Library.open(self.library).all_vectors()
            if name == "w2w":
                wide = {"latents": min(1000, len(vectors) - 1), "scale": "parameter"}
                codec = fit_codec("pca", vectors, wide)
            else:
                codec = fit_codec("vae", vectors, options).cpu()
            self._codecs[key] = codec, codec.encode(vectors)
        return self._codecs[key]

    def subjects(self, pictures: int) -> list[Subject]:
        """Each with the one picture that is its condition, or with others."""
        if pictures == 1:
            one = replace(self.run.subjects, pictures=1)
            return [one.load(name, "condition") for name in one.ids]
        several = replace(self.run.subjects, pictures=pictures)
        return [several.load(name) for name in several.ids]

    def coordinates(self, row: Mapping[str, Any], people: list[Subject]) -> Coordinates:
        """What a row asks for."""
        codec, known = self.codec(row)
        synthesizer = self.bundle.synthesizer
        config = config_of(row)
        decode = lambda latents: synthesizer.layout.unflatten(codec.decode(latents))  # noqa: E731
        if isinstance(config, MixtureConfig):
            return Mixture(config, len(people), known, decode)
        if row.get("rate_in_weights"):
            rate = config.descent.learning_rate / float(getattr(codec, "unit")[0])  # noqa: B009
            config = replace(config, descent=replace(config.descent, learning_rate=rate))
        start = None
        if row.get("start") == "synthesised":
            conditions = synthesizer.conditions(people)
            start = synthesizer.latents(conditions, [one.id for one in people])
        return Inversion(config, len(people), known, decode, start)

    def measure(self, row: Mapping[str, Any], pictures: int) -> dict[str, Any]:
        """One row's adapters, measured."""
        people = self.subjects(pictures)
        coordinates = self.coordinates(row, people)
        begun = time.perf_counter()
        made = personalise(self.bundle.base, people, coordinates).factors
        seconds = (time.perf_counter() - begun) / len(people)
        measured = self.run.measure(self.run.pictures(made))
        return {"seconds": seconds, **{name: getattr(measured, name).tolist() for name in FIGURES}}


def config_of(row: Mapping[str, Any]) -> MixtureConfig | InversionConfig:
    """The defaults, but for what a row says."""
    kind = {"mixture": MixtureConfig, "inversion": InversionConfig}[row["way"]]
    said = {name: row[name] for name in row if name in to_dict(kind())}
    descent = {**to_dict(kind().descent), **said.pop("descent", {})}
    return from_dict(kind, {**to_dict(kind()), **said, "descent": descent})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    rows = Path(__file__).with_suffix(".json")
    parser.add_argument("rows", type=Path, nargs="?", default=rows)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/optimise"))
    parser.add_argument("--bundle", type=Path, default=Path("bundle"))
    parser.add_argument("--library", type=Path, default=Path("runs/out/library"))
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 10])
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    config = TrialConfig(subjects=options.subjects, split="validation")
    bench = Bench(bundle, options.library, config)
    table = Table("setting", "pictures", "seconds", *FIGURES)
    for name, row in read_json(options.rows).items():
        for pictures in options.pictures:
            asked = {
                "row": {**row, **to_dict(config_of(row))},
                "pictures": pictures,
                "trial": to_dict(config),
                "parts": [*bundle.instruments.fingerprints, bundle.synthesizer.fingerprint],
            }
            path = options.out / f"{name}, {pictures}.json"
            report = kept_report(
                path, asked, f"{name}, {pictures}", lambda r=row, p=pictures: bench.measure(r, p)
            )
            means = [f"{torch.tensor(report[figure]).mean():.3f}" for figure in FIGURES]
            table.add_row(name, str(pictures), f"{report['seconds']:.1f}", *means)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
