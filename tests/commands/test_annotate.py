"""Facts that a user knows of a library's subjects."""

import shutil
from pathlib import Path

import pytest

from command_line import Run
from lorasynth.adapter import Adapter
from lorasynth.library import Library

from .conftest import World

CSV = "id,glasses,age,split\nann,round,31,train\nben,none,44,test\ncyd,none,27,train\n"


@pytest.fixture
def library(world: World, tmp_path: Path) -> Path:
    shutil.copytree(world.library, tmp_path / "library")
    return tmp_path / "library"


def annotated(run: Run, library: Path, text: str) -> str:
    table = library.parent / "people.csv"
    table.write_text(text)
    result = run("library", "annotate", library, table)
    assert result.status == 0, result.err
    return result.out


def test_attributes_of_ones_own_subjects_can_be_edited(
    world: World, library: Path, run: Run, tmp_path: Path
) -> None:
    assert "annotated with glasses, age, split" in annotated(run, library, CSV)
    table = Library.open(library).table
    assert table["glasses"].to_pylist() == ["round", "none", "none"]
    assert table["age"].to_pylist() == [31, 44, 27]
    assert Library.open(library).training().ids == ["ann", "cyd"]
    out = tmp_path / "edited.safetensors"
    where = ("--synthesizer", world.synthesizer, "--library", library)
    result = run("edit", world.lora, "-o", out, "--attribute", "glasses=-1", *where)
    assert result.status == 0, result.err
    before, after = (Adapter.load(path) for path in (world.lora, out))
    assert not before.to_vector().equal(after.to_vector())
    assert after.metadata.extra["edited"] == "glasses=-1"
    assert run("library", "check", library).status == 0


def test_a_column_is_replaced_and_others_stay(library: Path, run: Run) -> None:
    annotated(run, library, CSV)
    annotated(run, library, "id,age\nann,5\n")
    table = Library.open(library).table
    assert table["age"].to_pylist() == [5, None, None]
    assert table["glasses"].to_pylist() == ["round", "none", "none"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,age\nzoe,3\n", ("1 ids are not in", "'zoe'")),
        ("name,age\nann,3\n", ("one column id", "name, age")),
        ("id\nann\n", ("one column id",)),
        ("id,loss\nann,3\n", ("a column 'loss' already",)),
        ("id,age\nann,3\nann,4\n", ("an id of its own", "'ann' twice")),
        ("id,age\nann,3,4\n", ("not readable",)),
        ("", ("not readable",)),
    ],
)
def test_what_is_no_table_of_facts_is_refused(
    library: Path, run: Run, text: str, words: tuple[str, ...]
) -> None:
    table = library.parent / "people.csv"
    table.write_text(text)
    run("library", "annotate", library, table).is_one_error(*words)
    assert "age" not in Library.open(library).table.column_names


def test_what_is_forgotten_is_forgotten_here_too(library: Path, run: Run) -> None:
    annotated(run, library, CSV)
    assert run("library", "forget", library, "ann").status == 0
    table = Library.open(library).table
    assert table["id"].to_pylist() == ["ben", "cyd"]
    assert table["age"].to_pylist() == [44, 27]
    assert b"ann" not in (library / "annotations.parquet").read_bytes()
