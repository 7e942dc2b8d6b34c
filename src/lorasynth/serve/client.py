"""A client of the service, for Python programs."""

import io
import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import httpx

from lorasynth.core.errors import LorasynthError

#: A path, or the content of a file.
File: TypeAlias = Path | str | bytes


class ServiceError(LorasynthError):
    """The service refuses a request, with an HTTP status; 0: it does not answer.

    `retry_after` says after how many seconds it is worth another try; None: it is not.
    """

    def __init__(self, message: str, status: int = 0, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class LoraAnswer:
    """The content of a LoRA file, and what it is: model, format, trigger phrase, seed, ..."""

    data: bytes
    facts: dict[str, str]


class Client:
    """Calls a service.

    Options are the fields of the requests (see `/openapi.json`): `model`, `format`, `seed`,
    `strength`, `steps`, `guidance`, `temperature`, `face`, `attributes`, `edit` (by how much
    attributes rise), and `other` with `share`: photos of another subject, and how far to go towards
    it.  Every call raises `ServiceError` where the service refuses or does not answer.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = 90,
        http: Any = None,
    ) -> None:
        """Name the service.

        Args:
            url: of the service.
            key: of its API.
            timeout: seconds to wait for an answer.
            http: a client of httpx to use in place of a new one.
        """
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = http or httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def close(self) -> None:
        """Close its connections; `with` does."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def models(self) -> list[dict[str, Any]]:
        """The synthesizers that are served."""
        found: list[dict[str, Any]] = self._call("GET", "/v1/models").json()
        return found

    def lora(
        self,
        photos: Sequence[File] = (),
        *,
        lora: File | None = None,
        embedding: Sequence[float] | None = None,
        **options: Any,
    ) -> LoraAnswer:
        """A LoRA file of one subject, or of a LoRA file another that is changed."""
        return _lora(self._send("/v1/loras", photos, lora, embedding=embedding, **options))

    def images(
        self,
        prompts: Sequence[str],
        photos: Sequence[File] = (),
        *,
        lora: File | None = None,
        **options: Any,
    ) -> list[bytes]:
        """PNG files of one subject, one for each prompt; `embedding` may stand for photos."""
        answer = self._send("/v1/images", photos, lora, prompts=list(prompts), **options)
        if answer.headers["content-type"] == "image/png":
            return [answer.content]
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            return [archive.read(name) for name in sorted(archive.namelist())]

    def refine(self, photos: Sequence[File], *, lora: File | None = None, **options: Any) -> str:
        """Begin a job that trains a LoRA on with `refine_steps` on `caption`; its id."""
        return str(self._send("/v1/refine", photos, lora, **options).json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """How far a job is: `state`, `step`, `steps`, `error`."""
        found: dict[str, Any] = self._call("GET", f"/v1/jobs/{job_id}").json()
        return found

    def result(self, job_id: str, *, wait: float = 600) -> LoraAnswer:
        """The LoRA file that a job makes; waits for so many seconds."""
        end = time.monotonic() + wait
        while True:
            try:
                return _lora(self._call("GET", f"/v1/jobs/{job_id}/result"))
            except ServiceError as error:
                if error.retry_after is None or time.monotonic() > end:
                    raise
                time.sleep(error.retry_after)

    def cancel(self, job_id: str) -> None:
        """End a job, or forget it and its result."""
        self._call("DELETE", f"/v1/jobs/{job_id}")

    def _send(self, path: str, photos: Sequence[File], lora: File | None, **fields: Any) -> Any:
        fields = {name: value for name, value in fields.items() if value is not None}
        named = [("photos", photo) for photo in photos] + ([("lora", lora)] if lora else [])
        named += [("other", photo) for photo in fields.pop("other", ())]
        files = [
            (name, (name, one if isinstance(one, bytes) else Path(one).read_bytes()))
            for name, one in named
        ]
        if not files:
            return self._call("POST", path, json=fields)
        texts = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in fields.items()}
        return self._call("POST", path, data=texts, files=files)

    def _call(self, method: str, path: str, **content: Any) -> Any:
        try:
            answer = self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise ServiceError(f"the service does not answer ({error}): is it running?") from error
        if answer.is_success:
            return answer
        try:
            detail = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            detail = f"the service answers {answer.status_code}"
        after = answer.headers.get("retry-after", "")
        raise ServiceError(detail, answer.status_code, int(after) if after.isdecimal() else None)


def _lora(answer: Any) -> LoraAnswer:
    begin = "x-lorasynth-"
    ours = {name.lower(): value for name, value in answer.headers.items()}
    facts = {k.removeprefix(begin): unquote(v) for k, v in ours.items() if k.startswith(begin)}
    return LoraAnswer(answer.content, facts)
