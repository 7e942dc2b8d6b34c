"""What a base model makes of captions, as one image: a row per caption, a column per sample."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.avatars import captions
from lorasynth.avatars.drawing import sample_identity, sample_scene
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.core.figures import save_figure
from lorasynth.core.randomness import numpy_stream, stream_seed


def captions_shown(seed: int) -> list[str]:
    """Eight captions: nothing, three scenes, two people in one scene, one person in two moods."""
    rng = numpy_stream(seed, "grid")
    identity, scene = sample_identity(rng, "test"), sample_scene(rng)
    shown = [captions.join([])]
    shown += [captions.prompt(sample_scene(rng)) for _ in range(3)]
    shown += [captions.described(sample_identity(rng, "test"), scene) for _ in range(2)]
    moods = (replace(scene, mouth=mouth) for mouth in ("smile", "sad"))
    return shown + [captions.described(identity, mood) for mood in moods]


def caption_grid(
    base: BaseModel, columns: int, seed: int, sampling: SamplingConfig | None = None
) -> tuple[list[str], UInt8[Tensor, "rows columns h w 3"]]:
    """Captions, each with several samples; a column has the same noise in every row."""
    prompts = captions_shown(seed)
    repeated = [prompt for prompt in prompts for _ in range(columns)]
    seeds = [stream_seed(seed, "grid", column) for column in range(columns)] * len(prompts)
    images = base.sample(repeated, seeds, config=sampling)
    return prompts, images.unflatten(0, (len(prompts), columns))


def draw_caption_grid(
    prompts: Sequence[str], images: UInt8[Tensor, "rows columns h w 3"], path: Path
) -> None:
    """Write the grid as a PNG, each row under its caption."""
    rows, columns = images.shape[:2]
    figure = Figure(figsize=(1.1 * columns, 1.45 * rows), dpi=100)
    for axis, prompt, row in zip(
        figure.subplots(rows, 1, squeeze=False)[:, 0], prompts, images, strict=True
    ):
        axis.imshow(np.concatenate(list(row.numpy()), axis=1))
        title = "\n".join(textwrap.wrap(prompt, 17 * columns))
        axis.set_title(title, fontsize=8, loc="left", pad=3)
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    save_figure(figure, path)
