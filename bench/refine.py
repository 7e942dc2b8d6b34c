"""What refining from one photo does to identity and to prompts, and what keeps the background out.

    python bench/refine.py --subjects 24

Each validation subject has one photo, whose caption says nothing but "a portrait of sks", and the
adapter that the shipped synthesizer makes of it.  A row says what is done to photo, caption and
loss before the recipe `refine` trains that adapter on.  Figures are those of `lorasynth evaluate`,
and the shares of what prompts ask for one by one.  Reports are kept: the same command resumes.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from lorasynth.adapter import Factors, map_factors, scaled, stack, unstack
from lorasynth.avatars.attributes import found
from lorasynth.avatars.bundle import Bundle
from lorasynth.avatars.captions import nearest_word
from lorasynth.avatars.pool import LABELS
from lorasynth.avatars.vocabulary import CLOTHES, COLOURS, EYES, MOUTHS
from lorasynth.core.cache import Cache
from lorasynth.core.randomness import stream_seed
from lorasynth.engine import PRESETS, train_fleet
from lorasynth.evaluation import BenchmarkConfig
from lorasynth.evaluation.bootstrap import bootstrap, in_words
from lorasynth.evaluation.contenders import sampled, stacked
from lorasynth.evaluation.metrics import Made, Metric
from lorasynth.images import PORTRAIT, Subject
from lorasynth.optimise import Watching, captioned, refine
from lorasynth.optimise.refining import VARIES
from lorasynth.studies.study import as_json

PROMPTED = ("mouth", "eyes", "clothes", "clothes_colour", "background")
FIGURES = (
    *("identity_similarity", "identity_similarity_second", "attribute_accuracy"),
    *("prompt_following", *PROMPTED, "diversity", *(f"kept_{name}" for name in PROMPTED)),
)


class Apart(Metric):
    """The share of images that show what was asked, for each thing that prompts ask for."""

    def __init__(self, judge: Any) -> None:
        self.judge = judge

    @property
    def identity(self) -> Any:
        return "apart"

    def __call__(self, made: Made) -> Mapping[str, float]:
        agrees = found(self.judge.labels(made.images), made.case.facts["asked"]).float().mean(0)
        return {name: float(agrees[list(LABELS).index(name)]) for name in PROMPTED}


def border(photo: Tensor) -> tuple[tuple[int, int, int], Tensor] | None:
    """Colour of a plain background, and where it is; None where the border has no one colour."""
    side = len(photo)
    ring = torch.cat([photo[0], photo[: side // 2, 0], photo[: side // 2, -1]]).float()
    colour = ring.median(dim=0).values
    if ((ring - colour).abs().amax(dim=1) < 24).float().mean() < 0.9:
        return None
    image = Image.fromarray(photo.numpy()).convert("RGB")
    other = tuple(255 - int(c) for c in colour)
    for x in (0, side - 1):
        ImageDraw.floodfill(image, (x, 0), other, thresh=60)
    filled = (torch.from_numpy(np.array(image)) == torch.tensor(other)).all(-1)
    return tuple(map(int, colour)), filled  # type: ignore[return-value]


Change = Callable[[Subject], Subject]


def plain(one: Subject) -> Subject:
    return replace(one, captions=[PORTRAIT] * len(one.photos))


def named(one: Subject) -> Subject:
    """The background's colour in the caption."""
    said = []
    for photo, caption in zip(one.photos, one.captions, strict=True):
        plain = border(photo)
        word = plain and nearest_word(plain[0], COLOURS)
        said.append(f"{caption}, {word} background" if word else caption)
    return replace(one, captions=said)


def more(one: Subject, photos: list[Tensor], captions: list[str] | None = None) -> Subject:
    """A subject with further photos."""
    said = captions or [one.captions[i % len(one.captions)] for i in range(len(photos))]
    return replace(one, photos=torch.stack([*one.photos, *photos]), captions=[*one.captions, *said])


def flipped(one: Subject) -> Subject:
    return more(one, [photo.flip(1) for photo in one.photos])


def cropped(one: Subject, share: float = 0.85) -> Subject:
    """Four corners of each photo, enlarged."""
    photo = one.photos[0]
    side = len(photo)
    inner, parts = round(share * side), []
    for x, y in ((0, 0), (side - inner, 0), (0, side - inner), (side - inner, side - inner)):
        part = photo[y : y + inner, x : x + inner].permute(2, 0, 1)[None].float()
        large = functional.interpolate(part, (side, side), mode="bilinear", antialias=True)
        parts.append(large[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8))
    return more(one, parts)


def coloured(one: Subject) -> Subject:
    """A little brighter, darker, paler and more colourful."""
    photo = Image.fromarray(one.photos[0].numpy())
    changed = [ImageEnhance.Brightness(photo).enhance(f) for f in (0.9, 1.1)]
    changed += [ImageEnhance.Color(photo).enhance(f) for f in (0.85, 1.15)]
    return more(one, [torch.from_numpy(np.array(image)) for image in changed])


def repainted(one: Subject) -> Subject:
    """A plain background in each other basic colour, with captions that say which."""
    where, photo = border(one.photos[0]), one.photos[0]
    if where is None:
        return one
    own, photos, said = nearest_word(where[0], COLOURS), [], []
    for word, code in COLOURS.items():
        if word != own:
            painted, colour = photo.clone(), bytes.fromhex(code[1:])
            painted[where[1]] = torch.tensor(list(colour), dtype=torch.uint8)
            photos.append(painted)
            said.append(f"{PORTRAIT}, {word} background")
    return more(named(one), photos, said)


def without_background(photo: Tensor) -> Tensor:
    """Weights of pixels: 0 where a plain background is."""
    where = border(photo)
    return torch.ones(photo.shape[:2]) if where is None else (~where[1]).float()


def middle(photo: Tensor) -> Tensor:
    """Weights of pixels: 1 in the middle, 0 outside a circle of 0.7 of the side."""
    line = torch.linspace(-1, 1, len(photo))
    return ((line[:, None] ** 2 + line**2).sqrt() < 0.7).float()


def head(photo: Tensor) -> Tensor:
    """Weights of pixels: 0 in the lowest quarter, where clothes are, and in the background."""
    weights = without_background(photo)
    weights[3 * len(photo) // 4 :] = 0
    return weights


#: What the base model's domain has words for.
DOMAIN: Sequence[Sequence[str]] = (
    tuple(f"{colour} background" for colour in COLOURS),
    tuple(f"{colour} {kind}" for colour in COLOURS for kind in CLOTHES.values()),
    tuple(MOUTHS.values()),
    tuple(EYES.values()),
)
#: Name -> what is done to photos and captions, and the weights of pixels in the loss.
ROWS: dict[str, tuple[Change | None, Callable[[Tensor], Tensor] | None]] = {
    "not refined": (None, None),
    "as it was": (plain, None),
    "background named": (lambda one: named(plain(one)), None),
    "all said": (lambda one: one, None),
    "background out of the loss": (plain, without_background),
    "named, and out of the loss": (lambda one: named(plain(one)), without_background),
    "repainted": (lambda one: repainted(plain(one)), None),
    "the middle alone in the loss": (plain, middle),
    "background and clothes out of the loss": (plain, head),
}

#: Rows whose captions the base model completes, with what.
CHOICES = {
    "guessed": VARIES,
    "guessed, domain's words": DOMAIN,
    "guessed, none dropped": VARIES,
    "guessed, a twentieth dropped": VARIES,
    "guessed, none dropped, best kept": VARIES,
    "ten photos, guessed, none dropped": VARIES,
}
ROWS |= dict.fromkeys(CHOICES, (plain, None))
ROWS |= {
    "as it was, best kept": (plain, None),
    "ten photos, as it was": (plain, None),
    "ten photos, all said": (lambda one: one, None),
    "all said, a twentieth dropped": (lambda one: one, None),
    "all said, none dropped": (lambda one: one, None),
    "as it was, none dropped": (plain, None),
    "all said, flipped": (flipped, None),
    "all said, cropped": (cropped, None),
    "all said, coloured": (coloured, None),
    "all said, background out of the loss": (lambda one: one, without_background),
}


def masked(weights: Tensor) -> Callable[..., Tensor]:
    """`denoising_losses` with weights of latent pixels for each image."""

    def losses(base: Any, encoded: Any, draw: Any) -> Tensor:
        latents, texts = encoded.pick(draw.images, draw.dropped)
        noise, times = draw.noise.flatten(0, 1), draw.times.flatten()
        noisy, target = base.add_noise(latents, noise, times)
        weight = weights[(draw.images + encoded.first[:, None]).flatten()][:, None]
        error = (base.denoise(noisy, times, texts) - target).square() * weight
        return error.reshape(len(draw.images), -1).mean(1) / weight.reshape(
            len(draw.images), -1
        ).mean(1).clamp(min=1e-3)

    return losses


class Bench:
    """Validation subjects with their first adapters."""

    def __init__(self, bundle: Bundle, config: BenchmarkConfig) -> None:
        self.bundle, self.run = bundle, bundle.benchmark(config)
        self.run.metrics = [*self.run.metrics, Apart(bundle.judge)]
        synthesizer = bundle.synthesizer
        self.start = scaled(sampled(synthesizer)(self.run.cases), synthesizer.strength)

    def measure(self, name: str) -> dict[str, Any]:
        """One row's adapters, measured."""
        cases, base = self.run.cases, self.bundle.base
        change, weigh = ROWS[name]
        begun, factors = time.process_time(), self.start
        if change is not None:
            recipe, words = PRESETS["refine"], CHOICES.get(name)
            if "none dropped" in name:
                recipe = replace(recipe, caption_dropout=0.0)
            if "a twentieth dropped" in name:
                recipe = replace(recipe, caption_dropout=0.05)
            people = [change(case.reference) for case in cases]
            if name.startswith("ten photos"):
                people = [change(self.run.subjects.load(case.id)) for case in cases]
            if words is not None:
                firsts = [stack([one]) for one in unstack(self.start)]
                pairs = zip(people, firsts, strict=True)
                people = [captioned(base, one, first, words) for one, first in pairs]
            train = partial(train_fleet, base, recipe, people, init=self.start)
            if name.endswith("best kept"):
                firsts = unstack(self.start)
                encoder = self.bundle.synthesizer.encoder
                made = [
                    refine(base, recipe, one, stack([first]), Watching(encoder))
                    for one, first in zip(people, firsts, strict=True)
                ]
                print([(one.step, round(one.after - one.before, 3)) for one in made])
                factors = stack([unstack(one.factors)[0] for one in made])
            elif weigh is None:
                factors = train().factors
            else:
                pixels = torch.stack([weigh(photo) for one in people for photo in one.photos])
                weights = functional.adaptive_avg_pool2d(pixels[:, None], base.latent_shape[1:])
                with patch("lorasynth.engine.loop.denoising_losses", masked(weights[:, 0])):
                    factors = train().factors
        seconds = (time.process_time() - begun) / len(cases)
        factors = map_factors(lambda part: part.float(), factors)
        contender = stacked(name, factors, [case.id for case in cases])
        return {"seconds": seconds, **as_json(self.run.measure(contender)), **self.kept(factors)}

    def kept(self, factors: Factors) -> dict[str, list[float]]:
        """How often images of the bare prompt have what the photo happens to have."""
        cases, judge, n = self.run.cases, self.bundle.judge, 8
        seeds = [stream_seed(0, "bare", i) for i in range(n * len(cases))]
        images = self.bundle.base.sample(
            [PORTRAIT] * len(seeds), seeds, factors, self.run.config.sampling
        )
        made = judge.labels(images).reshape(len(cases), n, -1)
        photo = judge.labels(torch.stack([case.reference.images[0] for case in cases]))
        same = found(made, photo[:, None].expand_as(made)).float().mean(dim=1)
        return {f"kept_{name}": same[:, list(LABELS).index(name)].tolist() for name in PROMPTED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/refine"))
    parser.add_argument("--bundle", type=Path, default=Path("bundle"))
    parser.add_argument("--subjects", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.open(options.bundle)
    config = BenchmarkConfig(
        subjects=options.subjects, split="validation", images=8, sampling_steps=4
    )
    bench, first = Bench(bundle, config), None
    table = Table("photo", "seconds", *FIGURES)
    for name in options.rows:
        asked = {"row": name, "subjects": config, **bench.run.identity}
        report = Cache(options.out).report(name, asked, partial(bench.measure, name))
        first = first or report
        cells = []
        for figure in FIGURES:
            mine = torch.tensor(report[figure])
            change = vars(bootstrap(mine - torch.tensor(first[figure])))
            cells.append(f"{mine.mean():.3f}\n{in_words(change)}")
        table.add_row(name, f"{report['seconds']:.1f}", *cells)
        print(name, *(f"{f} {torch.tensor(report[f]).mean():.3f}" for f in FIGURES), flush=True)
    Console(width=250).print(table)


if __name__ == "__main__":
    main()
