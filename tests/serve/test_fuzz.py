"""Requests that nobody meant, to a service in a process of its own: no defect answers, it goes on.

`LORASYNTH_FUZZ=10000 pytest -m long -s tests/serve/test_fuzz.py` sends so many, and prints what was
answered.
"""

import io
import json
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image

from lorasynth.images.files import readable_formats
from lorasynth.serve import Client
from lorasynth.serve.requests import AskedImages, AskedRefine

from .conftest import Service, serving

pytestmark = pytest.mark.long

#: Of each of the two tests.
REQUESTS = int(os.environ.get("LORASYNTH_FUZZ", "1000")) // 2

MAKING = ["/v1/loras", "/v1/images", "/v1/refine"]
FIELDS = [*AskedImages.model_fields, *AskedRefine.model_fields, "url", "Seed", ""]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = ("--limits.body", "1", "--limits.rate", "1000000/minute", "--limits.jobs", "1")
    options += ("--limits.megapixels", "1", "--limits.upload-seconds", "0.5")
    with serving(tmp_path_factory.mktemp("service"), *options) as service:
        yield service


def ends_well(service: Service, answers: Counter[Any], photo: bytes) -> None:
    """Nothing failed at any request, nothing died, and the next one is answered."""
    print(f"{sum(answers.values())} requests:", dict(sorted(answers.items(), key=str)))
    wrong = [one for one in answers if one[1] >= 500 and one[1] not in (503, 507)]
    assert not wrong, service.log.decode()
    with Client(service.address) as client:
        assert client.lora([photo]).data
    lines = [line for line in service.log.splitlines() if not line.endswith(b": loading")]
    assert len(lines) == 1, service.log  # where it serves: no error, and no worker that died


def test_requests_made_from_the_schema(service: Service, photos: list[bytes]) -> None:
    http, answers = requests.Session(), Counter[Any]()
    stated = http.get(f"{service.address}/openapi.json").json()
    for mode in schemathesis.GenerationMode:
        for operation in schemathesis.openapi.from_dict(stated).get_all_operations():
            strategy = operation.ok().as_strategy(generation_mode=mode)

            @settings(
                max_examples=REQUESTS // 10,  # five take something, that is right or wrong
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def ask(case: schemathesis.Case) -> None:
                answer = case.call(base_url=service.address, session=http, timeout=90)
                answers[case.path, answer.status_code] += 1

            with suppress(Unsatisfiable):  # of what takes nothing, nothing is wrong
                ask()
        for path in stated["paths"].values():  # schemathesis makes no wrong files
            if "post" in path:
                path["post"]["requestBody"]["content"].pop("multipart/form-data", None)
    ends_well(service, answers, photos[0])


def damaged(data: bytes, draw: random.Random) -> bytes:
    """With bytes that are other ones, left out or put in, or cut off."""
    body = bytearray(data)
    for _ in range(draw.choice([1, 2, 20])):
        at, size = draw.randrange(len(body) + 1), draw.randrange(1, 40)
        body[at : at + draw.choice([0, size])] = draw.randbytes(draw.choice([0, size]))
    return bytes(body[: draw.choice([len(body), draw.randrange(len(body) + 1)])])


def anything(draw: random.Random, depth: int = 0) -> Any:
    """A value of JSON, and what Python's reader takes for one."""
    most = 8 if depth < 4 else 6
    return [
        lambda: draw.choice([None, True, float("nan"), float("inf"), -1, 0, 2**80, 1e308]),
        lambda: draw.randrange(-5, 40),
        lambda: draw.uniform(-3, 3),
        lambda: draw.choice(["", "sks", "/etc/passwd", "\0", "\ud800", "x" * 2000, "[" * 500]),
        lambda: [draw.uniform(-1, 1) for _ in range(175)],
        lambda: draw.choice(["kohya", "synthesizer", "glasses", '{"glasses": 1}', "1e999"]),
        lambda: [anything(draw, depth + 1) for _ in range(draw.randrange(12))],
        lambda: {draw.choice(FIELDS): anything(draw, depth + 1) for _ in range(4)},
    ][draw.randrange(most)]()


class Nonsense:
    """Requests as bytes that go over the line, of several kinds."""

    def __init__(self, photo: bytes, lora: bytes, draw: random.Random) -> None:
        self.draw, self.photo, self.lora = draw, photo, lora
        self.files = [photo, lora]
        for name in readable_formats():
            with Image.open(io.BytesIO(photo)) as image:
                image.convert("RGB").save(data := io.BytesIO(), name)
            self.files.append(data.getvalue())

    def _sent(self, body: bytes, *headers: str, line: str = "") -> bytes:
        first = line or f"POST {self.draw.choice(MAKING)} HTTP/1.1"
        size = f"Content-Length: {len(body)}"
        lines = [first, "Host: 127.0.0.1", "Connection: close", size, *headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body

    def _form(self, *parts: tuple[str, bytes]) -> bytes:
        name = 'Content-Disposition: form-data; name="{}"'
        whole = b""
        for field, data in parts:
            is_file = field in ("photos", "lora", "other")
            more = '; filename="x"' if is_file else ""
            whole += (
                f"--b\r\n{name.format(field)}{more}\r\n\r\n".encode("utf-8", "replace")
                + data
                + b"\r\n"
            )
        return whole + b"--b--\r\n"

    def broken_multipart(self) -> bytes:
        form = self._form(("photos", self.photo), ("seed", b"1"), ("prompts", b"sks"))
        return self._sent(damaged(form, self.draw), "Content-Type: multipart/form-data; boundary=b")

    def damaged_file(self) -> bytes:
        name = self.draw.choice(["photos", "photos", "lora", "other"])
        parts = [(name, damaged(self.draw.choice(self.files), self.draw)), ("image_steps", b"1")]
        parts += [("photos", self.photo)] * self.draw.randrange(2)
        form = self._form(*parts, ("prompts", b"sks"))
        return self._sent(form, "Content-Type: multipart/form-data; boundary=b")

    def odd_fields(self) -> bytes:
        odd = [
            (self.draw.choice(FIELDS), json.dumps(anything(self.draw)).encode()) for _ in range(3)
        ]
        form = self._form(("photos", self.photo), *odd, ("image_steps", b"1"))
        return self._sent(form, "Content-Type: multipart/form-data; boundary=b")

    def random_json(self) -> bytes:
        value = {self.draw.choice(FIELDS): anything(self.draw) for _ in range(4)}
        if self.draw.random() < 0.5:
            value |= {"embedding": [0.1] * 175, "image_steps": 1}
        body = json.dumps(self.draw.choice([value, value, anything(self.draw)])).encode()
        body = damaged(body, self.draw) if self.draw.random() < 0.3 else body
        return self._sent(body, "Content-Type: application/json")

    def wrong_content_type(self) -> bytes:
        kind = self.draw.choice(
            ["application/json", "multipart/form-data", "text/plain", "image/png"]
        )
        more = self.draw.choice(
            ["", "; boundary=", ";boundary=x", "; charset=utf-16", ";;;", "/" * 90]
        )
        body = self.draw.choice([self.photo, self.lora, b"{}", b"", self.draw.randbytes(500)])
        return self._sent(body, f"Content-Type: {kind}{more}", "Content-Encoding: gzip")

    def headers(self) -> bytes:
        text = "".join(chr(self.draw.randrange(33, 256)) for _ in range(30))
        size = self.draw.choice([10, 1000, 70_000, 300_000])
        known = "Host Origin Content-Length Content-Type Cookie Authorization Expect Upgrade Range"
        known = [*known.split(), "Transfer-Encoding", "X-Forwarded-For", text, "X-" + "a" * size]
        name = self.draw.choice(known)
        value = self.draw.choice(
            ["x" * size, text, "chunked", "-1", "9" * 30, "100-continue", "", "[::"]
        )
        many = [f"X-{number}: {value[:50]}" for number in range(self.draw.choice([0, 0, 2000]))]
        return self._sent(b"{}", f"{name}: {value}", *many)

    def lines(self) -> bytes:
        more = "/ready /metrics /v1/models /v1/jobs/x /v1/jobs/x/result /ui/"
        paths = [*MAKING, *more.split()]
        odd = quote(self.draw.randbytes(9)) + self.draw.choice(
            ["", "/..", "//", "%00", "?a=%ff&a", "#"]
        )
        path = self.draw.choice(paths) + self.draw.choice(["", "/", odd, "/" + odd, "x" * 9000])
        method = self.draw.choice(
            [*["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT"], "X"]
        )
        kind = self.draw.choice(["1.1", "1.1", "1.0", "2.0", "0.9", "x"])
        return self._sent(self.draw.randbytes(20), line=f"{method} {path} HTTP/{kind}")

    def no_http(self) -> bytes:
        whole = self.draw.choice([self.broken_multipart, self.random_json, self.lines])()
        return damaged(whole, self.draw)


def answered(address: str, sent: bytes, stays: bool) -> int:
    """Status of the answer to such bytes of who stays or goes; 0: closed without an answer."""
    where = urlsplit(address)
    with socket.create_connection((where.hostname, where.port), timeout=90) as line:
        try:
            line.sendall(sent)
            if not stays:
                line.shutdown(socket.SHUT_WR)
            answer = line.makefile("rb").readline()
        except (BrokenPipeError, ConnectionResetError):
            return 0  # refused before all of it was sent
    return int(answer.split()[1]) if answer else 0


def test_random_bodies(service: Service, photos: list[bytes]) -> None:
    answers, draw = Counter[Any](), random.Random(0)
    with Client(service.address) as client:
        lora = client.lora([photos[0]]).data
    one = Nonsense(photos[0], lora, draw)
    kinds: list[Callable[[], bytes]] = [
        one.broken_multipart,
        one.damaged_file,
        one.odd_fields,
        one.random_json,
        one.wrong_content_type,
        one.headers,
        one.lines,
        one.no_http,
    ]
    for number in range(REQUESTS):
        kind = kinds[number % len(kinds)]
        answers[kind.__name__, answered(service.address, kind(), kind != one.no_http)] += 1
    ends_well(service, answers, photos[0])
