"""What workers of a cluster need in tests, and a collection over one; run by its test.

Usage: cluster_parts.py ADDRESS BASE SUBJECTS LIBRARY.  An error is one line, and status 2.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from colours import Colours

from lorasynth.base import BaseModel
from lorasynth.collect import CollectConfig, Verdict, Worker, collect
from lorasynth.collect.cluster import connected
from lorasynth.core.errors import LorasynthError
from lorasynth.engine import PriorPreservation, Recipe
from lorasynth.images import FolderSubjects

RECIPE = Recipe(
    steps=3,
    rank=2,
    targets=("to_q", "to_v"),
    images_per_step=2,
    trained="both",
    prior=PriorPreservation(prompt="a portrait", images=2, steps=1),
)


@dataclass(frozen=True)
class DeadlyGate:
    """Lets all pass; where it first sees the victim, its process dies with a trained fleet."""

    victim: str
    marker: Path
    seconds: float

    def __call__(self, _factors, subjects):
        time.sleep(self.seconds)
        if self.victim in [subject.id for subject in subjects] and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Verdict(passed=torch.ones(len(subjects), dtype=torch.bool))


@dataclass(frozen=True)
class Loads:
    """Loads the tiny base model, and a gate that may kill."""

    base: Path
    marker: Path
    victim: str = "nobody"
    seconds: float = 0.0

    def load_worker(self):
        torch.set_num_threads(1)
        gate = DeadlyGate(self.victim, self.marker, self.seconds)
        base = BaseModel.load(self.base, dtype=torch.float64)
        return Worker(base=base, gate=gate, encoder=Colours())


def main() -> None:
    address, base, subjects, library = sys.argv[1], *map(Path, sys.argv[2:])
    loads = Loads(base, library / "nothing", seconds=1.0)
    source = FolderSubjects(subjects)
    try:
        with connected(address, loads) as cluster:
            one = CollectConfig(fleet=1)
            collect(loads.load_worker(), source, library, RECIPE, one, cluster)
    except LorasynthError as error:
        print(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
