"""What a long computation has so far, so that a killed one goes on and ends with the same bits."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorasynth.atomic import atomic_file, remove_leftovers
from lorasynth.errors import BundleError, ConfigError


class State(NamedTuple):
    """What was saved under one name."""

    tensors: dict[str, Tensor]
    #: JSON values.
    facts: dict[str, Any]


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
        self._identity = json.dumps(dict(identity), sort_keys=True)
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
        if self.folder is None:
            return
        header = {"identity": self._identity, "facts": json.dumps(facts)}
        stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        with atomic_file(self._path(name), alone=True) as temporary:
            save_file(stored, temporary, metadata=header)

    def load(self, name: str, device: torch.device | str = "cpu") -> State | None:
        """What was saved under a name; None if nothing was.

        Raises:
            ConfigError: it belongs to another computation.
            BundleError: it is damaged.
        """
        if self.folder is None or not self._path(name).exists():
            return None
        try:
            with safetensors.safe_open(
                str(self._path(name)),
                framework="pt",
                device=str(device),
                backend="pread",  # what is mapped would be in memory twice while it is copied
            ) as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise BundleError(
                f"{self._path(name)} must be an intact checkpoint, but is not ({error}): delete "
                f"{self.folder} to begin anew"
            ) from error
        if header.get("identity") != self._identity:
            raise ConfigError(
                f"{self.folder} holds the checkpoint of another computation ("
                f"{header.get('identity')} instead of {self._identity}): delete it, or choose "
                "another --run"
            )
        return State(tensors, json.loads(header["facts"]))

    def forget(self, pattern: str) -> None:
        """Delete the states whose names match a pattern."""
        if self.folder is not None:
            for path in self.folder.glob(f"{pattern}.safetensors"):
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


def forget(run: Path) -> None:
    """Delete what a finished computation kept in its folder."""
    Checkpoint(run, {}).forget("[!.]*")
    remove_leftovers(run)
    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()
