"""Attribute directions: how latents change with one attribute while others stay (paper, 4.1).

weights2weights takes the normal of a linear classifier, which also points along whatever occurs
together with the attribute.  Here latents are regressed on all attributes at once, so that what an
attribute shares with others is not counted to it.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.core.errors import ConfigError
from lorasynth.edit.labels import Column, labels_of

#: Ridge penalty, as a share of the mean variance of a label: attributes that always occur together
#: share what they have, rather than cancel one another.
_PENALTY = 1e-3


def attribute_names(columns: Mapping[str, Column]) -> list[str]:
    """What `direction` can be asked for."""
    return [name for labels in labels_of(columns).values() for name in labels]


def direction(
    latents: Float[Tensor, "N k"], columns: Mapping[str, Column], name: str
) -> Float[Tensor, " k"]:
    """How latents change when the attribute `name` rises by 1 and the other columns stay.

    Args:
        latents: of N adapters.
        columns: facts about the N subjects; see `labels_of` for the names of attributes.
        name: of an attribute.

    Raises:
        ConfigError: there is no such attribute, or all subjects agree in it.
    """
    labels = labels_of(columns)
    home = next((column for column, found in labels.items() if name in found), None)
    if home is None:
        known = ", ".join(attribute_names(columns))
        if not known:
            raise ConfigError(
                f"an edit needs a library that knows attributes, but this one has none, so not "
                f"{name!r}: add some with `lorasynth library annotate`"
            )
        raise ConfigError(f"an attribute must be one of {known}, but is {name!r}")
    others = [one for column, found in labels.items() if column != home for one in found.values()]
    x = torch.stack([labels[home][name], *others], dim=1).double()
    x = (x - x.mean(dim=0)) / (unit := x.std(dim=0))
    y = latents.double() - latents.double().mean(dim=0)
    gram = x.T @ x
    gram += _PENALTY * len(x) * torch.eye(len(gram), dtype=gram.dtype)
    slopes = torch.linalg.solve(gram, x.T @ y)
    slope: Tensor = slopes[0] / unit[0]
    return slope.to(latents)
