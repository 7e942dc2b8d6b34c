"""What a collection takes from outside: an anchor to train from, and a quality gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool
from torch import Tensor

from lorasynth.adapter import Factors
from lorasynth.condition import ConditionEncoder
from lorasynth.images import Subject


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a quality gate found in n adapters.

    Attributes:
        passed: which adapters may join the library.
        metrics: name -> one number per adapter; each becomes a column of the library's table.
    """

    passed: Bool[Tensor, " n"]
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)


@runtime_checkable
class Anchor(Protocol):
    """Predicts adapters to start from and to be pulled toward, such as a synthesizer's.

    Attributes:
        fingerprint: identifies what predicts; a library has one anchor.
        encoder: looks at the photos of a subject before they are cut; None where nothing does.
    """

    @property
    def encoder(self) -> ConditionEncoder | None: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def predict(self, subjects: Sequence[Subject]) -> Factors:
        """Adapters for `subjects`, stacked in the same order; each depends on its own alone."""
        ...


@runtime_checkable
class Gate(Protocol):
    """Judges freshly trained adapters, for example by the likeness of a few samples."""

    def __call__(self, factors: Factors, subjects: Sequence[Subject]) -> Verdict:
        """Judge the adapters of `subjects`, stacked in the same order."""
        ...
