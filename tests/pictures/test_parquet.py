"""Subjects in Parquet files."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lorasynth.errors import PictureError
from lorasynth.pictures import ParquetSubjects, to_image


def picture(brightness: int) -> bytes:
    file = io.BytesIO()
    to_image(torch.full((12, 12, 3), brightness, dtype=torch.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_subjects_rows_may_be_in_several_groups_and_files(tmp_path: Path) -> None:
    first = {
        "id": [7, 7, 9],
        "picture": [picture(70), picture(71), picture(90)],
        "caption": ["sks, sad", None, ""],
    }
    pq.write_table(pa.table(first), tmp_path / "a.parquet", row_group_size=1)
    pq.write_table(pa.table({"picture": [picture(72)], "id": ["7"]}), tmp_path / "b.parquet")
    source = ParquetSubjects(tmp_path, default_caption="sks")
    assert source.ids == ["7", "9"]
    seven = source.load("7")
    assert seven.pictures[:, 0, 0, 0].tolist() == [70, 71, 72]
    assert seven.captions == ["sks, sad", "sks", "sks"]
    assert source.load("9").captions == ["sks"]


def test_pictures_may_be_structs_as_on_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pictures = [{"bytes": picture(5), "path": "5.png"}]
    pq.write_table(pa.table({"id": ["ann"], "picture": pictures}), path)
    assert ParquetSubjects(path).load("ann").pictures[0, 0, 0, 0] == 5


def test_a_bad_picture_spoils_only_its_subject(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = {"id": ["ann", "ben", "cyd"], "picture": [b"no", None, picture(3)]}
    pq.write_table(pa.table(table), path)
    source = ParquetSubjects(path)
    with pytest.raises(PictureError, match=r"whole image file.*row 0 of row group 0"):
        source.load("ann")
    with pytest.raises(PictureError, match=r"row 1 of row group 0 of .* holds NoneType"):
        source.load("ben")
    assert source.load("cyd").pictures.shape == (1, 12, 12, 3)


def test_what_is_no_table_of_subjects_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no")
    pq.write_table(pa.table({"id": ["ann"], "image": [b""]}), tmp_path / "other.parquet")
    for name, message in (
        ("text", "is not one"),
        ("none", "is not one"),
        ("other", "has id, image: rename them"),
    ):
        with pytest.raises(PictureError, match=message) as caught:
            _ = ParquetSubjects(tmp_path / f"{name}.parquet").ids
        assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"id": ["ann"], "picture": [picture(1)]}), tmp_path / "a.parquet")
    with pytest.raises(PictureError, match="'ben' is not: check the name"):
        ParquetSubjects(tmp_path / "a.parquet").load("ben")
