"""How a collection goes, and how adapters show their subjects."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Fixed, Suppress

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """How a collection goes; nothing here changes an adapter.

    Attributes:
        fleet: Adapters trained at once; default: as many as fit into memory.
        gauge: Gauge of a new library; default: shared where A is, else procrustes.
        attempts: Trainings of an adapter that diverges or is not similar enough, each with other
            random numbers, before its subject is left out.
        retry_failed: Try subjects once more that earlier runs left out.
    """

    fleet: Count | None = None
    gauge: str | None = None
    attempts: Count = 2
    retry_failed: bool = False


@dataclass(frozen=True, kw_only=True)
class GeneratedConfig:
    """How a library's adapters are made to show their subjects.

    Attributes:
        prompt: Asked of every adapter; it should hold the words that it was trained with.
        images: Of each adapter.
        seed: Of the noise.
        steps: Solver steps for each image.
        guidance: Classifier-free guidance scale.
        batch: Images made at once.
    """

    prompt: str = "a photo of sks person"
    images: Count = 4
    seed: Annotated[int, Fixed, Suppress] = 0
    steps: Count = 20
    guidance: float = 3.0
    batch: Count = 64
