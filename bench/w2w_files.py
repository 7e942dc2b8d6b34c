"""Files of exactly weights2weights' form with vectors whose components are known, of any size.

    python bench/w2w_files.py w2w --rows 1000 --shrink 8        # 64,974 rows at full width: 26 GB

Written block by block into the place that `torch.save` left for the numbers, so the full size
takes no memory.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lorasynth.adapter import Layout
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.randomness import torch_stream
from lorasynth.library.torch_files import SavedMatrix
from lorasynth.library.w2w import ALPHA, CONFIG, DIMENSIONS, TABLES, WEIGHTS, published_layout
from synthetic_vectors import SyntheticConfig, SyntheticVectors

#: Rows of the published file.
PUBLISHED_ROWS = 64_974

#: Adapters of one person, in the mean: 64,974 of 10,177.
_PER_PERSON = 6


def imitate_w2w(folder: Path, rows: int = PUBLISHED_ROWS, shrink: int = 1, seed: int = 0) -> Layout:
    """Write all_weights.pt, weight_dimensions.pt, adapter_config.json and identity_df.csv.

    Args:
        folder: where; an earlier one is replaced.
        rows: number of adapters.
        shrink: divides all widths: 1, 2, 4, ... 64.
        seed: of all numbers.

    Returns:
        The layout of the adapters.
    """
    layout = published_layout(shrink)
    config = SyntheticConfig(rows=rows, width=layout.size, seed=seed)
    with atomic_directory(folder) as temporary:
        _write_matrix(temporary / WEIGHTS, SyntheticVectors(config))
        torch.save(dimensions_of(layout), temporary / DIMENSIONS)
        write_json(temporary / CONFIG, {"peft_type": "LORA", "r": 1, "lora_alpha": ALPHA})
        csv.write_csv(_table(rows, seed), temporary / TABLES[1])
    return layout


def _write_matrix(path: Path, vectors: SyntheticVectors) -> None:
    """What `torch.save` writes of the matrix, which is never in memory."""
    reserved = reserve(path, len(vectors), vectors.config.width)
    with path.open("rb+") as file:
        file.seek(reserved.start)
        for block in vectors.blocks():
            block.numpy().tofile(file)


def reserve(path: Path, count: int, width: int) -> SavedMatrix:
    """A file of `torch.save` with a hole for the numbers of a matrix of float32."""
    with FakeTensorMode():
        matrix = torch.empty(count, width)
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(matrix, path)
    return SavedMatrix.find(path)


def dimensions_of(layout: Layout) -> dict[str, tuple[tuple[int], torch.Size]]:
    """Shapes by PEFT's key, as weights2weights keeps them."""
    shapes = {}
    for slot in layout.slots:
        for side, shape in (
            ("A", (slot.rank, slot.in_features)),
            ("B", (slot.out_features, slot.rank)),
        ):
            key = f"base_model.model.{slot.module}.lora_{side}.weight"
            shapes[key] = ((shape[0] * shape[1],), torch.Size(shape))
    return shapes


def _table(rows: int, seed: int) -> pa.Table:
    """Folders in the order of their numbers, which have gaps, with a person and labels for each."""
    stream = torch_stream(seed, "w2w", "table")
    numbers = torch.randperm(rows + rows // 100 + 1, generator=stream)[:rows].sort().values
    people = torch.randint(0, -(-rows // _PER_PERSON), (rows,), generator=stream)
    labels = torch.randint(0, 2, (2, rows), generator=stream)
    columns = {"file": numbers, "identity": people, "Male": labels[0], "Young": labels[1]}
    return pa.table({name: values.tolist() for name, values in columns.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=PUBLISHED_ROWS)
    parser.add_argument("--shrink", type=int, default=1, help="divides all widths: 1, 2, 4, ... 64")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    layout = imitate_w2w(options.folder, options.rows, options.shrink, options.seed)
    print(f"{options.folder}: {options.rows} adapters of {layout.size} numbers")


if __name__ == "__main__":
    main()
