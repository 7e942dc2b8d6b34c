"""Requests that nobody meant: no defect answers, and the service goes on."""

import random

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from .conftest import Start

pytestmark = pytest.mark.long


def test_requests_made_from_the_schema(start: Start) -> None:
    http = start()
    schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
    seen: dict[str, int] = {}
    for operation in schema.get_all_operations():
        strategy = operation.ok().as_strategy()

        @settings(
            max_examples=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def ask(case: schemathesis.Case) -> None:
            sent = requests.Request(
                **case.as_transport_kwargs(base_url="http://127.0.0.1")
            ).prepare()
            headers = {
                name: value for name, value in sent.headers.items() if name != "Content-Length"
            }
            answer = http.request(sent.method, sent.url, content=sent.body, headers=headers)
            seen[case.path] = seen.get(case.path, 0) + 1
            assert answer.status_code < 500, answer.text

        ask()
    assert sum(seen.values()) > 200
    assert http.get("/ready").status_code == 200


# Of a form that ends too early, Starlette lets go of its file, in memory, without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_random_bodies(start: Start, photos: list[bytes]) -> None:
    http, draw = start(body=1), random.Random(0)
    form = (
        b'--b\r\nContent-Disposition: form-data; name="photos"; filename="x"\r\n\r\n'
        + photos[0]
        + b'\r\n--b\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1\r\n--b--\r\n'
    )
    kinds = {"multipart/form-data; boundary=b": form, "application/json": b'{"embedding": [1, 2]}'}
    for number in range(600):
        kind = draw.choice(list(kinds))
        body = bytearray(kinds[kind])
        for _ in range(draw.randrange(1, 20)):
            at, size = draw.randrange(len(body)), draw.randrange(1, 40)
            choice = draw.randrange(3)
            if choice == 0:
                body[at : at + size] = draw.randbytes(size)
            elif choice == 1:
                del body[at : at + size]
            else:
                body[at:at] = draw.randbytes(size)
            body = body or bytearray(b"x")
        path = draw.choice(["/v1/loras", "/v1/images", "/v1/refine", "/v1/loras"])
        answer = http.post(path, content=bytes(body), headers={"content-type": kind})
        assert answer.status_code < 500, (number, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
    assert http.post("/v1/loras", files={"photos": photos[0]}).status_code == 200
