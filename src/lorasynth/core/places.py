"""Where what a user names is: here, in the shipped bundle, or on the hub if that is asked for.

A name is a path.  The hub is asked for nothing but what is written `hub:owner/name`, so a path that
is mistyped, or a default in another folder, never becomes somebody's repository.
"""

import re
from importlib.util import find_spec
from pathlib import Path

from lorasynth.core.errors import LorasynthError

#: What the name of a repository on the Hugging Face hub begins with.
HUB = "hub:"

#: The folder of a checkout, and of the defaults of commands, that has the shipped models.
BUNDLE = "bundle"

#: The package that has them where lorasynth is installed without a checkout.
_PACKAGE = "lorasynth_avatars"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def shipped() -> Path | None:
    """The folder of the shipped models: in the checkout that this package is in, or installed."""
    checkout = Path(__file__).parents[3] / BUNDLE
    if (checkout / "MANIFEST.json").is_file():
        return checkout
    found = find_spec(_PACKAGE)
    places = [] if found is None else found.submodule_search_locations or []
    return next(map(Path, places), None)


def local(name: Path | str) -> Path:
    """A path as a user gave it; of `bundle/...` that is not there, the shipped one."""
    path = Path(name)
    if path.exists() or path.parts[:1] != (BUNDLE,):
        return path
    found = shipped()
    return path if found is None else found.joinpath(*path.parts[1:])


def repository(name: Path | str) -> str | None:
    """The hub's id of what is written `hub:owner/name`; None for a path.

    Raises:
        LorasynthError: it begins so, but is no id.
    """
    text = str(name)
    if not text.startswith(HUB):
        return None
    if not _REPOSITORY.fullmatch(text.removeprefix(HUB)):
        raise LorasynthError(f"a repository of the hub is written {HUB}owner/name, but got {text}")
    return text.removeprefix(HUB)


def folder_of(name: Path | str, what: str, error: type[LorasynthError]) -> Path:
    """The folder that a name is of, which is not one on the hub.

    Args:
        name: as a user gave it.
        what: how messages call it, such as "a base model".
        error: what is raised.

    Raises:
        LorasynthError: there is no such folder; says where it was looked for.
    """
    found = local(name)
    if found.is_dir():
        return found
    text, places = str(name), str(found.absolute())
    if Path(name).parts[:1] == (BUNDLE,) and shipped() is None:
        places += f", beside the package and in the package {_PACKAGE}"
    if found.exists():
        raise error(f"{what} must be a folder, but {text} is a file: check the path")
    hint = f"; for the hub write {HUB}{text}" if _REPOSITORY.fullmatch(text) else ""
    raise error(
        f"{what} must be a folder that exists, or {HUB}owner/name, but {text} is not there (looked "
        f"for {places}): check the path{hint}"
    )


def pretrained(name: str, what: str, error: type[LorasynthError]) -> tuple[str, dict[str, bool]]:
    """What `from_pretrained` of transformers takes of a folder, or of hub:owner/name.

    Its second part says whether it may ask the hub, which a folder does not.

    Raises:
        LorasynthError: as `folder_of`.
    """
    on_hub = repository(name)
    place = on_hub or str(folder_of(name, what, error))
    return place, {"local_files_only": on_hub is None}


def public_name(name: Path | str) -> str:
    """What files may say of where something came from: a hub's id, or the last name of a path."""
    return repository(name) or Path(name).absolute().name
