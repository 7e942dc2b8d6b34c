"""Long work as named stages: each makes one folder or file, and one that exists is skipped.

A stage makes its output under its own name only when it is whole, so a killed run goes on with the
stage that was cut off, and deleting an output makes that stage again.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorasynth.core.atomic import make_parent, write_json
from lorasynth.core.config import changes, read_json
from lorasynth.core.errors import ConfigError
from lorasynth.core.progress import console


class StagedRun:
    """The stages of one run.

    Args:
        run: folder of the run; outputs are below `run/out`, and what they took beside it.
        makers: what makes each stage's output at the path that it is given, in an order in which
            they can be made.
        choices: JSON values that decide the outputs; they are kept in the run, which goes on with
            no others.
        own: by stage, JSON values that decide its output alone; what was made with others is made
            again.
    """

    def __init__(
        self,
        run: Path,
        makers: Mapping[str, Callable[[Path], None]],
        choices: Mapping[str, Any],
        own: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.run = run
        self.makers = makers
        self.choices = dict(choices)
        self.own = dict(own or {})

    def path(self, name: str) -> Path:
        """Where a stage's output is, or will be."""
        return self.run / "out" / name

    def missing(self) -> list[str]:
        """The stages that are still to be run."""
        return [name for name in self.makers if not self._is_made(name)]

    def _is_made(self, name: str) -> bool:
        """Whether a stage's output exists, and with its present choices."""
        if name not in self.own:
            return self.path(name).exists()
        kept = self._own_file(name)
        same = kept.is_file() and read_json(kept) == self.own[name]
        return same and self.path(name).exists()

    def _own_file(self, name: str) -> Path:
        return self.run / f"choices-{name}.json"

    def make(self, name: str) -> None:
        """Run one stage unless its output exists.

        Raises:
            ConfigError: there is no such stage, or the run was begun with other choices.
            LorasynthError: the stage cannot be run.
        """
        if name not in self.makers:
            raise ConfigError(f"a stage must be one of {', '.join(self.makers)}, but is {name!r}")
        self.require_same_choices()
        if self._is_made(name):
            return
        if not self._choices_file.is_file():
            write_json(self._choices_file, self.choices)
        make_parent(self.path(name))
        start = time.monotonic()
        console.print(f"stage {name}")
        self.makers[name](self.path(name))
        if name in self.own:
            write_json(self._own_file(name), self.own[name])
        self.note(name, time.monotonic() - start)

    @property
    def _choices_file(self) -> Path:
        """What decides the outputs, kept beside them from the first stage on."""
        return self.run / "choices.json"

    def require_same_choices(self) -> None:
        """Refuse a run that was begun otherwise.

        Raises:
            ConfigError: the run was begun with other choices.
        """
        path = self._choices_file
        if path.is_file() and (others := changes(read_json(path), self.choices)):
            raise ConfigError(
                f"a run must go on with the choices in {path}, but {'; '.join(others)}: give "
                "those, choose another folder, or delete that file to keep what is made"
            )

    def make_all(self) -> None:
        """Run every stage whose output is missing."""
        for name in self.makers:
            self.make(name)

    def say(self) -> None:
        """Print which stages are made."""
        missing = self.missing()
        for name in self.makers:
            print(f"{name:<16}{'to do' if name in missing else 'done'}")

    def note(self, name: str, seconds: float) -> None:
        """Write down what something took."""
        write_json(self.run / f"seconds-{name}.json", {"seconds": round(seconds, 2)})

    def seconds(self) -> dict[str, float]:
        """What the last run of each stage took, and whatever else was noted."""
        return {
            path.stem.removeprefix("seconds-"): read_json(path)["seconds"]
            for path in sorted(self.run.glob("seconds-*.json"))
        }
