"""Packages that only some encoders need: imported when one is made, and missed in one line."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lorasynth.core.errors import BundleError


def is_installed(package: str) -> bool:
    """Whether a package is there, which is told without importing it."""
    return find_spec(package) is not None


def need(package: str, extra: str) -> Any:
    """Import a package.

    Args:
        package: what to import.
        extra: the extra of lorasynth that installs it.

    Raises:
        BundleError: it is not installed, or broken.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise BundleError(
            f"this encoder needs the package {package}, but it cannot be imported ({error}): "
            f"pip install 'lorasynth[{extra}]'"
        ) from error
