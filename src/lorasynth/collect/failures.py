"""The subjects that gave no adapter, and why: a JSON file beside the library."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorasynth.core.atomic import write_json
from lorasynth.core.config import read_json


class Failures:
    """Subject id -> reason and metrics, written at each change.

    Args:
        library: path of the library; the file is `<library>.failures.json` beside it.
    """

    def __init__(self, library: Path) -> None:
        self.path = library.with_name(f"{library.name}.failures.json")
        self._found: dict[str, Any] = read_json(self.path) if self.path.exists() else {}

    def forget(self) -> None:
        """Begin anew: those of an earlier library at this path are not this one's."""
        self._found = {}
        self.path.unlink(missing_ok=True)

    @property
    def ids(self) -> list[str]:
        """The subjects that failed."""
        return list(self._found)

    @property
    def found(self) -> dict[str, Any]:
        """Why each subject failed, and what was measured."""
        return dict(self._found)

    def attempt(self, subject: str) -> int:
        """How often a subject's adapter was trained and refused since it last joined; 0: never."""
        return int(self._found.get(subject, {}).get("attempt", 0))

    def update(
        self, failed: Mapping[str, Mapping[str, float | str]], mended: Sequence[str]
    ) -> None:
        """Add failures, and forget those of subjects `mended` since."""
        changed = {k: v for k, v in self._found.items() if k not in mended}
        changed |= {subject: dict(facts) for subject, facts in failed.items()}
        if changed != self._found:
            self._found = changed
            write_json(self.path, changed)
