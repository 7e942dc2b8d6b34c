"""Subjects in Parquet files."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorasynth.core.errors import ImageError
from lorasynth.images.parquet import ParquetSubjects

from .test_tars import image


def test_a_subjects_rows_may_be_in_several_groups_and_files(tmp_path: Path) -> None:
    first = {
        "id": [7, 7, 9],
        "image": [image(70), image(71), image(90)],
        "caption": ["sks, sad", None, ""],
        "split": ["validation", None, None],
    }
    pq.write_table(pa.table(first), tmp_path / "a.parquet", row_group_size=1)
    pq.write_table(pa.table({"image": [image(72)], "id": ["7"]}), tmp_path / "b.parquet")
    source = ParquetSubjects(tmp_path, default_caption="sks")
    assert source.ids == ["7", "9"]
    assert source.splits == {"7": "validation"}
    seven = source.load("7")
    assert seven.images[:, 0, 0, 0].tolist() == [70, 71, 72]
    assert seven.captions == ["sks, sad", "sks", "sks"]
    assert source.load("9").captions == ["sks"]


def test_images_may_be_structs_as_on_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    images = [{"bytes": image(5), "path": "5.png"}]
    pq.write_table(pa.table({"id": ["ann"], "image": images}), path)
    assert ParquetSubjects(path).load("ann").images[0, 0, 0, 0] == 5


def test_a_bad_image_spoils_only_its_subject(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = {"id": ["ann", "ben", "cyd"], "image": [b"no", None, image(3)]}
    pq.write_table(pa.table(table), path)
    source = ParquetSubjects(path)
    with pytest.raises(ImageError, match=r"whole image file.*row 0 of row group 0"):
        source.load("ann")
    with pytest.raises(ImageError, match=r"row 1 of row group 0 of .* holds NoneType"):
        source.load("ben")
    assert source.load("cyd").images.shape == (1, 12, 12, 3)


def test_what_is_no_table_of_subjects_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no")
    pq.write_table(pa.table({"id": ["ann"], "photo": [b""]}), tmp_path / "other.parquet")
    for name, message in (
        ("text", "is not one"),
        ("none", "is not one"),
        ("other", "has id, photo: rename them"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            _ = ParquetSubjects(tmp_path / f"{name}.parquet").ids
        assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"id": ["ann"], "image": [image(1)]}), tmp_path / "a.parquet")
    with pytest.raises(ImageError, match="'ben' is not: check the name"):
        ParquetSubjects(tmp_path / "a.parquet").load("ben")


@pytest.mark.parametrize(
    "columns",
    [
        {"id": [{"a": 1}], "image": [b"x"]},
        {"id": [[1]], "image": [b"x"]},
        {"id": [1.5], "image": [b"x"]},
        {"id": [b"\xff"], "image": [b"x"]},
        {"id": [None], "image": [b"x"], "caption": [None]},
    ],
    ids=["struct", "list", "float", "bytes", "null"],
)
def test_an_id_is_a_text_or_a_number(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ImageError, match="column id must be of texts or whole numbers"):
        _ = ParquetSubjects(tmp_path).ids


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("image", [1]), ("image", [None]), ("image", [{"url": "x"}]), ("image", ["text"]),
        ("image", [[1, 2]]), ("caption", [[1]]), ("caption", [7]), ("caption", [{"en": "x"}]),
        ("caption", ["x" * 100_000]),
    ],
)  # fmt: skip
def test_an_odd_row_spoils_only_its_subject(
    tmp_path: Path, column: str, values: list[object]
) -> None:
    odd = {"id": ["bob"], "image": [image(1)], "caption": ["x"], column: values}
    pq.write_table(pa.table(odd), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["ann"], "image": [image(2)]}), tmp_path / "b.parquet")
    source = ParquetSubjects(tmp_path)
    assert source.ids == ["bob", "ann"]
    with pytest.raises(ImageError) as caught:
        source.load("bob")
    assert "\n" not in str(caught.value)
    assert len(source.load("ann").images) == 1


def test_a_row_without_an_id_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = {"id": ["ann", None], "image": [image(1), image(2)]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert ParquetSubjects(tmp_path).ids == ["ann"]
    assert "1 image of 1 subject; passed over: 1 rows without an id" in capsys.readouterr().err


def test_a_text_that_is_no_utf_8_and_two_columns_of_a_name_are_one_line(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, data])
    for columns in ([broken, pa.array([b"x"])], [pa.array(["a"])] * 2):
        names = ["id", "image"] if columns[0] is broken else ["id", "id"]
        pq.write_table(pa.table(columns, names), tmp_path / "a.parquet")
        with pytest.raises(ImageError) as caught:
            _ = ParquetSubjects(tmp_path).ids
        assert "\n" not in str(caught.value)


def test_one_image_a_million_times_does_not_fill_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorasynth.images.parquet._MAX_GROUP", 1 << 20)
    table = pa.table({"id": ["ann"] * 4000, "image": [bytes(50_000)] * 4000})
    pq.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    with pytest.raises(ImageError, match="row group may have 1 MB"):
        ParquetSubjects(tmp_path).load("ann")


def test_a_device_is_no_parquet_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(ImageError, match="it is no file"):
        _ = ParquetSubjects(tmp_path / "pipe.parquet").ids
