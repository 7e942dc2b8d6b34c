"""Whether something was made for a base model."""

from lorasynth.base.contract import BaseModel
from lorasynth.errors import BaseModelError


def require_made_for(base: BaseModel, fingerprint: str, what: str) -> None:
    """Check that `what`, which was made for the base model of that fingerprint, is used with it.

    Raises:
        BaseModelError: it was made for another one.
    """
    if fingerprint != base.fingerprint:
        raise BaseModelError(
            f"{what} must be used with the base model that it was made for, {fingerprint}, but "
            f"{base.name} is {base.fingerprint}: use that one"
        )
