"""What stands before the application: keys, and limits on rate, size, number and time."""

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorasynth.core.errors import ConfigError, escaped
from lorasynth.serve.config import PAGE, Limits
from lorasynth.serve.requests import RefusedError, in_time
from lorasynth.serve.workers import note

#: What needs no key, since it says nothing of anybody.
OPEN = ("/health", "/ready", "/openapi.json")

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
#: What the page's program may do: nothing that asks another server for anything.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; base-uri 'self'; "
    "frame-ancestors 'none'"
)
#: The routes of Gradio that the page needs; others fetch addresses, keep runs or edit programs.
_PAGE_ROUTES = re.compile(
    PAGE + r"/((assets|static)/.*|config|theme\.css|gradio_api/(info|startup-events|upload|queue/"
    r"(join|data)|heartbeat/\w+|reset|cancel|file=.*|upload_progress))?"
)
_KEY_LINE = re.compile(r"\S+\s+([0-9a-f]{64})")


def new_key(name: str) -> tuple[str, str]:
    """A key that nobody can guess, and the line that lets it in.

    Raises:
        ConfigError: the name cannot begin a line.
    """
    if not name or name.split() != [name] or name.startswith("#"):
        raise ConfigError(f"--new-key must be a name without spaces, but is {name!r}")
    key = secrets.token_urlsafe(32)
    return key, f"{name} {_hash(key)}"


def _hash(key: str) -> str:
    # Keys are random and long, so a hash that is slow to compute would add nothing.
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path | None) -> list[str]:
    """The hashes of keys: a file has a line for each, a name and the hash.

    Raises:
        ConfigError: the file cannot be read, is empty, or has another line.
    """
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--keys must be a text file, but {path} is not ({error})") from error
    found = [_KEY_LINE.fullmatch(line) for line in lines if line and not line.startswith("#")]
    if not found or None in found:
        raise ConfigError(
            f"each line of {path} must be a name and the hash of a key, and there must be one: "
            "lorasynth serve --new-key NAME prints such a line"
        )
    return [match[1] for match in found if match]


class Figures:
    """What Prometheus is told; it says nothing of any one request."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        more: dict[str, Any] = {"registry": self.registry}
        self.answers = Counter("lorasynth_requests", "Answers.", ["route", "status"], **more)
        self.seconds = Histogram("lorasynth_seconds", "Until the answer.", ["route"], **more)
        sizes = {"buckets": (1, 2, 4, 8, 16, 32, 64, 128), **more}
        self.batches = Histogram("lorasynth_batch_size", "In a batch.", ["kind"], **sizes)
        self.places = Gauge("lorasynth_requests_in_progress", "Requests in progress.", **more)
        self.jobs = Gauge("lorasynth_jobs_waiting", "Jobs that are not done.", **more)


def problem(
    status: int, detail: str, retry_after: int | None = None, headers: Any = None
) -> JSONResponse:
    """A problem document (https://www.rfc-editor.org/rfc/rfc9457): one line says what is wrong."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    headers = dict(headers or {})
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    content = {**document, "detail": escaped(detail)[:2000]}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


class Gate:
    """ASGI middleware around the whole application; it reads bodies, so that all are bounded."""

    def __init__(self, app: ASGIApp, limits: Limits, keys: Sequence[str], figures: Figures) -> None:
        """Put it before an application.

        Args:
            app: the application.
            limits: of requests.
            keys: hashes; none: whoever is on this machine is let in.
            figures: to count in.

        Raises:
            ConfigError: the rate cannot be read.
        """
        self.app, self.limits, self._keys, self._figures = app, limits, keys, figures
        try:
            self._rate = parse(limits.rate)
        except ValueError as error:
            line = f"--limits.rate must be such as 600/minute, but is {limits.rate!r}"
            raise ConfigError(line) from error
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._bytes = self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        answer = _Answer(scope, send)
        try:
            async with in_time(self.limits.seconds) as answer.limit:
                await self._let_in(scope, receive, answer)
        except RefusedError as error:
            await answer.unless_begun(error.status, error.detail, error.retry_after)
        except _GoneError:
            answer.status = 499  # as proxies note it; nobody sees it
        except Exception as error:
            note(error)
            await answer.unless_begun(500, "the service failed at this")
        route = getattr(scope.get("route"), "path", "-")
        self._figures.answers.labels(route, str(answer.status)).inc()
        self._figures.seconds.labels(route).observe(time.perf_counter() - start)

    async def _let_in(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        headers, seconds = Headers(scope=scope), self.limits.upload_seconds
        self._require_known_page(headers)
        if _is_page(scope) and not _PAGE_ROUTES.fullmatch(scope["path"]):
            raise RefusedError(404, "the page has no such part")
        scope.setdefault("state", {})["owner"] = self._owner(scope, headers)
        works, size = scope["method"] == "POST", self._size(scope, headers)
        if works and self._in_progress >= self.limits.queue:
            raise RefusedError(429, f"{self._in_progress} requests are in progress: wait", 1)
        if self._bytes + size > self.limits.memory << 20:
            raise RefusedError(429, "requests in progress fill the memory: wait", 1)
        self._in_progress += works
        self._bytes += size
        self._figures.places.set(self._in_progress)
        try:
            async with asyncio.timeout(seconds) as upload:
                body = await _body(receive, size)
                upload.reschedule(None)
                if _is_page(scope):  # which itself sees to what ends when its caller goes
                    await self.app(scope, _replayed(body, receive), answer)
                else:
                    await _until_gone(self.app(scope, _replayed(body), answer), receive)
        except TimeoutError:
            if not upload.expired():
                raise
            detail = f"a request must be there within {seconds:g} s: send less"
            raise RefusedError(408, detail) from None
        finally:
            self._in_progress -= works
            self._bytes -= size
            self._figures.places.set(self._in_progress)

    def _size(self, scope: Scope, headers: Headers) -> int:
        """Bytes to keep free for a body: as many as it has, or else as it may have.

        Raises:
            RefusedError: it has more.
        """
        stated, most = headers.get("content-length", ""), self.limits.body << 20
        if not stated.isdecimal():
            return most if scope["method"] == "POST" or "transfer-encoding" in headers else 0
        if len(stated) > 18 or int(stated) > most:
            raise _too_large(most)
        return int(stated)

    def _require_known_page(self, headers: Headers) -> None:
        """Let no other site's page, in the browser of somebody on this machine, have work done.

        Raises:
            RefusedError: a page does, by its address, or by a name that it had made to point here.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            known = bool(self._keys) or urlsplit(f"//{host}").hostname in LOOPBACK
            same = origin is None or urlsplit(origin).netloc == host
        except ValueError:
            known = same = False
        if not known:
            raise RefusedError(421, "without keys a request must be to 127.0.0.1 or localhost")
        if not same:
            raise RefusedError(403, "pages of other sites may not ask: call from a server of yours")

    def _owner(self, scope: Scope, headers: Headers) -> str:
        """Whose request it is, and who is counted for the rate.

        Raises:
            RefusedError: the key is wrong, or it is one request too many.
        """
        if scope["path"] in OPEN:
            return ""
        who, known = f"address {(scope.get('client') or [''])[0]}", not self._keys
        scheme, _, key = headers.get("authorization", "").partition(" ")
        page = _is_page(scope)
        mine = _hash(_password(key) if page else key.strip())
        for other in self._keys:  # all are compared, each in constant time
            if hmac.compare_digest(mine, other) and scheme.lower() == (
                "basic" if page else "bearer"
            ):
                who, known = other, True
        if page and known and scope["method"] != "POST":  # a page has many parts
            return who
        if not self._limiter.hit(self._rate, who):
            reset = self._limiter.get_window_stats(self._rate, who).reset_time - time.time()
            detail = f"requests may come at {self.limits.rate}: wait"
            raise RefusedError(429, detail, max(1, round(reset)))
        if not known:
            raise RefusedError(401, "a request must have the header Authorization: Bearer KEY")
        return who


def _is_page(scope: Scope) -> bool:
    return str(scope["path"]).startswith(f"{PAGE}/")


def _password(text: str) -> str:
    """The key, which browsers send as a password, with any name before it."""
    try:
        return base64.b64decode(text).decode().partition(":")[2].strip()
    except ValueError:
        return ""


def _too_large(most: int) -> RefusedError:
    detail = f"a request may have {most >> 20} MB: send fewer or smaller photos"
    return RefusedError(413, detail)


async def _body(receive: Receive, most: int) -> bytes:
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_large(most)
        if not message.get("more_body"):
            return b"".join(parts)


class _GoneError(Exception):
    """The caller has gone."""


class _Answer:
    """Sends an answer with the headers that all have, and knows how far it is."""

    limit: asyncio.Timeout

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self.status, self._begun = 500, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            if headers.get("content-type", "").startswith("text/event-stream"):
                self.limit.reschedule(None)  # what it tells of has limits of its own
            if _is_page(self._scope):
                headers["Content-Security-Policy"] = _PAGE_POLICY
                if self.status == HTTPStatus.UNAUTHORIZED:
                    headers["WWW-Authenticate"] = 'Basic realm="API key, as the password"'
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def unless_begun(self, status: int, detail: str, retry_after: int | None = None) -> None:
        """Send a problem, where no answer has begun."""
        if not self._begun:
            await problem(status, detail, retry_after)(self._scope, _replayed(b""), self)


def _replayed(body: bytes, rest: Receive | None = None) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        if rest is not None:
            return await rest()
        return await asyncio.Future[Message]()  # whether the caller is there is seen to elsewhere

    return receive


async def _until_gone(answering: Any, receive: Receive) -> None:
    """Answer, but no longer than the caller waits."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(answering), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise _GoneError
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
