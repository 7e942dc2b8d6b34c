"""Commands that are killed, or meet a disk that is full or read-only, or few open files.

Each command runs in a forked child, so that it starts at once.  What there is afterwards must be
whole: all of an output or none of it; and the command, run again, ends with the bytes of one that
nobody disturbed, and leaves no temporary files.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tqdm import tqdm

from command_line import call
from lorasynth.library import Library

from .all_commands import every_command, files_of
from .conftest import World

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and fills small disks"),
]
KILLS = 30
# diffusers' bars have a lock that forked processes share: one that is killed would keep it.
tqdm.set_lock(threading.RLock())
#: Which of the commands, by their first words.
NAMES = (
    *("collect", "import loras", "fit pca", "fit scaled", "train", "pretrain", "synth", "convert"),
    *("merge", "extract", "resize", "edit"),
    *("refine", "optimise blend", "images", "evaluate", "encoders join"),
)


def words_of(name: str, world: World, root: Path, home: Path) -> list[object]:
    """The last command with that name; of `synth`, that on a folder of subjects."""
    found = [
        words
        for words in every_command(world, root, home)
        if " ".join(map(str, words)).startswith(name)
    ]
    return found[1] if name == "synth" else found[-1]


def start(words: list[object], before: Callable[[], None] | None = None) -> int:
    """Run a command in a child; returns its process."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        sys.stdout = sys.stderr = os.fdopen(quiet, "w")  # those of pytest are files, too
        try:
            if before is not None:
                before()
            os._exit(call(words))
        except BaseException:
            os._exit(99)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def require_whole(root: Path, whole: dict[str, bytes]) -> None:
    """Every output is there as it should be, or not at all."""
    for place in root.iterdir() if root.is_dir() else ():
        if place.name.startswith(".tmp-") or place.name == "work":
            continue
        if place.is_dir() and all(one.name[0] == "." for one in place.iterdir()):
            continue  # a library that is about to be made has its lock already
        if Library.is_at(place):
            library = Library.open(place)
            assert library.check().damages == ()
            assert len(set(library.ids)) == len(library)
            continue
        name = place.relative_to(root).as_posix()
        mine = {k: v for k, v in files_of(root).items() if k == name or k.startswith(f"{name}/")}
        mine = {k: v for k, v in mine.items() if "/.tmp-" not in k}
        several = name in ("all", "table", "sheets") or name.endswith(".failures.json")
        expected = {k for k in whole if k == name or k.startswith(f"{name}/")}
        assert several or mine.keys() == expected
        assert all(whole.get(k) == v for k, v in mine.items())


def undisturbed(words: list[object], root: Path) -> tuple[dict[str, bytes], float]:
    began = time.monotonic()
    assert status_of(start(words)) == 0, words
    took = time.monotonic() - began
    made = files_of(root)
    shutil.rmtree(root)
    return made, took


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Mount a disk at a folder that has room for little more than names."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        (folder / "filler").write_bytes(bytes(15 << 10))
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_kill_9_at_random_moments(world: World, home: Path, tmp_path: Path, name: str) -> None:
    root, chance = tmp_path / "out", random.Random(name)
    words = words_of(name, world, root, home)
    whole, took = undisturbed(words, root)
    killed = 0
    while killed < KILLS:
        child = start(words)
        time.sleep(chance.uniform(0.0, took))
        os.kill(child, signal.SIGKILL)
        ended = status_of(child)
        killed += ended == -signal.SIGKILL
        require_whole(root, whole)
        if ended == 0 or (chance.random() < 0.3 and name != "collect"):
            shutil.rmtree(root, ignore_errors=True)
    assert status_of(start(words)) == 0
    made = {name: data for name, data in files_of(root).items() if "/.lock" not in name}
    assert [k for k in made if ".tmp-" in k] == []
    assert [k for k in whole if "/.lock" not in k and whole[k] != made.get(k)] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", ["disk", "read-only", "files", "full disk"])
def test_what_the_system_refuses_is_one_line_and_leaves_nothing_half(
    world: World, home: Path, tmp_path: Path, name: str, limit: str
) -> None:
    root = tmp_path / "out"
    words = words_of(name, world, root, home)
    whole, _ = undisturbed(words, root)
    if limit == "full disk":
        with full_disk(tmp_path / "disk"):
            root = tmp_path / "disk/out"
            assert status_of(start(words_of(name, world, root, home))) == 2
            require_whole(root, whole)
            assert [path for path in files_of(root) if ".tmp-" in path] == []
        return

    def before() -> None:
        if limit == "disk":  # no file may grow
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256))
        elif limit == "files":
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        else:
            root.parent.mkdir(parents=True, exist_ok=True)
            os.access = lambda _, mode: mode != os.W_OK  # root may write anywhere

    status = status_of(start(words, before))
    assert status in ((0, 2) if limit == "files" else (2,)), status
    require_whole(root, whole)
    if status == 0:  # what is whole is not replaced
        shutil.rmtree(root)
    assert status_of(start(words)) == 0
    require_whole(root, whole)


@pytest.mark.parametrize("name", NAMES)
def test_sigterm_ends_as_ctrl_c_does(world: World, home: Path, tmp_path: Path, name: str) -> None:
    root = tmp_path / "out"
    words = words_of(name, world, root, home)
    whole, took = undisturbed(words, root)
    statuses = set()
    for share in (0.3, 0.5, 0.7):
        child = start(words)
        time.sleep(share * took)
        os.kill(child, signal.SIGTERM)
        statuses.add(status_of(child))
        require_whole(root, whole)
        shutil.rmtree(root, ignore_errors=True)
    assert statuses <= {130, 0, -signal.SIGTERM}
    assert 130 in statuses


@pytest.mark.parametrize("change", ["annotate", "forget", "embed"])
def test_kill_9_while_a_library_is_changed(home: Path, tmp_path: Path, change: str) -> None:
    root, chance = tmp_path / "library", random.Random(change)
    words: list[object] = ["library", change, root]
    words += {
        "annotate": [home / "facts.csv"],
        "forget": ["ann"],
        "embed": ["--encoder", home / "encoder", "--images", home / "subjects"],
    }[change]
    shutil.copytree(home / "library", root)
    whole, took = undisturbed(words, root)
    for _ in range(KILLS):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(home / "library", root)
        child = start(words)
        time.sleep(chance.uniform(0.0, took))
        os.kill(child, signal.SIGKILL)
        status_of(child)
        library = Library.open(root)
        assert library.check().damages == ()
        assert set(library.ids) in ({"ann", "ben", "cyd"}, {"ben", "cyd"})
        assert status_of(start(words)) in ((0, 2) if change == "forget" else (0,))
        assert {name for name in files_of(root) if ".tmp-" in name} == set()
        made = files_of(root)
        assert [k for k in whole if k != ".lock" and whole[k] != made.get(k)] == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_does_not_follow_the_clock(
    world: World, home: Path, tmp_path: Path, name: str
) -> None:
    root = tmp_path / "out"
    words = words_of(name, world, root, home)
    whole, _ = undisturbed(words, root)
    moments = iter((1.0, 4e9))

    def before() -> None:
        turned = next(moments)
        time.time = lambda: turned - time.monotonic()  # runs backwards
        for path in home.rglob("*"):
            os.utime(path, (turned, turned))

    for _ in range(2):
        assert status_of(start(words, before)) == 0
        made = files_of(root)
        assert [k for k in whole if whole[k] != made.get(k)] == []
        shutil.rmtree(root)
