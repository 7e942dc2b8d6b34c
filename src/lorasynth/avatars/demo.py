"""The demo: everything at once, for subjects never trained on, as one page."""

import base64
import html
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lorasynth.avatars.bundle import Bundle
from lorasynth.core.atomic import write_text
from lorasynth.core.cache import Cache
from lorasynth.evaluation.config import BenchmarkConfig
from lorasynth.evaluation.contenders import contenders_of
from lorasynth.images import to_image
from lorasynth.synthesizer import Stages

#: Columns of the page: method, and what it is called.
COLUMNS = {
    "trained": "trained adapter",
    "synthesised": "synthesised adapter",
    "nearest": "nearest library adapter",
    "base": "base model",
}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the page shows.

    Attributes:
        conditions: the one image of each subject that was given.
        images: method -> the images made for each subject.
        similarity: method -> similarity to other, real images of each subject.
        seconds: what was timed -> seconds.
        prompts: of the images of each subject.
    """

    conditions: UInt8[Tensor, "n h w 3"]
    images: Mapping[str, UInt8[Tensor, "n k h w 3"]]
    similarity: Mapping[str, Float[Tensor, " n"]]
    seconds: Mapping[str, float]
    prompts: list[list[str]]


def run_demo(bundle: Bundle, config: BenchmarkConfig, out: Path) -> Demo:
    """Train, synthesise, look up and compare; writes the synthesised files into `out/loras`."""
    cache = Cache(out / "cache")
    run = bundle.benchmark(config)
    conditions = torch.cat([case.reference.images for case in run.cases])
    seconds = _synthesise_files(bundle, conditions, out / "loras")
    found = contenders_of(bundle.parts, run.subjects, cache, list(COLUMNS))
    images, similarity = {}, {}
    for contender in found:
        start = time.perf_counter()
        if contender.name == "trained" and contender.adapters:
            contender.adapters(run.cases)
            each = (time.perf_counter() - start) / len(run.cases)
            seconds["training, per adapter"] = each
        made = run.images(contender, range(len(run.cases))).unflatten(0, (len(run.cases), -1))
        images[contender.name] = made
        similarity[contender.name] = run.score(made)["identity_similarity"]
    return Demo(
        conditions=conditions,
        images=images,
        similarity=similarity,
        seconds=seconds,
        prompts=[list(case.prompts) for case in run.cases],
    )


def _synthesise_files(
    bundle: Bundle, conditions: UInt8[Tensor, "n h w 3"], folder: Path
) -> dict[str, float]:
    """One file per subject, as `lorasynth synth` makes it; the mean seconds of each stage."""
    stages = Stages()
    for number, image in enumerate(conditions, start=1):
        adapter = bundle.synthesizer(image, stages=stages)
        with stages.stage("write"):
            adapter.save(folder / f"subject-{number}.safetensors")
    each = {f"synthesis: {k}": v / len(conditions) for k, v in stages.seconds.items()}
    total = sum(stages.seconds.values()) / len(conditions)
    return {"synthesis, per adapter": total, **each}


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lorasynth: one image in, a LoRA out</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }}
table {{ border-collapse: collapse }} th, td {{ padding: .4rem .6rem; vertical-align: top;
       text-align: left }} tr + tr td {{ border-top: 1px solid #ddd }}
img {{ width: 72px; height: 72px; image-rendering: auto; margin: 0 2px 2px 0 }}
.number {{ font-variant-numeric: tabular-nums; white-space: nowrap }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818 }}
  tr + tr td {{ border-color: #444 }} }}
</style>
<h1>One image in, a LoRA out</h1>
<p>{subjects} avatars that no part of the system has seen, nor their combinations of hair, facial
hair and glasses. All methods make the same prompts from the same noise; hover over an image to
read its prompt. Similarity is the mean cosine between embeddings of the images and of other, real
images of the subject. The trained adapter learned from ten images, the synthesised one saw only
the first column.</p>
<table><tr><th>the one image</th>{heads}</tr>
{rows}</table>
<h2>Time</h2>
<table>{times}</table>
<p>The synthesised files are in <code>loras/</code>. Images of people need their consent.</p>
</html>
"""


def write_page(demo: Demo, path: Path) -> None:
    """Write the page; its images are inside it."""
    rows = []
    for row, condition in enumerate(demo.conditions):
        cells = [f"<td>{_image(condition, 'the condition')}</td>"]
        for name in COLUMNS:
            made = zip(demo.images[name][row], demo.prompts[row], strict=True)
            images = "".join(_image(image, prompt) for image, prompt in made)
            value = demo.similarity[name][row]
            cells.append(f'<td>{images}<br><span class="number">similarity {value:.2f}</span></td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    times = [
        f'<tr><td>{html.escape(what)}</td><td class="number">{_duration(seconds)}</td></tr>'
        for what, seconds in demo.seconds.items()
    ]
    heads = "".join(
        f"<th>{title}<br>mean similarity {demo.similarity[name].mean():.2f}</th>"
        for name, title in COLUMNS.items()
    )
    text = _PAGE.format(
        subjects=len(demo.conditions), heads=heads, rows="\n".join(rows), times="\n".join(times)
    )
    write_text(path, text)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _image(image: UInt8[Tensor, "h w 3"], text: str) -> str:
    data = io.BytesIO()
    to_image(image).resize((144, 144), Image.Resampling.LANCZOS).save(data, "png")
    said = html.escape(text, quote=True)
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<img src="data:image/png;base64,{encoded}" alt="{said}" title="{said}">'
