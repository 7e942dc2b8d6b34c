"""Does it pay to sample several adapters of one photo and to keep the one whose images are likest?

    python bench/best_of.py --subjects 48

Validation subjects of a bundle.  Of each photo the synthesizer draws n adapters at a temperature,
makes four images in four steps with each, and keeps the adapter whose images the condition encoder
finds likest to the photo.  What judges is the benchmark's: both encoders, to other images of the
subject, and attributes; the second encoder and the judge of attributes choose nothing.
Differences are to the adapter without noise, with 95 % intervals over subjects; seconds are CPU's.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorasynth.adapter import scaled
from lorasynth.avatars.bundle import Bundle
from lorasynth.base import SamplingConfig
from lorasynth.condition.similarity import likeness
from lorasynth.evaluation import BenchmarkConfig
from lorasynth.evaluation.bootstrap import bootstrap, in_words
from lorasynth.evaluation.contenders import conditions_of, stacked

_IMAGES, _PROMPT = 4, "a portrait of sks"
_FIGURES = ("identity_similarity", "identity_similarity_second", "attribute_accuracy")


def main() -> None:
    """Measure all rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=48)
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--bundle", type=Path, default=Path("bundle"))
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle, torch.device("cpu"))
    whole, base = bundle.synthesizer, bundle.base
    run = bundle.benchmark(BenchmarkConfig(subjects=asked.subjects, split="validation"))
    ids, conditions = [case.id for case in run.cases], conditions_of(whole, run.cases)
    photos = torch.stack([case.reference.photos[0] for case in run.cases])
    wanted = bundle.first.embed(photos)[:, None]

    def draw(seed: int, temperature: float) -> Tensor:
        return whole.latents(conditions, ids, seed=seed, temperature=temperature)

    def found(latents: Tensor) -> Tensor:
        """Similarity to the photo of a few images of each adapter."""
        factors = scaled(whole.decode(latents), whole.strength)
        made = base.sample(
            [_PROMPT] * _IMAGES * len(ids),
            list(range(_IMAGES)) * len(ids),
            factors,
            SamplingConfig(steps=4),
        )
        return likeness(bundle.first.embed(made).unflatten(0, (len(ids), _IMAGES)), wanted)

    def measured(latents: Tensor) -> dict[str, Tensor]:
        factors = scaled(whole.decode(latents), whole.strength)
        return dict(run.measure(stacked("best", factors, ids)).figures)

    plain = measured(draw(0, 0.0))
    table = Table("temperature", "n", *_FIGURES, "s each", title=f"{asked.subjects} subjects")
    table.add_row("0", "1", *(in_words(asdict(bootstrap(plain[name]))) for name in _FIGURES), "")
    for temperature in asked.temperatures:
        best = scores = None
        spent, n = 0.0, 0
        while n < asked.most:
            begun = time.process_time()
            latents = draw(n, temperature)
            score = found(latents)
            spent += time.process_time() - begun
            if best is None or scores is None:
                best, scores = latents, score
            else:
                better = score > scores
                best = torch.where(better[:, None], latents, best)
                scores = torch.where(better, score, scores)
            n += 1
            if n & (n - 1) == 0:
                figures = measured(best)
                cells = (
                    f"{figures[name].mean():.3f}, "
                    f"{in_words(asdict(bootstrap(figures[name] - plain[name])))}"
                    for name in _FIGURES
                )
                table.add_row(f"{temperature:g}", str(n), *cells, f"{spent / len(ids):.2f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
