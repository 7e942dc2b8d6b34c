"""Whether something was made for a base model."""

import torch

from lorasynth.adapter import Layout
from lorasynth.base.model import BaseModel
from lorasynth.core.errors import BaseModelError


def require_made_for(base: BaseModel, fingerprint: str, what: str) -> None:
    """Check that `what`, which was made for the base model of that fingerprint, is used with it.

    What other programs made says nothing of its base model (""), and is let through; so is all
    where the base model's weights are not on this disk.

    Raises:
        BaseModelError: it was made for another one.
    """
    if "" not in (fingerprint, base.fingerprint) and fingerprint != base.fingerprint:
        raise BaseModelError(
            f"{what} must be used with the base model that it was made for, {fingerprint}, but "
            f"{base.name} is {base.fingerprint}: use that one"
        )


def require_fits(base: BaseModel, layout: Layout) -> None:
    """Check that adapters of a layout can be attached to a base model.

    Raises:
        LayoutError: a module is absent or has other widths.
    """
    with base.attached(layout.unflatten(torch.zeros(1, layout.size))):
        pass
