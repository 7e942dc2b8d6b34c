"""What callers ask for: the fields of requests with their limits, and how a body is read.

A body is a form with photos, or JSON for who sends an embedding.  Photos, embeddings and prompts
are left out of every `repr`, so that none gets into a log.
"""

import asyncio
import io
import json
import logging
import sys
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Literal, TypeVar

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from lorasynth.images.contract import PORTRAIT
from lorasynth.images.files import readable_formats
from lorasynth.serve.config import Limits

# Files of a form are kept in memory, whose size the gate bounds: photos never are on a disk.
MultiPartParser.spool_max_size = sys.maxsize
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs bytes of broken forms

FORM, JSON = "multipart/form-data", "application/json"

AskedT = TypeVar("AskedT", bound="AskedLora")


class RefusedError(Exception):
    """A request is refused, with an HTTP status and one line.

    `retry_after` says after how many seconds it is worth another try; None: it is not.
    """

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(status, detail, retry_after)  # as processes send it to one another
        self.status, self.detail, self.retry_after = status, detail, retry_after


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """Answer within so many seconds, or as the limit is changed.

    Raises:
        RefusedError: the time is over.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            yield limit
    except TimeoutError:
        detail = f"an answer must be there within {seconds:g} s: ask for less"
        raise RefusedError(503, detail, 5) from None


def _parsed(value: Any) -> Any:
    """What a text field of a form holds as JSON; all else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


Text = Annotated[str, Field(min_length=1, max_length=1000)]
_Name = Annotated[str, Field(max_length=100)]
_Number = Annotated[float, Field(ge=-100, le=100)]
_Step = Annotated[float, Field(ge=-10, le=10)]
#: Fields that are files.
_FILES = ("photos", "other", "lora")


class AskedLora(BaseModel):
    """A subject, by photos, an embedding or a LoRA file, and how its adapter is made."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    photos: list[bytes] = Field([], repr=False, description="Of one subject; one or several.")
    embedding: Annotated[list[_Number] | None, BeforeValidator(_parsed)] = Field(
        None, max_length=16384, repr=False, description="Of photos, by Synthesizer.embed."
    )
    attributes: Annotated[dict[_Name, _Name], BeforeValidator(_parsed)] = Field(
        {}, max_length=100, repr=False, description="Facts that the model knows; a form has JSON."
    )
    face: int | None = Field(
        None, ge=1, le=100, description="Of each photo, from the left; else the largest."
    )
    model: _Name = Field("", description="A name of /v1/models; empty: the first.")
    format: Literal["auto", "kohya", "diffusers", "comfyui"] = Field(
        "auto", description="Of the file; auto: what diffusers and ComfyUI both read."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Another gives another adapter.")
    strength: float = Field(1.0, gt=0, le=4, description="Multiplies what is changed.")
    steps: int | None = Field(None, ge=1, le=30, description="Of the hypernetwork's solver.")
    guidance: float | None = Field(None, ge=0, le=20, description="Weight of the condition.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="1: full diversity; 0: one adapter whatever the seed."
    )
    lora: bytes | None = Field(None, repr=False, description="A LoRA file, in place of making one.")
    other: list[bytes] = Field([], repr=False, description="Photos of a subject to go towards.")
    share: float = Field(0.5, ge=0, le=1, description="Of the way to the other subject.")
    edit: Annotated[dict[_Name, _Step], BeforeValidator(_parsed)] = Field(
        {},
        max_length=100,
        repr=False,
        description="By how much attributes rise (see edits of /v1/models); a form has JSON.",
    )

    @property
    def draw(self) -> tuple[Any, ...]:
        """What adapters of one batch have in common."""
        return self.model, self.seed, self.strength, self.steps, self.guidance, self.temperature


class AskedImages(AskedLora):
    """Images of a subject, one for each prompt."""

    prompts: list[Text] = Field(
        min_length=1,
        repr=False,
        description="With the model's trigger phrase, as a portrait of it.",
    )
    image_seed: int = Field(0, ge=0, lt=2**31, description="Of the first image; then 1 more each.")
    image_steps: int = Field(20, ge=1, le=100, description="Of the base model's solver.")
    image_guidance: float = Field(3.0, ge=0, le=30, description="Weight of the prompt.")


class AskedRefine(AskedLora):
    """A LoRA trained on with photos, from the file or from what is made of the photos."""

    refine_steps: int = Field(50, ge=1, le=500, description="Of the optimiser.")
    caption: Text = Field(PORTRAIT, repr=False, description="What the photos show.")


def described(kind: type[AskedLora]) -> dict[str, Any]:
    """What OpenAPI says of the two forms of a body."""
    form, plain = kind.model_json_schema(), kind.model_json_schema()
    for name in _FILES:
        plain["properties"].pop(name, None)
    form["properties"].pop("embedding")
    form["properties"]["attributes"] = {"type": "string", "description": "JSON of facts."}
    form["properties"]["edit"] = {"type": "string", "description": "JSON of steps."}
    content = {FORM: {"schema": form}, JSON: {"schema": plain}}
    return {"requestBody": {"required": True, "content": content}}


async def read(request: Request, kind: type[AskedT], limits: Limits, models: Any) -> AskedT:
    """What a request asks for.

    Args:
        request: whose body is a form or JSON.
        kind: of what it asks for.
        limits: of its photos and prompts.
        models: by their names, with what they are.

    Raises:
        RefusedError: a field or a photo cannot be used.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == FORM:
        return await asked_for(kind, await _form(request, kind, limits), limits, models)
    if media != JSON:
        got = f"is {media[:100]}" if media else "is not stated"
        raise RefusedError(415, f"a body must be {FORM} or {JSON}, but {got}")
    with _told():
        asked = kind.model_validate_json(await request.body())
    _require(not any(getattr(asked, name) for name in _FILES), f"files are sent as {FORM}")
    return await _checked(asked, limits, models)


async def asked_for(
    kind: type[AskedT], fields: Mapping[str, Any], limits: Limits, models: Any
) -> AskedT:
    """What the fields of a form or of the page ask for; the rest as of `read`.

    Raises:
        RefusedError: a field or a photo cannot be used.
    """
    with _told():
        asked = kind.model_validate(fields)
    return await _checked(asked, limits, models)


@contextmanager
def _told() -> Iterator[None]:
    """Say in one line which field cannot be used."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the request"
        raise RefusedError(422, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


async def _checked(asked: AskedT, limits: Limits, models: Any) -> AskedT:
    asked.model = asked.model or next(iter(models))
    if asked.model not in models:
        raise RefusedError(404, f"model must be one of {', '.join(models)}: see /v1/models")
    _require_subject(asked, models[asked.model]["embedding_width"])
    _require_few("photos", asked.photos, limits.photos)
    _require_few("other", asked.other, limits.photos)
    _require_few("prompts", getattr(asked, "prompts", ()), limits.prompts)
    await asyncio.to_thread(_require_small, [*asked.photos, *asked.other], limits)
    return asked


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise RefusedError(422, detail)


def _require_few(name: str, several: Sequence[Any], most: int) -> None:
    _require(len(several) <= most, f"{name}: at most {most}, but got {len(several)}")


def _require_subject(asked: AskedLora, width: int) -> None:
    numbers, lora = asked.embedding, asked.lora
    _require(
        numbers is None or not (asked.photos or lora), "an embedding is sent in place of files"
    )
    _require(
        bool(asked.photos or lora or asked.attributes) or numbers is not None,
        "photos: send one or several of the subject, or an embedding",
    )
    _require(
        b"" not in [*asked.photos, *asked.other] and lora != b"",
        "a file is empty: send its content",
    )
    _require(
        numbers is None or len(numbers) == width,
        f"embedding: must have {width} numbers for {asked.model}, but has {len(numbers or ())}",
    )
    _require(
        bool(asked.photos) or not isinstance(asked, AskedRefine),
        "photos: a LoRA is trained on with one or several",
    )


async def _form(request: Request, kind: type[AskedLora], limits: Limits) -> dict[str, Any]:
    """The fields of a form, as their model takes them."""
    fields: dict[str, Any] = {}
    most = 2 * limits.photos + 1
    async with request.form(max_files=most, max_fields=64, max_part_size=1 << 20) as form:
        for name, value in form.multi_items():
            shown, is_file = repr(name[:100]), name in _FILES
            _require(name in kind.model_fields, f"{shown} is no field of this request")
            _require(
                is_file == isinstance(value, UploadFile), f"{shown}: is a file, or must be one"
            )
            content = await value.read() if isinstance(value, UploadFile) else value
            if name in ("photos", "other", "prompts"):
                fields.setdefault(name, []).append(content)
            else:
                _require(name not in fields, f"{shown}: must be there once")
                fields[name] = content
    return fields


def _require_small(photos: Sequence[bytes], limits: Limits) -> None:
    """Refuse, by headers alone, photos that have too many pixels together."""
    pixels, most = 0, limits.megapixels * 10**6
    for photo in photos:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(photo), formats=readable_formats()) as image:
                    pixels += image.width * image.height
        except Image.DecompressionBombError:
            pixels += most + 1
        except Exception:  # whatever a reader raises at damage: the worker's reader says what it is
            continue
    _require(pixels <= most, f"photos: at most {limits.megapixels} megapixels: scale them down")
