"""Long work as named stages: each makes one folder or file, and one that exists is skipped.

A stage makes its output under its own name only when it is whole, so a killed run goes on with the
stage that was cut off, and deleting an output makes that stage again.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorasynth.atomic import make_parent, write_json
from lorasynth.config import read_json
from lorasynth.errors import ConfigError
from lorasynth.progress import console


class StagedRun:
    """The stages of one run.

    Args:
        run: folder of the run; outputs are below `run/out`, and what they took beside it.
        makers: what makes each stage's output at the path that it is given, in an order in which
            they can be made.
        choices: JSON values that decide the outputs, kept in the run, which goes on with no others;
            None: nothing is kept.
    """

    def __init__(
        self,
        run: Path,
        makers: Mapping[str, Callable[[Path], None]],
        choices: Mapping[str, Any] | None = None,
    ) -> None:
        self.run = run
        self.makers = makers
        self.choices = choices

    def path(self, name: str) -> Path:
        """Where a stage's output is, or will be."""
        return self.run / "out" / name

    def missing(self) -> list[str]:
        """The stages that are still to be run."""
        return [name for name in self.makers if not self.path(name).exists()]

    def make(self, name: str) -> None:
        """Run one stage unless its output exists.

        Raises:
            ConfigError: there is no such stage, or the run was begun with other choices.
            LorasynthError: the stage cannot be run.
        """
        if name not in self.makers:
            raise ConfigError(f"a stage must be one of {', '.join(self.makers)}, but is {name!r}")
        self._same_choices()
        if self.path(name).exists():
            return
        make_parent(self.path(name))
        start = time.monotonic()
        console.print(f"stage {name}")
        self.makers[name](self.path(name))
        self.note(name, time.monotonic() - start)

    def _same_choices(self) -> None:
        if self.choices is None:
            return
        path, mine = self.run / "choices.json", json.loads(json.dumps(self.choices))
        if not path.exists():
            write_json(path, mine)
        elif (kept := read_json(path)) != mine:
            names = sorted(n for n in kept | mine if kept.get(n) != mine.get(n))
            raise ConfigError(
                f"a run must go on with the choices that it began with, but {', '.join(names)} "
                f"differ from {path}: give another --run, or delete that file to keep what is made"
            )

    def make_all(self) -> None:
        """Run every stage whose output is missing."""
        for name in self.makers:
            self.make(name)

    def note(self, name: str, seconds: float) -> None:
        """Write down what something took."""
        write_json(self.run / f"seconds-{name}.json", {"seconds": round(seconds, 2)})

    def seconds(self) -> dict[str, float]:
        """What the last run of each stage took, and whatever else was noted."""
        return {
            path.stem.removeprefix("seconds-"): read_json(path)["seconds"]
            for path in sorted(self.run.glob("seconds-*.json"))
        }
