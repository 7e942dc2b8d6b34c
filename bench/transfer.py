"""Adapters on a sibling checkpoint, and likeness against strength from 0 to 1.5.

    python bench/transfer.py --subjects 24 --json transfer.json

A sibling of the base model is made first: all of its weights are trained on 512 drawn subjects in
another style, with outlines, as checkpoints of one family are.  Adapters that were made for the
base model are then used with both; likeness is that to the subject's real images, drawn in the
style of the model.  Subjects are of the validation split.
"""

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from lorasynth.avatars import captions
from lorasynth.avatars.bundle import Bundle
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.core.atomic import write_json
from lorasynth.core.cache import Cache
from lorasynth.core.randomness import numpy_stream
from lorasynth.engine import OptimizerConfig
from lorasynth.evaluation import Benchmark, BenchmarkConfig, Contender, contenders_of
from lorasynth.images import Subject
from lorasynth.images.png import contact_sheet
from lorasynth.optimise.full import Weights, fine_tune, weights_of

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def outlined(images: Tensor) -> Tensor:
    """The other style: dark lines wherever colours change."""
    unit = images.permute(0, 3, 1, 2).float() / 255
    around = functional.max_pool2d(unit, 3, 1, 1) + functional.max_pool2d(-unit, 3, 1, 1)
    drawn = unit * (1 - around.amax(dim=1, keepdim=True).clamp(max=0.45))
    return (drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def sibling(bundle: Bundle, subjects: int, steps: int) -> Weights:
    """The base model's weights after training on drawings in the other style."""
    source = AvatarSubjects(split="train", count=subjects, images=1, seed=0, series="sibling")
    drawn, said = [], []
    for name in source.ids:
        [scene] = source.scenes(name)
        drawn.append(source.draw(name))
        who, what = captions.identity_phrases(source.identity(name)), captions.scene_phrases(scene)
        said.append(captions.training_caption(who, what, numpy_stream(0, name, "captions")))
    style = Subject(id="style", photos=outlined(torch.cat(drawn)), captions=said)
    config = OptimizerConfig(
        average=0.0, steps=steps, images_per_step=32, learning_rate=2e-4, schedule="cosine"
    )
    return fine_tune(bundle.base, style, config)


FIGURES = (
    *("identity_similarity", "identity_similarity_second"),
    *("attribute_accuracy", "prompt_following"),
)


def figures(run: Benchmark, contender: Contender, sheet: list[Tensor]) -> dict[str, Any]:
    """What a method's images are worth; its first ones join the sheet."""
    images = run.images(contender, range(len(run.cases))).unflatten(0, (len(run.cases), -1))
    sheet.append(images[:8, 0])
    return run.score(images).intervals(*FIGURES)


def in_style(bundle: Bundle, run: Benchmark) -> Benchmark:
    """The same subjects, whose judging images are drawn in the other style."""
    other = bundle.benchmark(run.config)
    other.cases = [
        replace(case, judging=replace(case.judging, photos=outlined(case.judging.images), seen={}))
        for case in run.cases
    ]
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("bundle"))
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--drawn", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cache", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--image", type=Path)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    config = BenchmarkConfig(subjects=options.subjects, split="validation")
    run, cache = bundle.benchmark(config), Cache(options.cache)
    contenders = contenders_of(bundle.parts, run.subjects, cache, ["trained", "synthesised"])
    weights = sibling(bundle, options.drawn, options.steps)
    styled, rows = in_style(bundle, run), []
    sheet = [torch.stack([case.judging.images[0] for case in run.cases[:8]])]
    for model, trial, context in (
        ("base", run, nullcontext()),
        ("sibling", styled, weights_of(bundle.base, weights)),
    ):
        with context:
            for one in contenders:
                strengths = STRENGTHS if model == "base" else (1.0,)
                for strength in strengths:
                    found = figures(trial, replace(one, strength=strength), sheet)
                    facts = {"adapters": one.name, "strength": strength}
                    rows.append({"model": model, **facts, **found})
            alone = figures(trial, Contender(name="base"), sheet)
            rows.append({"model": model, "adapters": "none", **alone})
        real = trial.real().intervals(*FIGURES[:2])
        rows.append({"model": model, "adapters": "real images", **real})
    table = Table("model", "adapters", "strength", "identity", "second", "attributes", "prompts")
    for row in rows:
        cells = [f"{row[name]['mean']:.3f}" if name in row else "" for name in FIGURES]
        table.add_row(row["model"], row["adapters"], str(row.get("strength", "")), *cells)
    Console().print(table)
    if options.json:
        write_json(options.json, {"subjects": options.subjects, "rows": rows})
    if options.image:
        whole = contact_sheet(torch.cat(sheet), min(8, options.subjects))
        Image.fromarray(np.asarray(whole)).save(options.image)


if __name__ == "__main__":
    main()
