"""The HTTP application: its routes, and what OpenAPI says of them."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from lorasynth import __version__
from lorasynth.serve.config import Limits
from lorasynth.serve.engine import Engine
from lorasynth.serve.gate import Figures, Gate, problem
from lorasynth.serve.jobs import Job, JobFile, Jobs
from lorasynth.serve.requests import (
    AskedImages,
    AskedLora,
    AskedRefine,
    RefusedError,
    described,
    read,
)

_DESCRIPTION = """Photos of a subject in, a LoRA file for a text-to-image model out, in one request.

Of people only with their consent; every file says that it is synthetic. Photos are in memory until
the answer, and nowhere else. Errors are problem documents (RFC 9457); 429 and 503 say in
`Retry-After` when it is worth another try."""

_LORA, _PNG, _ZIP = "application/octet-stream", "image/png", "application/zip"


class Problem(BaseModel):
    """Why a request is refused."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What is wrong, and what to do, in one line.")


_PROBLEM = {"model": Problem, "description": "Why the request is refused."}
_REFUSALS: dict[int | str, dict[str, Any]] = {"4XX": _PROBLEM, "5XX": _PROBLEM}


def _binary(*kinds: str) -> dict[int | str, dict[str, Any]]:
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {200: {"content": content, "description": "The file."}, **_REFUSALS}


def create_app(
    engine: Engine,
    file: JobFile,
    limits: Limits,
    keys: Sequence[str],
    figures: Figures,
    page: Path | None = None,
) -> ASGIApp:
    """The application, behind the gate that bounds what callers may ask for.

    Args:
        engine: started already.
        file: of jobs; it is closed at the end.
        limits: of requests.
        keys: hashes of callers' keys; none: whoever is on this machine is let in.
        figures: to count in.
        page: folder for the page's files; None: there is no page.

    Raises:
        ConfigError: a limit cannot be read.
    """
    jobs = Jobs(file, limits, engine.do)
    figures.jobs.set_function(lambda: len(jobs.undone))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(jobs.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        file.close()

    app = FastAPI(
        title="lorasynth",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )

    _add_problems(app)
    _add_state(app, engine, figures)
    _add_making(app, engine, limits)
    _add_jobs(app, engine, jobs, limits)
    stated = app.openapi()
    key = {"type": "http", "scheme": "bearer", "description": "Of --keys; without those, none."}
    stated.setdefault("components", {})["securitySchemes"] = {"key": key}
    stated["security"] = [{"key": []}, {}]
    if page is not None:
        from lorasynth.serve.page import add_page

        add_page(app, engine, jobs, limits, page)
    return Gate(app, limits, keys, figures)


def _add_problems(app: FastAPI) -> None:
    """Errors as documents of RFC 9457."""

    async def refused(_: Request, error: Any) -> JSONResponse:
        return problem(error.status, error.detail, error.retry_after)

    async def of_http(_: Request, error: Any) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=error.headers)

    async def ours(_: Request, __: Exception) -> JSONResponse:
        return problem(500, "the service failed at this")

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, ours)  # which the gate notes


def _add_state(app: FastAPI, engine: Engine, figures: Figures) -> None:
    @app.get("/health", summary="Whether the service runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether no worker is being started again", responses=_REFUSALS)
    async def ready() -> dict[str, str]:
        if not engine.is_ready:
            raise RefusedError(503, "a worker is being started again: wait", 2)
        return {"status": "ready"}

    figures_text = {200: {"content": {"text/plain": {}}}, **_REFUSALS}

    @app.get("/metrics", summary="For Prometheus", response_class=Response, responses=figures_text)
    async def metrics() -> Response:
        return Response(generate_latest(figures.registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", summary="The synthesizers that are served", responses=_REFUSALS)
    async def models() -> list[dict[str, Any]]:
        return list(engine.models.values())


def _add_making(app: FastAPI, engine: Engine, limits: Limits) -> None:
    @app.post(
        "/v1/loras",
        summary="Photos or an embedding in, a LoRA file out",
        response_class=Response,
        responses=_binary(_LORA),
        openapi_extra=described(AskedLora),
    )
    async def loras(request: Request) -> Response:
        """What the file is stands in headers that begin with `X-Lorasynth-`."""
        made = await engine.do("loras", await read(request, AskedLora, limits, engine.models))
        return _file(made.data, made.facts)

    @app.post(
        "/v1/images",
        summary="Photos, an embedding or a LoRA file and prompts in, images out",
        response_class=Response,
        responses=_binary(_PNG, _ZIP),
        openapi_extra=described(AskedImages),
    )
    async def images(request: Request) -> Response:
        """One prompt gives a PNG, several a zip of them; each says that it is synthetic.

        With photos, `X-Lorasynth-similarity` has the cosine of each image and the photos.
        """
        _require_base(engine)
        made = await engine.do("images", await read(request, AskedImages, limits, engine.models))
        files, kind = made.files, _PNG if len(made.files) == 1 else _ZIP
        answer = Response(files[0] if kind == _PNG else _zipped(files), media_type=kind)
        if made.similarity:
            shown = ",".join(f"{cosine:.4f}" for cosine in made.similarity)
            answer.headers["X-Lorasynth-similarity"] = shown
        return answer


def _add_jobs(app: FastAPI, engine: Engine, jobs: Jobs, limits: Limits) -> None:
    @app.post(
        "/v1/refine",
        status_code=202,
        summary="Train a LoRA on with photos of its subject, as a job",
        response_model=Job,
        responses=_REFUSALS,
        openapi_extra=described(AskedRefine),
    )
    async def refine(request: Request, response: Response) -> Any:
        """It starts from the LoRA file, or from what is made of the photos."""
        _require_base(engine)
        asked = await read(request, AskedRefine, limits, engine.models)
        job = jobs.submit(request.state.owner, asked)
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return job

    path = "/v1/jobs/{job_id}"

    @app.get(path, summary="How far a job is", response_model=Job, responses=_REFUSALS)
    async def job(job_id: str, request: Request) -> Any:
        return jobs.get(request.state.owner, job_id)

    @app.get(
        f"{path}/result",
        summary="The LoRA file that a job has made",
        response_class=Response,
        responses=_binary(_LORA),
    )
    async def result(job_id: str, request: Request) -> Response:
        job, data = jobs.result(request.state.owner, job_id)
        return _file(data, job.facts)

    @app.delete(
        path,
        summary="Cancel a job, or forget it and its result",
        response_model=Job,
        responses=_REFUSALS,
    )
    async def cancel(job_id: str, request: Request) -> Any:
        return jobs.cancel(request.state.owner, job_id)


def _require_base(engine: Engine) -> None:
    if not engine.makes_images:
        raise RefusedError(501, "this service makes LoRA files only: it has no base model")


def _file(data: bytes, facts: Mapping[str, str]) -> Response:
    headers = {f"X-Lorasynth-{name}": quote(value, safe=" ,:/") for name, value in facts.items()}
    headers["Content-Disposition"] = 'attachment; filename="lora.safetensors"'
    return Response(data, media_type=_LORA, headers=headers)


def _zipped(files: Sequence[bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for number, file in enumerate(files):
            archive.writestr(f"{number:03d}.png", file)
    return data.getvalue()
