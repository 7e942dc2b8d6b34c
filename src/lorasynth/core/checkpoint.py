"""What a long computation has so far, so that a killed one goes on and ends with the same bits.

A training that has one state keeps it in a file (`write_state`, `read_state`); what has several,
which come and go, in a folder (`Checkpoint`).
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from lorasynth.core.atomic import atomic_file, remove_leftovers
from lorasynth.core.config import changes
from lorasynth.core.errors import BundleError, ConfigError
from lorasynth.core.weights import as_stored, require_small_header, save_with_header


class State(NamedTuple):
    """What was saved under one name."""

    tensors: dict[str, Tensor]
    #: JSON values.
    facts: dict[str, Any]


def write_state(
    path: Path, identity: Mapping[str, Any], tensors: Mapping[str, Tensor], **facts: Any
) -> None:
    """Atomically write a state; one that is there is replaced.

    Args:
        path: the file.
        identity: what the result depends on, as JSON values.
        tensors: what there is so far.
        facts: JSON values beside them.

    Raises:
        ConfigError: a file has the name that is no checkpoint.
        LorasynthError: the file cannot be written.
    """
    if path.exists() and not _is_state(path):
        raise ConfigError(
            f"a checkpoint replaces nothing but an earlier one, but {path} is something else: "
            "choose another place"
        )
    header = {"identity": json.dumps(dict(identity), sort_keys=True), "facts": json.dumps(facts)}
    with atomic_file(path) as temporary:
        save_with_header(as_stored(tensors), temporary, header)


def read_state(
    path: Path,
    identity: Mapping[str, Any],
    device: torch.device | str = "cpu",
    *,
    whole: Path | None = None,
    free: Sequence[str] = (),
) -> State | None:
    """What was saved in a file; None if there is none.

    Args:
        path: the file.
        identity: what the result depends on, as JSON values.
        device: where the tensors are wanted.
        whole: what a user deletes to begin anew; None for the file.
        free: parts of the identity that may have changed, by their names with dots.

    Raises:
        ConfigError: it belongs to another computation.
        BundleError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        require_small_header(path)
        with safetensors.safe_open(
            str(path),
            framework="pt",
            device=str(device),
            backend="pread",  # what is mapped would be in memory twice while it is copied
        ) as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        kept, facts = json.loads(header["identity"]), json.loads(header["facts"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise BundleError(
            f"{path} must be an intact checkpoint, but is not ({error}): delete "
            f"{whole or path} to begin anew"
        ) from error
    mine = json.loads(json.dumps(dict(identity)))
    if others := changes(_without(kept, free), _without(mine, free)):
        raise ConfigError(
            f"{whole or path} holds the checkpoint of another computation ({'; '.join(others)}): "
            "delete it, or choose another place for this one"
        )
    return State(tensors, facts)


def _without(identity: dict[str, Any], free: Sequence[str]) -> dict[str, Any]:
    """An identity without the parts of these names."""
    rest = dict(identity)
    for name in free:
        outer, _, inner = name.partition(".")
        if not inner:
            rest.pop(outer, None)
        elif isinstance(rest.get(outer), dict):
            rest[outer] = _without(rest[outer], [inner])
    return rest


class Checkpoint:
    """Named states in a folder, each written whole or not at all.

    Args:
        folder: where; None keeps nothing, so that a killed computation begins anew.
        identity: what the result depends on, as JSON values; states of another computation are
            refused.
        seconds: how often `due` says that it is time to save.
    """

    def __init__(
        self, folder: Path | None, identity: Mapping[str, Any], seconds: float = 60.0
    ) -> None:
        self.folder = folder
        self._identity = identity
        self._seconds = seconds
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save what there is so far; if so, the time runs anew."""
        due = self.folder is not None and time.monotonic() - self._since >= self._seconds
        if due:
            self._since = time.monotonic()
        return due

    def save(self, name: str, tensors: Mapping[str, Tensor], **facts: Any) -> None:
        """Write a state; one of the same name is replaced."""
        if self.folder is not None:
            write_state(self._path(name), self._identity, tensors, **facts)

    def load(self, name: str, device: torch.device | str = "cpu") -> State | None:
        """What was saved under a name; None if nothing was.

        Raises:
            ConfigError: it belongs to another computation.
            BundleError: it is damaged.
        """
        if self.folder is None:
            return None
        return read_state(self._path(name), self._identity, device, whole=self.folder)

    def forget(self, pattern: str) -> None:
        """Delete the states whose names match a pattern."""
        if self.folder is not None:
            for path in self.folder.glob(f"{pattern}.safetensors"):
                if _is_state(path):
                    path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


def forget(run: Path, *names: str) -> None:
    """Delete what a finished computation kept in its folder, by the names of its states."""
    for name in names:
        Checkpoint(run, {}).forget(name)
    remove_leftovers(run)
    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()


def _is_state(path: Path) -> bool:
    """Whether a file is one that `write_state` wrote."""
    try:
        require_small_header(path)
        with safetensors.safe_open(str(path), framework="pt") as file:
            return {"identity", "facts"} <= (file.metadata() or {}).keys()
    except (OSError, safetensors.SafetensorError):
        return False
