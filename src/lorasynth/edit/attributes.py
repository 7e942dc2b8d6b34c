"""Attributes of subjects, and how latents change with one while the others stay (paper, 4.1).

weights2weights takes the normal of a linear classifier, which also points along whatever occurs
together with the attribute.  Here latents are regressed on all attributes at once, so that what an
attribute shares with others is not counted to it.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.core.errors import ConfigError

#: The value of an attribute that a subject does not have.
ABSENT = "none"

#: A text of more values than these says who a subject is, rather than what it is like.
_MOST_KINDS = 100

#: Ridge penalty, as a share of the mean variance of a label: attributes that always occur together
#: share what they have, rather than cancel one another.
_PENALTY = 1e-3

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_CHANNELS = ("red", "green", "blue")

#: A column of a table: facts of subjects, one text or one number each; None where it is missing.
Column = Sequence[str | int | float | None]


def labels_of(columns: Mapping[str, Column]) -> dict[str, dict[str, Float[Tensor, " N"]]]:
    """For each column, the labels that can be asked of it, by name.

    A number is a label as it is.  A colour (#rrggbb) is three, `hair:red` and so on, from 0 to 1.
    A text is one label for each of its values, `glasses:round`, 1 where a subject has it, else 0;
    where some subjects have "none", there is also `glasses` itself: has any.  Columns in which
    all subjects agree, or of which something is missing, have no labels, and neither have texts
    of more than 100 values, such as names.
    """
    labels = {name: _labels(name, values) for name, values in columns.items()}
    return {name: found for name, found in labels.items() if found}


def _labels(name: str, values: Column) -> dict[str, Float[Tensor, " N"]]:
    texts = [value for value in values if isinstance(value, str)]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values):
        found = {name: torch.tensor(numbers)}
    elif len(texts) < len(values):
        return {}  # neither all texts nor all numbers: nothing to regress on
    elif all(_COLOUR.fullmatch(text) for text in texts):
        rgb = torch.tensor([[int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)] for text in texts])
        found = {f"{name}:{channel}": rgb[:, i] for i, channel in enumerate(_CHANNELS)}
    else:
        kinds = sorted(set(texts) - {ABSENT})
        if len(kinds) > _MOST_KINDS:
            return {}
        found = {} if ABSENT not in texts else {name: _where(texts, ABSENT, same=False)}
        found |= {f"{name}:{kind}": _where(texts, kind, same=True) for kind in kinds}
    return {label: numbers for label, numbers in found.items() if numbers.std() > 0}


def _where(texts: Sequence[str], value: str, *, same: bool) -> Float[Tensor, " N"]:
    return torch.tensor([float((text == value) == same) for text in texts])


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
