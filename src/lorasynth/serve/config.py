"""How a service is set up; imports nothing heavy, since the command line is made from it."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

#: Where the page is, for who has one.
PAGE = "/ui"


def in_redis(state: str) -> bool:
    """Whether jobs are kept in Redis, by its address, and not in a folder."""
    return "://" in state


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one caller, and all of them together, may ask for.

    Attributes:
        rate: Requests of one API key (without keys: of one address), such as 600/minute.
        body: Megabytes of one request.
        memory: Megabytes of all requests in progress; as much again for jobs that wait.
        photos: Photos in one request.
        megapixels: Of all photos of one request, told from their headers before any is decoded.
        prompts: Images in one request.
        seconds: Until a request is answered.
        upload_seconds: Until all of a request is there.
        queue: Requests in progress.
        jobs: Jobs that wait.
        kept_hours: Until a job and its result are deleted.
    """

    rate: str = "600/minute"
    body: Annotated[int, Field(ge=1, le=1024)] = 32
    memory: Annotated[int, Field(ge=1)] = 512
    photos: Annotated[int, Field(ge=1)] = 8
    megapixels: Annotated[int, Field(ge=1)] = 40
    prompts: Annotated[int, Field(ge=1)] = 8
    seconds: Annotated[float, Field(gt=0)] = 60
    upload_seconds: Annotated[float, Field(gt=0)] = 30
    queue: Annotated[int, Field(ge=1)] = 128
    jobs: Annotated[int, Field(ge=1)] = 16
    kept_hours: Annotated[float, Field(gt=0)] = 24


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How requests of several callers are computed together.

    Attributes:
        loras: Most LoRA files made at once.
        images: Most requests for images made at once.
        wait_ms: Milliseconds in which a batch gathers.
    """

    loras: Annotated[int, Field(ge=1)] = 32
    images: Annotated[int, Field(ge=1)] = 16
    wait_ms: Annotated[float, Field(ge=0.5)] = 8


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker loads.

    Attributes:
        synthesizers: that make LoRA files.
        base: their base model, to make images and to refine.
        library: in whose latents adapters are edited; None: the shipped one, where it fits.
        device: where to compute.
    """

    synthesizers: tuple[str, ...] = ("bundle/synthesizer",)
    base: str | None = "bundle/base"
    library: str | None = None
    device: str = "auto"
