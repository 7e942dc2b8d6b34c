"""A million encoded images on disk: memory and time of a training step's reading.

    python bench/stored.py --rows 1000000

Rows are made up: latents of 16 x 8 x 8 in fp16 (2 kB) and embeddings of 512 numbers, of four images
a subject.  Prints the process's own memory (without the pages of mapped files, which the system
takes back) before and after, and the time that 64 subjects' images take.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorasynth.engine.stored import Ragged, StoredRows

_IN_FILE, _EACH, _BATCH = 8192, 4, 64


def own_memory() -> int:
    """Megabytes of this process that are no file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) >> 10


def main() -> None:
    """Make the files, read from them, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(-(-asked.rows // _IN_FILE)):
            rows = min(_IN_FILE, asked.rows - number * _IN_FILE)
            paths.append(Path(folder) / f"{number}.safetensors")
            latents = torch.randn(rows, 16, 8, 8, generator=generator).half()
            save_file({"latents": latents, "embeddings": torch.zeros(rows, 512)}, paths[-1])
        before = own_memory()
        counts = [_EACH] * (asked.rows // _EACH)
        latents, embeddings = (
            Ragged.of(StoredRows(paths, name), counts) for name in ("latents", "embeddings")
        )
        opened, begun = own_memory(), time.perf_counter()
        for _ in range(asked.steps):
            subjects = torch.randint(len(counts), (_BATCH,), generator=generator)
            for one in (latents, embeddings):
                one.rows[one.select(subjects).first]
        took = (time.perf_counter() - begun) / asked.steps
        print(
            f"{asked.rows} images: {before} MB before, {opened} MB opened, {own_memory()} MB after"
        )
        print(f"{1000 * took:.2f} ms for {_BATCH} subjects, over {asked.steps} steps")


if __name__ == "__main__":
    main()
