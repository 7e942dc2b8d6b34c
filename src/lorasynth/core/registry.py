"""Plug-ins by name: this package's own by decorator, other packages' by entry point.

A room that takes plug-ins keeps one `Registry` beside its contract, with the modules of its own::

    CODECS: Registry[type[Codec]] = Registry(
        "codec", "lorasynth.codecs", "lorasynth.codec.pca", "lorasynth.codec.vae"
    )

    @CODECS.register("pca")
    class PCA(Codec): ...

These are imported when a plug-in is first asked for.

A third-party package adds its own without being imported first::

    [project.entry-points."lorasynth.codecs"]
    my_codec = "my_package:MyCodec"
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from lorasynth.core.errors import ConfigError

PluginT = TypeVar("PluginT")


class Registry(Generic[PluginT]):
    """The plug-ins of one kind.

    Args:
        kind: what one plug-in is called in an error message, such as "codec".
        group: the entry-point group in which other packages announce theirs.
        modules: this package's, that register plug-ins.
    """

    def __init__(self, kind: str, group: str, *modules: str) -> None:
        self.kind = kind
        self.group = group
        self._modules = modules
        self._own: dict[str, PluginT] = {}

    def register(self, name: str) -> Callable[[PluginT], PluginT]:
        """Decorate a plug-in to make it known as `name`."""

        def add(plugin: PluginT) -> PluginT:
            self._own[name] = plugin
            return plugin

        return add

    def names(self) -> list[str]:
        """All known names, sorted; this package's own and those of entry points."""
        return sorted({*self.own, *(point.name for point in entry_points(group=self.group))})

    def get(self, name: str) -> PluginT:
        """Look up a plug-in; this package's own win over entry points of the same name.

        Code of another package runs only here, when the name of its entry point is asked for.

        Raises:
            ConfigError: no plug-in has that name, or that of another package cannot be imported.
        """
        if name in self.own:
            return self._own[name]
        for point in entry_points(group=self.group, name=name):
            return self._load(point)
        raise ConfigError(
            f"a {self.kind} must be one of {', '.join(self.names())}, but got {name!r}: choose one "
            f"of these, or install the package that provides it (entry point {self.group!r})"
        )

    def name_of(self, plugin: PluginT) -> str:
        """The name under which a plug-in is known.

        Raises:
            ConfigError: it is not registered.
        """
        for name, own in self.own.items():
            if own is plugin:
                return name
        for point in entry_points(group=self.group):
            if point.module in sys.modules and self._load(point) is plugin:  # else it is not its
                return point.name
        raise ConfigError(
            f"a {self.kind} must be registered to be saved, but {plugin!r} is not: decorate it "
            f"with register(name) or announce it as entry point {self.group!r}"
        )

    def _load(self, point: EntryPoint) -> PluginT:
        plugin: PluginT = load_point(point, f"{self.kind} {point.name!r}")
        return plugin

    @property
    def own(self) -> dict[str, PluginT]:
        """This package's plug-ins by name."""
        for module in self._modules:
            import_module(module)
        return dict(self._own)


def load_point(point: EntryPoint, what: str) -> Any:
    """What an entry point of another package names; its code runs only now.

    Args:
        point: the entry point.
        what: it is, for messages.

    Raises:
        ConfigError: that package cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:  # whatever another package's code raises
        raise ConfigError(
            f"the {what} is of another package ({point.value}), which cannot be imported "
            f"({type(error).__name__}: {error}): mend or remove that package"
        ) from error
