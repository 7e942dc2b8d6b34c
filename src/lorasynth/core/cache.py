"""Results that are made once and kept: the config that decides a result is its key.

A file is named after the hash of that identity and holds the identity itself, which is compared
before the file is used.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lorasynth.core.atomic import make_parent, write_json
from lorasynth.core.config import read_json
from lorasynth.core.progress import console


def plain(identity: Any) -> Any:
    """Configs, paths and tuples, however nested, as JSON values."""
    return json.loads(json.dumps(TypeAdapter(Any).dump_python(identity, mode="json")))


def digest(identity: Any) -> str:
    """The hash of an identity."""
    text = json.dumps(plain(identity), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Cache:
    """A folder of results.

    Args:
        folder: where; made when the first result is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, identity: Any, suffix: str = "") -> Path:
        """Where a result is, or will be."""
        return self.folder / f"{name.replace(' ', '-')}-{digest(identity)}{suffix}"

    def report(self, name: str, identity: Any, make: Callable[[], Any]) -> Any:
        """JSON values, made if they are not kept.

        Args:
            name: what they are, in words; said before they are made.
            identity: all that decides them: configs and JSON values.
            make: returns JSON values.
        """
        path, asked = self.path(name, identity, ".json"), plain(identity)
        if path.is_file():
            kept = read_json(path)
            if kept.get("identity") == asked:
                return kept["found"]
        console.print(name, highlight=False)
        write_json(path, {"identity": asked, "found": make()})
        return read_json(path)["found"]

    def tensors(
        self, name: str, identity: Any, make: Callable[[], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Named tensors, made if they are not kept.

        They are read from the file in either case: the order of a tensor's values in memory, which
        a file does not keep, decides the last bits of products, and a second run must find the
        same.
        """
        import safetensors  # torch, which a cache of reports does not need

        from lorasynth.core.atomic import atomic_file
        from lorasynth.core.weights import as_stored, read_weights, save_with_header

        path, asked = self.path(name, identity, ".safetensors"), plain(identity)

        def kept() -> Mapping[str, Any] | None:
            if not path.is_file():
                return None
            tensors = read_weights(path)  # says what is damaged
            with safetensors.safe_open(str(path), framework="pt") as file:
                stated = json.loads((file.metadata() or {}).get("identity", "0"))
            return tensors if stated == asked else None

        found = kept()
        if found is None:
            with atomic_file(path) as temporary:
                save_with_header(as_stored(make()), temporary, {"identity": json.dumps(asked)})
            found = read_weights(path)
        return found

    def folder_of(self, name: str, identity: Any, make: Callable[[Path], None]) -> Path:
        """A folder that `make` writes, as a whole, at the path that it is given."""
        path = self.path(name, identity)
        if not path.exists():
            make_parent(path)
            make(path)
        return path
