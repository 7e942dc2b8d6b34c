"""The demo: everything at once, for subjects never trained on, as one page."""

import base64
import html
import io
import time
from pathlib import Path

import torch
from jaxtyping import UInt8
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


def write_demo(bundle: Bundle, config: BenchmarkConfig, out: Path) -> Path:
    """Train, synthesise, look up and compare on one page; the synthesised files are in `loras`."""
    run, cache = bundle.benchmark(config), Cache(out / "cache")
    count, page = len(run.cases), out / "index.html"
    conditions = torch.cat([case.reference.images for case in run.cases])
    seconds = _synthesise_files(bundle, conditions, out / "loras")
    images, similarity = {}, {}
    for contender in contenders_of(bundle.parts, run.subjects, cache, list(COLUMNS)):
        start = time.perf_counter()
        if contender.name == "trained" and contender.adapters:
            contender.adapters(run.cases)
            seconds["training, per adapter"] = (time.perf_counter() - start) / count
        made = run.images(contender, range(count)).unflatten(0, (count, -1))
        images[contender.name] = made
        similarity[contender.name] = run.score(made)["identity_similarity"]
    rows = []
    for row, case in enumerate(run.cases):
        cells = [f"<td>{_image(conditions[row], 'the condition')}</td>"]
        for name in COLUMNS:
            pairs = zip(images[name][row], case.prompts, strict=True)
            drawn = "".join(_image(image, prompt) for image, prompt in pairs)
            value = similarity[name][row]
            cells.append(f'<td>{drawn}<br><span class="number">similarity {value:.2f}</span></td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    times = (
        f'<tr><td>{html.escape(what)}</td><td class="number">{_duration(taken)}</td></tr>'
        for what, taken in seconds.items()
    )
    heads = (
        f"<th>{title}<br>mean similarity {similarity[name].mean():.2f}</th>"
        for name, title in COLUMNS.items()
    )
    text = _PAGE.format(
        subjects=count, heads="".join(heads), rows="\n".join(rows), times="\n".join(times)
    )
    write_text(page, text)
    return page


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


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _image(image: UInt8[Tensor, "h w 3"], text: str) -> str:
    data = io.BytesIO()
    to_image(image).resize((144, 144), Image.Resampling.LANCZOS).save(data, "png")
    said = html.escape(text, quote=True)
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<img src="data:image/png;base64,{encoded}" alt="{said}" title="{said}">'
