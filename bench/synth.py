"""Photo to file, stage by stage, with a synthesizer that is loaded already.

    python bench/synth.py --photos 50 --batch 1 16

Each row is the median over calls of milliseconds per subject.  `write` makes a diffusers file on
the disk of the temporary folder, flushed.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lorasynth import Synthesizer
from lorasynth.pictures import AvatarSubjects, to_image
from lorasynth.synthesizer import Stages

STAGES = ("read", "embed", "sample", "decode", "write")


def draw_photos(folder: Path, count: int, size: int) -> list[Path]:
    subjects = AvatarSubjects(split="test", count=count, pictures=1, size=size, series="bench")
    paths = []
    for name in subjects.ids:
        paths.append(folder / f"{len(paths)}.png")
        to_image(subjects.load(name).pictures[0]).save(paths[-1])
    return paths


def timed(synthesizer: Synthesizer, photos: list[Path], folder: Path) -> dict[str, float]:
    stages = Stages()
    adapters = synthesizer.many([[photo] for photo in photos], stages=stages)
    with stages.stage("write"):
        for index, adapter in enumerate(adapters):
            adapter.save(folder / f"{index}.safetensors")
    return {name: 1000 * stages.seconds[name] / len(photos) for name in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthesizer", type=Path, default=Path("bundle/synthesizer"))
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args()
    synthesizer = Synthesizer.from_pretrained(options.synthesizer)
    table = Table("subjects at once", *STAGES, "all", "slowest call")
    table.title = f"{torch.get_num_threads()} threads, {synthesizer.layout.size} numbers, ms each"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = draw_photos(folder, options.photos, synthesizer.encoder.picture_size)
        for batch in options.batch:
            parts = [photos[i : i + batch] for i in range(0, len(photos), batch)]
            calls = [timed(synthesizer, part, folder) for part in parts[:1] + parts][1:]
            medians = [statistics.median(call[stage] for call in calls) for stage in STAGES]
            totals = [sum(call.values()) for call in calls]
            cells = (*medians, statistics.median(totals), max(totals))
            table.add_row(str(batch), *(f"{cell:.1f}" for cell in cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
