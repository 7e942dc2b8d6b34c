"""Collects in child processes that are killed with SIGKILL and started again; run by its test.

Usage: killed.py BASE SUBJECTS LIBRARIES.  In LIBRARIES/n the first child dies before its n-th
rename, which is between any two states that a disk can be found in; the second at any moment; the
third comes to its end.  Stops at the n that the first child survives, and prints the number killed.
Children are forks, so that they start at once.
"""

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from collecting import collect

from lorasynth.base import BaseModel
from lorasynth.engine import Recipe
from lorasynth.images import FolderSubjects

RECIPE = Recipe(steps=3, rank=2, targets=("to_q", "to_v"), images_per_step=2)


def die_before_rename(number: int) -> None:
    renames = itertools.count(1)

    def guarded(original: Callable[..., None]) -> Callable[..., None]:
        def rename(*arguments: object, **options: object) -> None:
            if next(renames) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments, **options)

        return rename

    os.rename, os.replace = guarded(os.rename), guarded(os.replace)


def is_killed(
    base: BaseModel, subjects: Path, library: Path, *, rename: int = 0, seconds: float | None = None
) -> bool:
    """Collect in a child that dies before a rename, or after some seconds, or not."""
    child = os.fork()
    if child == 0:
        if rename:
            die_before_rename(rename)
        source = FolderSubjects(subjects)
        collect(base, source, library, RECIPE, fleet=2)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status not in (0, signal.SIGKILL):
        sys.exit(f"a child that should have been killed, or not, failed: {status}")
    return status != 0


def main() -> None:
    torch.set_num_threads(1)
    base, subjects = BaseModel.load(sys.argv[1], dtype=torch.float64), Path(sys.argv[2])
    moments = random.Random(0)
    killed = 0
    for number in itertools.count(1):
        library = Path(sys.argv[3]) / f"{number}"
        if not is_killed(base, subjects, library, rename=number):
            break
        killed += 1 + is_killed(base, subjects, library, seconds=moments.uniform(0.02, 0.2))
        is_killed(base, subjects, library)
    print(killed)


if __name__ == "__main__":
    main()
