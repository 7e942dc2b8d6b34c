"""weights2weights' published files, in small, become a library."""

import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch
from test_torch_files import saved
from torch import Tensor

from bounds import cheap
from lorasynth.adapter import canonicalise, choose_reference
from lorasynth.core.errors import FileFormatError, LayoutError, LibraryError
from lorasynth.library import Library
from lorasynth.library.w2w import PANDAS, import_w2w, published_layout
from w2w_files import PUBLISHED_ROWS, dimensions_of, imitate_w2w, reserve

ROWS, SHRINK = 40, 64
#: Published offsets of A and B of the first module of each attention (`attn1.to_q`), in order.
W2W_OFFSETS = [
    *[(0, 320), (3008, 3328), (6016, 6656), (11264, 11904), (16512, 17792), (26240, 27520)],
    *[(35968, 37248), (45696, 46976), (55424, 56704), (65152, 66432), (74880, 75520)],
    *[(80128, 80768), (85376, 86016), (90624, 90944), (93632, 93952), (96640, 96960)],
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("w2w") / "files"
    imitate_w2w(folder, ROWS, SHRINK)
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    """Files as they lie on the hub, to be changed."""
    for name, place in {
        "all_weights.pt": "weights_datasets/identities",
        "weight_dimensions.pt": "files",
        "adapter_config.json": "files",
        "identity_df.csv": "files",
    }.items():
        (tmp_path / "hub" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / place / name).write_bytes((made / name).read_bytes())
    return tmp_path / "hub"


def weights_of(files: Path) -> Path:
    return files / "weights_datasets/identities/all_weights.pt"


def matrix(files: Path) -> Tensor:
    found: Tensor = torch.load(weights_of(files), weights_only=True)
    return found


def test_the_published_layout() -> None:
    layout = published_layout()
    assert (layout.size, len(layout.slots)) == (99_648, 64)
    assert list(layout.offsets.values())[::4] == W2W_OFFSETS
    last = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v"
    assert layout.modules[-1] == last
    assert layout.offsets[last] == (98560, 99328)
    assert published_layout(64).size * 64 == 99_648


def test_a_hub_id_is_fetched(files: Path, tmp_path: Path, monkeypatch) -> None:
    """What is asked for is all that is needed, and nothing else."""
    asked = []

    def fetched(repo_id: str, *, allow_patterns: list[str], **_options: object) -> str:
        asked.append(repo_id)
        for path in files.rglob("*"):
            name = path.relative_to(files).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                copy = tmp_path / "cache" / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        return str(tmp_path / "cache")

    (files / "files/pictures.zip").write_bytes(b"large")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    report = import_w2w("hub:Snapchat/weights2weights", tmp_path / "lib")
    assert asked == ["Snapchat/weights2weights"]
    assert len(report.imported) == ROWS


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorasynth.library.w2w.AT_ONCE", 20)


def test_the_files_become_a_library(files: Path, tmp_path: Path) -> None:
    report = import_w2w(str(files), tmp_path / "lib")
    library = Library.open(tmp_path / "lib")
    assert library.ids == report.imported
    assert library.layout == published_layout(SHRINK)
    assert library.check().damages == ()
    assert library.info.recipe == {"source": "weights2weights", "scale": 27.0, "rows": ROWS}

    raw = library.layout.unflatten(matrix(files))
    kept = library.factors(range(ROWS))
    for module, (a, b) in raw.items():
        assert torch.equal(kept[module].A, a)
        assert torch.equal(kept[module].B, 27 * b), "alpha is folded in"
    expected = canonicalise(kept, "procrustes", choose_reference(kept, "procrustes"))
    torch.testing.assert_close(library.all_vectors(), library.layout.flatten(expected))


def test_rows_are_joined_in_the_alphanumeric_order_of_folders(files: Path, tmp_path: Path) -> None:
    import_w2w(str(files), tmp_path / "lib")
    table = Library.open(tmp_path / "lib").table
    stated = csv.read_csv(files / "files/identity_df.csv").to_pylist()
    by_name = {str(row["file"]): row for row in stated}
    assert table["id"].to_pylist() == sorted(by_name), "10 comes before 2"
    assert table["id"].to_pylist() != [str(row["file"]) for row in stated]
    assert table["row"].to_pylist() == list(range(ROWS))
    for row in table.to_pylist():
        assert {key: row[key] for key in by_name[row["id"]]} == by_name[row["id"]]


def test_a_person_is_in_one_split(files: Path, tmp_path: Path) -> None:
    import_w2w(str(files), tmp_path / "lib")
    rows = Library.open(tmp_path / "lib").table.to_pylist()
    splits: dict[str, set[str]] = {}
    for row in rows:
        assert row["person"] == f"identity {row['identity']}"
        splits.setdefault(row["person"], set()).add(row["split"])
    assert len(splits) < ROWS
    assert all(len(found) == 1 for found in splits.values())
    assert {"train"} < set.union(*splits.values())


def test_people_are_told_by_embeddings_where_the_table_does_not(
    files: Path, tmp_path: Path
) -> None:
    people = np.random.default_rng(0).normal(size=(10, 64)).repeat(4, axis=0)
    np.save(tmp_path / "embeddings.npy", people)
    embeddings = tmp_path / "embeddings.npy"
    import_w2w(str(files), tmp_path / "lib", person="celebrity", embeddings=embeddings)
    table = Library.open(tmp_path / "lib").table
    ids, found = table["id"].to_pylist(), table["person"].to_pylist()
    assert found == [f"like {ids[row // 4 * 4]}" for row in range(ROWS)]
    np.save(embeddings, people[1:])
    with pytest.raises(LibraryError, match="one embedding for each of the 40 adapters"):
        import_w2w(str(files), tmp_path / "other", person="celebrity", embeddings=embeddings)


def test_without_a_table_rows_have_numbers_and_no_split(files: Path, tmp_path: Path) -> None:
    (files / "files/identity_df.csv").unlink()
    import_w2w(str(files), tmp_path / "lib")
    table = Library.open(tmp_path / "lib").table
    assert table.column_names == ["id", "row"]
    assert table["id"].to_pylist()[:2] == ["row-000000", "row-000001"]


def test_a_parquet_table_as_pandas_writes_it(files: Path, tmp_path: Path) -> None:
    path = files / "files/identity_df.csv"
    table = csv.read_csv(path)
    index = table["file"].cast("string")
    pq.write_table(table.append_column("__index_level_0__", index), path.with_suffix(".parquet"))
    path.unlink()
    import_w2w(str(files), tmp_path / "lib")
    names = Library.open(tmp_path / "lib").table.column_names
    assert names == ["id", "file", "identity", "Male", "Young", "row", "person", "split"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_the_size(files: Path, tmp_path: Path, dtype: Any) -> None:
    import_w2w(str(files), tmp_path / "lib", dtype=dtype)
    library = Library.open(tmp_path / "lib")
    import_w2w(str(files), tmp_path / "full")
    full = Library.open(tmp_path / "full").all_vectors()
    torch.testing.assert_close(library.all_vectors(), full, rtol=0.03, atol=0.01)
    factor = library.factors([3])["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert factor.A.dtype == getattr(torch, dtype)


def test_importing_again_goes_on_where_it_was_killed(
    files: Path, tmp_path: Path, monkeypatch
) -> None:
    import_w2w(str(files), tmp_path / "whole")
    append, calls = Library.append, 0

    def killed(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        append(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Library, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            import_w2w(str(files), tmp_path / "parts")
    assert len(Library.open(tmp_path / "parts")) == 20
    assert len(import_w2w(str(files), tmp_path / "parts").imported) == ROWS - 20
    whole, parts = Library.open(tmp_path / "whole"), Library.open(tmp_path / "parts")
    assert torch.equal(whole.all_vectors(), parts.all_vectors())
    assert whole.table == parts.table
    assert import_w2w(str(files), tmp_path / "parts").imported == []


def test_rows_that_are_not_finite_are_skipped_and_listed(files: Path, tmp_path: Path) -> None:
    weights = matrix(files)
    weights[5, 100], weights[39, 0] = torch.inf, torch.nan
    torch.save(weights, weights_of(files))
    report = import_w2w(str(files), tmp_path / "lib")
    expected = {"row 5": "it has NaN or infinity", "row 39": "it has NaN or infinity"}
    assert report.skipped == expected
    library = Library.open(tmp_path / "lib")
    assert len(library) == ROWS - 2
    assert set(range(ROWS)) - set(library.table["row"].to_pylist()) == {5, 39}
    assert json.loads((tmp_path / "lib/skipped.json").read_text()) == expected
    assert import_w2w(str(files), tmp_path / "lib").imported == []


def test_rows_that_cannot_be_stored_are_skipped_and_listed(files: Path, tmp_path: Path) -> None:
    weights = matrix(files)
    weights[7, 100] = 1e5
    torch.save(weights, weights_of(files))
    report = import_w2w(str(files), tmp_path / "lib", dtype="float16")
    assert report.skipped == {"row 7": "it does not fit float16"}
    assert len(report.imported) == ROWS - 1


def test_what_was_skipped_is_still_listed_after_a_kill(
    files: Path, tmp_path: Path, monkeypatch
) -> None:
    weights = matrix(files)
    weights[5, 100] = torch.inf
    torch.save(weights, weights_of(files))
    append = Library.append

    def killed_after(*arguments: Any) -> None:
        append(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Library, "append", killed_after)
        with pytest.raises(KeyboardInterrupt):
            import_w2w(str(files), tmp_path / "lib")
    report = import_w2w(str(files), tmp_path / "lib")
    assert report.skipped == {"row 5": "it has NaN or infinity"}


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["all_weights.pt", "weight_dimensions.pt"])
@pytest.mark.parametrize("form", ["torch", "pickle", "zip"])
def test_a_pickle_is_refused_and_not_run(files: Path, tmp_path: Path, name: str, form: str) -> None:
    [path] = files.rglob(name)
    evil = Evil(tmp_path / "harm")
    if form == "torch":
        torch.save({"weights": matrix(files), "extra": evil}, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(evil, protocol=2))
            archive.writestr("archive/version", "3")
    with pytest.raises(FileFormatError, match=r"tensors alone, .*nothing in it was run") as caught:
        import_w2w(str(files), tmp_path / "lib")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "lib").exists()


def test_a_pickled_table_is_not_read_but_its_owner_is_told_how(files: Path, tmp_path: Path) -> None:
    (files / "files/identity_df.csv").unlink()
    (files / "files/identity_df.pt").write_bytes(pickle.dumps(Evil(tmp_path / "harm")))
    with pytest.raises(LibraryError, match="never loaded here") as caught:
        import_w2w(str(files), tmp_path / "lib")
    assert PANDAS in str(caught.value)
    assert not (tmp_path / "harm").exists()


def wrong_width(files: Path) -> None:
    torch.save(matrix(files)[:, 1:].clone(), weights_of(files))


def one_dimension(files: Path) -> None:
    torch.save(torch.zeros(7), weights_of(files))


def no_weights(files: Path) -> None:
    weights_of(files).unlink()


def two_weights(files: Path) -> None:
    weights_of(files).parent.rename(files / "people")
    (files / "dogs").mkdir()
    (files / "dogs/all_weights.pt").write_bytes(b"")


def other_table(files: Path) -> None:
    (files / "files/identity_df.csv").write_text("file,Male\n1,0\n")


def twice(files: Path) -> None:
    path = files / "files/identity_df.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[1]]))


def other_key(files: Path) -> None:
    torch.save({"bias": ((3,), torch.Size([3, 1]))}, files / "files/weight_dimensions.pt")


def half_a_module(files: Path) -> None:
    shapes = torch.load(files / "files/weight_dimensions.pt", weights_only=True)
    torch.save(dict([*shapes.items()][:-1]), files / "files/weight_dimensions.pt")


def no_alpha(files: Path) -> None:
    (files / "files/adapter_config.json").write_text('{"r": 1}')


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (wrong_width, LayoutError, "must have the 1557 numbers .*, but have 1556"),
        (
            one_dimension,
            FileFormatError,
            r"one dense matrix of floating-point numbers, but holds \(7,\)",
        ),
        (no_weights, LibraryError, "must have all_weights.pt, but nothing below"),
        (two_weights, LibraryError, "must have one all_weights.pt, but"),
        (other_table, LibraryError, "a row for each of the 40 adapters, but has 1 rows"),
        (twice, LibraryError, "each folder once"),
        (other_key, FileFormatError, "keys of LoRA factors .* but has 'bias'"),
        (half_a_module, FileFormatError, "A and B of each module"),
        (no_alpha, FileFormatError, "must state lora_alpha and r"),
    ],
)
def test_wrong_files(files: Path, tmp_path: Path, damage, kind, message: str) -> None:
    damage(files)
    with pytest.raises(kind, match=message) as caught:
        import_w2w(str(files), tmp_path / "lib")
    assert "\n" not in str(caught.value)


_A_FEW_ROWS = """
import resource, sys
from lorasynth.library.w2w import W2WFiles

resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, resource.RLIM_INFINITY))
files = W2WFiles.find(sys.argv[1])
factors = files.factors(64_000, 64_002)
print(files.shape, len(factors), {float(x.abs().max()) for pair in factors.values() for x in pair})
"""


def test_a_file_larger_than_memory(files: Path) -> None:
    """All 26 GB are a hole; a process that may take 1 GB reads rows of it."""
    torch.save(dimensions_of(published_layout()), files / "files/weight_dimensions.pt")
    reserve(weights_of(files), PUBLISHED_ROWS, published_layout().size)
    run = subprocess.run(
        [sys.executable, "-c", _A_FEW_ROWS, str(files)], check=False, capture_output=True, text=True
    )
    assert run.stdout == "(64974, 99648) 64 {0.0}\n", run.stderr


def test_keys_as_weights2weights_spells_them(files: Path, tmp_path: Path) -> None:
    path = files / "files/weight_dimensions.pt"
    shapes = torch.load(path, weights_only=True)
    torch.save(
        {k.replace("base_model.model.", "lora_unet_").replace(".lora_", "_lora_"): v
         for k, v in shapes.items()},
        path,
    )  # fmt: skip
    import_w2w(str(files), tmp_path / "lib")
    assert Library.open(tmp_path / "lib").layout == published_layout(SHRINK)


def test_another_library_is_not_gone_on_with(files: Path, fill, tmp_path: Path) -> None:
    fill(tmp_path / "lib", 2)
    with pytest.raises(LibraryError, match="goes on in the library that it began"):
        import_w2w(str(files), tmp_path / "lib")
    with pytest.raises(LibraryError, match="must be a folder or hub:owner/name"):
        import_w2w("hub:no/such-repository", tmp_path / "other")


def test_the_docs_show_the_same_conversion() -> None:
    docs = Path(__file__).parents[2] / "docs/libraries.md"
    assert PANDAS in docs.read_text()


def pickled(value: bytes) -> bytes:
    return b"\x80\x02}X" + struct.pack("<I", 3) + b"key" + value + b"s."


def laughs() -> bytes:
    """Lists in lists that share their parts: written out they have 2**28."""
    lists = b"(]q\x00K\x01a"
    for level in range(28):
        lists += b"]q" + bytes([level + 1]) + b"(h" + bytes([level]) + b"h" + bytes([level]) + b"e"
    return lists + b"t"


def number(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


ODD_SHAPES = {
    "laughs": laughs(),
    "infinite": b"(" + number(float("inf")) + b"t" + number(float("inf")) + b"K\x01\x86\x86",
    "not a number": b"(" + number(float("nan")) + b"t" + number(1.0) + b"K\x01\x86\x86",
    "negative": b"(K\x04t" + 2 * (b"J" + struct.pack("<i", -2)) + b"\x86\x86",
}


@pytest.mark.parametrize("name", ODD_SHAPES)
def test_shapes_that_are_none_are_refused_in_no_time(
    files: Path, tmp_path: Path, name: str
) -> None:
    saved(files / "files/weight_dimensions.pt", pickled(ODD_SHAPES[name]))
    with cheap(3), pytest.raises(FileFormatError) as caught:
        import_w2w(str(files), tmp_path / "lib")
    assert len(str(caught.value)) < 1000
