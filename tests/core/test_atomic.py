"""Old content or new, whole, whatever happens in between."""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorasynth.core import atomic
from lorasynth.core.errors import LorasynthError


def write_file(path: Path, text: str) -> None:
    with atomic.atomic_file(path) as temporary:
        temporary.write_text(text)


def write_folder(path: Path, text: str) -> None:
    with atomic.atomic_directory(path) as temporary:
        (temporary / "config.json").write_text(text)
        (temporary / "part").mkdir()
        (temporary / "part" / "weights").write_text(text)


def content(path: Path) -> dict[str, str]:
    """All files below a path, or its own text."""
    if path.is_file():
        return {"": path.read_text()}
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}


writers = pytest.mark.parametrize("write", [write_file, write_folder])
Write = Callable[[Path, str], None]


@writers
def test_the_new_content_replaces_all_of_the_old(tmp_path: Path, write: Write) -> None:
    target, fresh = tmp_path / "out", tmp_path / "fresh" / "deeper" / "out"
    if write is write_folder:
        target.mkdir()  # an empty folder may be replaced
    write(target, "old")
    write(target, "new")
    write(fresh, "new")
    assert content(target) == content(fresh) != {}
    assert sorted(tmp_path.iterdir()) == [fresh.parent.parent, target]


def fail(write: Write, path: Path, error: type[BaseException]) -> None:
    """Begin to write, then stop with an error."""
    if write is write_file:
        with atomic.atomic_file(path) as temporary:
            temporary.write_text("half")
            raise error
    with atomic.atomic_directory(path) as temporary:
        (temporary / "config.json").write_text("half")
        raise error


def test_who_reads_the_old_file_reads_it_to_the_end(tmp_path: Path) -> None:
    write_file(tmp_path / "out", "old")
    with (tmp_path / "out").open() as reader:
        write_file(tmp_path / "out", "new")
        assert reader.read() == "old"


@writers
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [True, False])
def test_an_error_in_the_middle_changes_nothing(
    tmp_path: Path, write: Write, error: type[BaseException], old: bool
) -> None:
    target = tmp_path / "out"
    if old:
        write(target, "old")
    before = content(tmp_path)
    with pytest.raises(error):
        fail(write, target, error)
    assert content(tmp_path) == before
    assert list(tmp_path.iterdir()) == [target] * old


def _dies_at_event(number: int, work: Callable[[], None]) -> bool:
    """Fork, and kill the child at its n-th open, rename, mkdir, ...; False if it got through."""
    child = os.fork()
    if child == 0:
        events = itertools.count(1)

        def hook(event: str, _: tuple[object, ...]) -> None:
            if event.startswith(("os.", "shutil.", "open", "ctypes.")) and next(events) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def half(folder: Path, name: str, pid: int | None = None) -> Path:
    """What a writer that was killed leaves."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    token = f"{atomic._MACHINE}{pid or dead.pid:06x}000"
    left = folder / f"{atomic.TEMPORARY_PREFIX}{token}-{name}"
    left.mkdir()
    (left / ".tmpOfSafetensors").write_text("half")
    return left


@writers
def test_what_killed_writers_left_is_deleted_by_the_next_in_their_place(
    tmp_path: Path, write: Write
) -> None:
    lefts = [half(tmp_path, "out[1]"), half(tmp_path, "other")]
    living = half(tmp_path, "out[1]", os.getppid())
    elsewhere = tmp_path / ".tmp-0123456789ab-out[1]"  # of another machine
    if atomic._MACHINE == "012":
        elsewhere = tmp_path / ".tmp-1023456789ab-out[1]"
    elsewhere.mkdir()
    write(tmp_path / "out[1]", "new")
    assert not any(left.exists() for left in lefts)
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere, tmp_path / "out[1]"])


def test_a_writer_that_makes_files_beside_its_own_leaves_none(tmp_path: Path) -> None:
    with atomic.atomic_file(tmp_path / "out") as temporary:
        temporary.with_name(".tmpOfSafetensors").write_text("half")
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, and folders swapped in one step")
@writers
def test_kill_9_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path, write: Write) -> None:
    target = tmp_path / "reference"
    write(target, "new")
    new = content(target)
    seen = []
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / "out", "old")
        killed = _dies_at_event(number, partial(write, folder / "out", "new"))
        others = [p for p in folder.iterdir() if p.name != "out"]
        assert all(p.name.startswith(atomic.TEMPORARY_PREFIX) for p in others)
        seen.append("new" if content(folder / "out") == new else "old")
        if seen[-1] == "old":
            assert all("new" not in text for text in content(folder / "out").values())
        if not killed:
            break
    assert seen[0] == "old"
    assert seen == sorted(seen, reverse=True)
    assert seen.count("old") > 3


def test_without_a_swap_in_one_step_folders_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda _: object())
    write_folder(tmp_path / "out", "old")
    write_folder(tmp_path / "out", "new")
    whole = {"out/config.json": "new", "out/part/weights": "new"}
    assert content(tmp_path) == whole

    rename = Path.rename

    def fails_when_installing(self: Path, target: Path) -> Path:
        if target.name == "out" and (self / "config.json").read_text() == "newer":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_when_installing)
    with pytest.raises(LorasynthError, match="could not write"):
        write_folder(tmp_path / "out", "newer")
    assert content(tmp_path) == whole


@pytest.mark.parametrize(
    ("mine", "named"),
    [
        (["photos/beach.jpg"], "photos/beach.jpg is in"),
        (["config.json", "thesis.txt"], "thesis.txt is in"),
        (["config.json", "part/weights", "part/notes"], "part/notes is in"),
        (["config.json", "part/old/weights", "part/new/weights"], "weights and 1 more is in"),
        (["config.json", ".git/HEAD"], ".git/HEAD is in"),
        (["config.json/weights"], "config.json/weights is in"),
    ],
)
def test_what_no_earlier_output_has_is_never_deleted(
    tmp_path: Path, mine: list[str], named: str
) -> None:
    for name in mine:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("precious")
    with pytest.raises(LorasynthError, match=f"{named} the way: choose another"):
        write_folder(tmp_path / "out", "new")
    assert content(tmp_path / "out") == dict.fromkeys(mine, "precious")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_file_or_an_empty_folder_or_a_link_is_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    (tmp_path / "out/drafts").mkdir(parents=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/photos").symlink_to(tmp_path / "out")
    for name in ("letter", "out", "linked"):
        with pytest.raises(LorasynthError, match="in the way"):
            write_folder(tmp_path / name, "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "drafts", "letter", "linked", "out", "photos",
    ]  # fmt: skip


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk/real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "disk/real")
    write_folder(tmp_path / "out", "new")
    assert (tmp_path / "out").is_symlink()
    assert content(tmp_path / "disk") == {"real/config.json": "new", "real/part/weights": "new"}


def test_what_an_earlier_output_may_also_hold_is_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "old")
    (tmp_path / "out/curve.png").write_text("old")
    with atomic.atomic_directory(tmp_path / "out", also=["curve.*"]) as temporary:
        for name in ("config.json", "part"):
            (temporary / name).write_text("new")
        (temporary / "part").unlink()
        (temporary / "part").mkdir()
        (temporary / "part/weights").write_text("new")
    assert content(tmp_path / "out") == {"config.json": "new", "part/weights": "new"}


@pytest.mark.parametrize(
    ("out", "run"), [("run", "run"), ("run/out", "run"), ("out", "out/run"), ("link/out", "run")]
)
def test_an_output_and_its_checkpoints_are_apart(tmp_path: Path, out: str, run: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(LorasynthError, match="must be apart"):
        atomic.make_parent(tmp_path / out, tmp_path / run)
    atomic.make_parent(tmp_path / "running", tmp_path / "run")


def test_leftovers_are_known_by_their_whole_name(tmp_path: Path) -> None:
    mine = [tmp_path / ".tmp-letter", tmp_path / ".tmp-0123456789ab", tmp_path / ".tmp-x-out"]
    for path in mine:
        path.write_text("dear")
    left = half(tmp_path, "out")
    atomic.remove_leftovers(tmp_path)
    assert not left.exists()
    assert all(path.exists() for path in mine)


@writers
@pytest.mark.parametrize("name", [".", "..", "/", "file/child", "file/child/grandchild"])
def test_no_place_to_write_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(LorasynthError, match="an output must") as caught:
        write(Path(name), "new")
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == {"file": "kept"}


@writers
def test_an_unwritable_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    # Not by chmod: the tests may run as a user whom no permission stops.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(LorasynthError, match=r"must be in a writable folder.*choose another") as e:
        write(tmp_path / "out", "new")
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow past 4 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _write_plain(path: Path) -> None:
    path.write_bytes(bytes(100_000))


def _write_tensors(path: Path) -> None:
    save_file({"x": torch.zeros(100_000)}, path)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("fill", [_write_plain, _write_tensors])
def test_a_full_disk_is_one_line(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    atomic.write_text(tmp_path / "out", "old")
    with (
        pytest.raises(LorasynthError, match="could not write"),
        atomic.atomic_file(tmp_path / "out") as temporary,
    ):
        fill(temporary)
    with (
        pytest.raises(LorasynthError, match="could not write"),
        atomic.atomic_directory(tmp_path / "folder") as temporary,
    ):
        fill(temporary / "x")
    assert content(tmp_path) == {"out": "old"}


def test_json_is_readable_by_people_and_machines(tmp_path: Path) -> None:
    value = {"name": "Zoë", "sizes": [1, 2], "none": None}
    atomic.write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Zoë" in text
    assert text.endswith("}\n")


def test_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic.atomic_file(tmp_path / "weights") as temporary:
        save_file({"x": torch.zeros(1)}, temporary)
    with atomic.atomic_directory(tmp_path / "folder") as folder:
        save_file({"x": torch.zeros(1)}, folder / "weights")
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "weights", "folder/weights")}
    assert len(modes) == 1


def test_any_text_is_the_name_of_one_file_here_and_none_else(tmp_path: Path) -> None:
    plain = ["ann", "Zo\u00eb van Dyk", "a.b", "avatar-test-0", "me (1)"]
    odd = ["../../escaped", "/etc/passwd", "a/b", "a%2Fb", "..", ".", "", ".hidden", "a\\b", "C:x",
           "a\x1b[2J", "a\n", "a\0b", "a.", "a ", "\udcff",
           "x" * 5000, "x" * 5001, "\u00eb" * 150]  # fmt: skip
    assert [atomic.as_file_name(name) for name in plain] == plain
    names = [atomic.as_file_name(name) for name in (*plain, *odd)]
    assert len(set(names)) == len(names)
    for name in names:
        (tmp_path / f"{name}.safetensors").write_text(name)
        (tmp_path / name).write_text(name)
        assert name.isprintable()
    assert len(list(tmp_path.iterdir())) == 2 * len(names)
