"""Bad input: one clear line as a problem document, the right status, and nothing left behind."""

import asyncio
import copy
import hashlib
import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from lorasynth.core.errors import ImageError
from lorasynth.serve.jobs import JobFile, KeptJob, open_jobs
from lorasynth.serve.requests import RefusedError
from lorasynth.serve.workers import Host

from .conftest import Inline, Start, png, written

KEY = "right"
HASH = hashlib.sha256(KEY.encode()).hexdigest()


def refused(answer: Any, status: int, *words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["type"] == "about:blank"
    assert document["title"]
    assert "\n" not in document["detail"]
    for word in words:
        assert word in document["detail"], document
    return document


def huge() -> bytes:
    """A hundred megapixels in a few bytes."""
    data = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(data, "PNG")
    return data.getvalue()


PHOTO = b"the photo"
FORMS: list[tuple[str, dict[str, Any], dict[str, Any], int, str]] = [
    ("no file", {}, {"seed": "1"}, 422, "photos: send one or several"),
    ("empty file", {"photos": b""}, {}, 422, "empty"),
    ("wrong type", {"photos": b"%PDF-1.7 and so on"}, {}, 422, "must be a whole image file"),
    ("text", {"photos": b"hello"}, {}, 422, "an image must be a whole image file"),
    ("truncated", {"photos": PHOTO[:4]}, {}, 422, "an image must be"),
    ("megapixels", {"photos": huge()}, {}, 422, "megapixels"),
    ("nobody", {"photos": png(Image.new("RGB", (64, 64), "green"))}, {}, 422, "finds none"),
    ("chosen face", {"photos": PHOTO}, {"face": "2"}, 422, "face chooses among faces"),
    ("unknown fact", {"photos": PHOTO}, {"attributes": '{"hat": "red"}'}, 422, "attributes"),
    ("facts that are none", {"photos": PHOTO}, {"attributes": "hat=red"}, 422, "attributes"),
    ("unknown model", {"photos": PHOTO}, {"model": "nobody"}, 404, "model must be one of"),
    ("path as a model", {"photos": PHOTO}, {"model": "../../etc"}, 404, "model must be one of"),
    ("unknown field", {"photos": PHOTO}, {"url": "http://x"}, 422, "'url' is no field"),
    ("unknown file", {"photos": PHOTO, "image": PHOTO}, {}, 422, "'image' is no field"),
    ("LoRA that is none", {"photos": PHOTO, "lora": PHOTO}, {}, 422, "a LoRA file must be"),
    ("text for a file", {}, {"photos": "/etc/passwd"}, 422, "'photos': is a file"),
    ("two seeds", {"photos": PHOTO}, {"seed": ["1", "2"]}, 422, "'seed': must be there once"),
    ("bad seed", {"photos": PHOTO}, {"seed": "-1"}, 422, "seed: input should be greater"),
    ("bad format", {"photos": PHOTO}, {"format": "peft"}, 422, "format: input should be"),
    ("strength that is none", {"photos": PHOTO}, {"strength": "nan"}, 422, "strength"),
]


@pytest.mark.parametrize(
    ("files", "fields", "status", "words"), [form[1:] for form in FORMS], ids=[f[0] for f in FORMS]
)
def test_a_form(
    start: Start,
    photos: list[bytes],
    files: dict[str, bytes],
    fields: dict[str, Any],
    status: int,
    words: str,
) -> None:
    sent = [(k, ("secret-name.png", photos[0] if v == PHOTO else v)) for k, v in files.items()]
    answer = start().post("/v1/loras", files=sent or [("none", ("", b""))], data=fields)
    document = refused(answer, status, *([words] if sent or fields.get("photos") else []))
    assert "secret-name" not in document["detail"]


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 422, "invalid JSON"),
        (b"{", 422, "invalid JSON"),
        (b"[" * 100_000, 422, "invalid JSON"),
        (b"[]", 422, "the request: input should be an object"),
        (b"{}", 422, "photos: send one"),
        (b'{"embedding": []}', 422, "must have 175 numbers"),
        (b'{"embedding": [1, 2]}', 422, "must have 175 numbers for synthesizer, but has 2"),
        (b'{"embedding": [NaN]}', 422, "embedding"),
        (b'{"embedding": [1e300]}', 422, "embedding.0: input should be less"),
        (b'{"embedding": "/etc/passwd"}', 422, "embedding"),
        (b'{"photos": ["/etc/passwd"]}', 422, "files are sent as multipart/form-data"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", 422, "number out of range"),
    ],
)
def test_json(start: Start, content: bytes, status: int, words: str) -> None:
    answer = start().post(
        "/v1/loras", content=content, headers={"content-type": "application/json"}
    )
    refused(answer, status, words)


def test_other_bodies_routes_and_methods(
    start: Start, photos: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    http = start(kinds=["loras"], photos=2, megapixels=1)
    refused(http.post("/v1/loras", content=b"x"), 415, "is not stated")
    refused(http.post("/v1/loras", data={"seed": "1"}), 415, "urlencoded")
    form = {"content-type": "multipart/form-data"}
    refused(http.post("/v1/loras", content=b"x", headers=form), 400)
    form = {"content-type": "multipart/form-data; boundary=b"}
    refused(http.post("/v1/loras", content=b"--b\r\nx", headers=form), 422, "photos: send one")
    refused(http.post("/v1/loras", content=b"--b\r\n\xfc: x", headers=form), 400)
    assert not [record for record in caplog.records if "multipart" in record.name]
    refused(http.get("/v1/lora"), 404)
    refused(answer := http.get("/v1/loras"), 405)
    assert answer.headers["allow"] == "POST"
    refused(http.post("/v1/loras", files=[("photos", photos[0])] * 3), 422, "photos: at most 2")
    refused(http.post("/v1/loras", files=[("photos", photos[0])] * 9), 400)
    refused(http.post("/v1/images", files={"photos": photos[0]}), 501, "no base model")


def test_prompts_and_loras_of_another_base(start: Start, host: Host, photos: list[bytes]) -> None:
    http = start()
    file = {"photos": photos[0]}
    refused(http.post("/v1/images", files=file), 422, "prompts: field required")
    refused(http.post("/v1/images", files=file, data={"prompts": ""}), 422, "prompts.0")
    many = {"prompts": ["sks"] * 9}
    refused(http.post("/v1/images", files=file, data=many), 422, "prompts: at most 8, but got 9")
    adapter = host.synthesizers["synthesizer"](photos[0])
    other = type(adapter.metadata)(base_fingerprint="f" * 16)
    alien = type(adapter)(adapter.factors, other, adapter.layout.kernels)
    asked = {"prompts": ["sks"], "image_steps": "1"}
    sent = {"lora": written("auto", alien)}
    refused(http.post("/v1/images", files=sent, data=asked), 422, "made for, ffffffffffffffff")
    foreign = type(adapter.metadata)(base_fingerprint="")
    wide = {m: type(f)(torch.ones(2, 9), torch.ones(7, 2)) for m, f in adapter.factors.items()}
    sent = {"lora": written("diffusers", type(adapter)(wide, foreign))}
    refused(http.post("/v1/images", files=sent, data=asked), 422)
    refused(http.post("/v1/refine", files=sent, data={}), 422, "photos: a LoRA is trained on")


class Broken(Inline):
    """A worker with a defect."""

    async def work(self, *_: Any) -> list[Any]:
        raise RuntimeError("the embedding is 0.123456789")


def test_an_error_of_ours_says_nothing_to_caller_or_log(
    start: Start, host: Host, photos: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    answer = start(worker=Broken(host)).post("/v1/loras", files={"photos": photos[0]})
    refused(answer, 500, "the service failed at this")
    assert "RuntimeError in" in caplog.text
    assert "0.123456789" not in caplog.text


def test_six_faces(start: Start, host: Host, photos: list[bytes], monkeypatch: Any) -> None:
    synthesizer = host.synthesizers["synthesizer"]
    finder = copy.copy(synthesizer.encoder)
    finder.finds_faces = True

    def see(photos: Any, *, names: Any = None, face: int | None = None) -> Any:
        if face is not None and face > 6:
            raise ImageError(f"--face {face} must be one of the 6 faces in {names[0]}")
        return synthesizer.encoder.see(photos)

    monkeypatch.setattr(finder, "see", see)
    monkeypatch.setitem(host.synthesizers, "synthesizer", replace(synthesizer, encoder=finder))
    http = start()
    sixth = http.post("/v1/loras", files={"photos": photos[0]}, data={"face": "6"})
    assert sixth.status_code == 200
    seventh = http.post("/v1/loras", files={"photos": photos[0]}, data={"face": "7"})
    refused(seventh, 422, "face 7 must be one of the 6 faces")


def test_keys(start: Start) -> None:
    http = start(keys=["0" * 64, HASH])
    for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
        answer = http.get("/v1/models", headers=wrong)
        refused(answer, 401, "Authorization: Bearer KEY")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert http.get("/metrics").status_code == 401
    assert http.get("/health").status_code == http.get("/openapi.json").status_code == 200


def test_rate(start: Start) -> None:
    http = start(rate="2/minute")
    assert [http.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
    answer = http.get("/v1/models")
    refused(answer, 429, "2/minute")
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert http.get("/health").status_code == 200


def test_pages_of_other_sites(start: Start) -> None:
    http = start()
    answer = http.post("/v1/loras", headers={"Origin": "http://evil.example"})
    refused(answer, 403)
    assert http.get("/v1/models", headers={"Origin": "http://127.0.0.1"}).status_code == 200
    refused(http.get("/v1/models", headers={"Host": "evil.example"}), 421)
    refused(http.get("/v1/models", headers={"Host": "[evil"}), 421)
    assert http.get("/v1/models", headers={"Host": "localhost:8000"}).status_code == 200


def test_headers_that_keep_browsers_from_harm(start: Start) -> None:
    headers = start().get("/v1/models").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "server" not in headers


def test_large_bodies_stated_or_not(start: Start) -> None:
    http = start(body=1, memory=1)
    refused(http.post("/v1/loras", content=b"x" * (1 << 20 | 1)), 413, "may have 1 MB")
    chunks = (b"x" * (1 << 18) for _ in range(8))
    refused(http.post("/v1/loras", content=chunks), 413)
    stated = {"content-length": "1" + "0" * 30, "content-type": "application/json"}
    refused(http.post("/v1/loras", content=b"x", headers=stated), 413)


class Slow(Inline):
    """A worker that takes its time, and knows what was cancelled."""

    async def work(self, kind: str, asked: Sequence[Any]) -> list[Any]:
        self.batches.append(len(asked))
        await asyncio.sleep(0.6)
        return await super().work(kind, asked)


def test_a_full_queue_and_time(start: Start, host: Host) -> None:
    body = {"embedding": [0.1] * 175}
    http = start(worker=Slow(host), queue=2, seconds=0.3)

    async def ask(count: int) -> list[httpx.Response]:
        transport = httpx.ASGITransport(http.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await asyncio.gather(
                *(client.post("/v1/loras", json=body) for _ in range(count))
            )

    async def run() -> tuple[list[httpx.Response], list[httpx.Response]]:
        return await ask(4), await ask(1)

    answers, later = asyncio.run(run())
    assert sorted(a.status_code for a in answers) == [429, 429, 503, 503]
    for answer in answers:
        refused(answer, answer.status_code)
        assert int(answer.headers["retry-after"]) >= 1
    assert later[0].status_code == 503  # places are free again


def scope(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "http_version": "1.1",
    }


def test_a_caller_that_goes_or_dawdles_leaves_nothing(start: Start, host: Host) -> None:
    worker = Slow(host)
    gate: Any = start(worker=worker, queue=1, upload_seconds=0.2).app
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    def receiving(*messages: dict[str, Any], then: float = 60) -> Any:
        waiting = list(messages)

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop(0)
            await asyncio.sleep(then)
            return {"type": "http.disconnect"}

        return receive

    part = {"type": "http.request", "body": b"{", "more_body": True}
    whole = {"type": "http.request", "body": b'{"embedding": ' + str([0.1] * 175).encode() + b"}"}
    json = (b"content-type", b"application/json")

    async def run() -> None:
        await gate(scope("/v1/loras", json), receiving(part, then=0), send)  # in the middle
        assert not sent
        await gate(scope("/v1/loras", json), receiving(part), send)  # slow
        assert sent[0]["status"] == 408
        sent.clear()
        began = time.monotonic()
        await gate(scope("/v1/loras", json), receiving(whole, then=0.1), send)  # while it waits
        assert time.monotonic() - began < 0.5
        assert not sent

    asyncio.run(run())
    assert gate._bytes == gate._in_progress == 0


def test_jobs_of_a_service_that_ended(start: Start, photos: list[bytes], kept: str) -> None:
    file = open_jobs(kept)
    for state in ("waiting", "running", "done"):
        job = KeptJob(id=state, steps=5, owner="address testclient", created=9e9, state=state)
        file.put(state, "job", job.model_dump_json())
    file.put("done", "result", b"the file")
    old = KeptJob(id="old", steps=5, owner="address testclient", created=0, state="done")
    file.put("old", "job", old.model_dump_json())
    file.close()
    http = start(kept=kept)
    for lost in ("waiting", "running"):
        job = http.get(f"/v1/jobs/{lost}").json()
        assert job["state"] == "failed"
        assert "restarted" in job["error"]
        refused(http.get(f"/v1/jobs/{lost}/result"), 409, "send them again")
    assert http.get("/v1/jobs/done/result").content == b"the file"
    http.post("/v1/refine", files={"photos": photos[0]}, data={"refine_steps": "1"})
    refused(http.get("/v1/jobs/old"), 404)


def test_a_full_disk(tmp_path: Path) -> None:
    file = JobFile(tmp_path / "jobs.sqlite")
    file._kept.execute("pragma max_page_count = 1")
    with pytest.raises(RefusedError, match="its disk is full") as refused:
        file.put("job", "result", bytes(1 << 20))
    file.close()
    assert refused.value.status == 507


def test_a_full_redis_and_one_that_is_away(start: Start, photos: list[bytes], redis: str) -> None:
    import redis as client

    http, asked = start(kept=redis), {"files": {"photos": photos[0]}, "data": {"refine_steps": "1"}}
    db = client.Redis.from_url(redis)
    db.config_set("maxmemory", "1")
    refused(http.post("/v1/refine", **asked), 507, "its Redis is full")
    db.shutdown(nosave=True)
    refused(http.post("/v1/refine", **asked), 503, "its Redis is away")
    refused(http.get("/v1/jobs/x"), 503, "its Redis is away")


def test_jobs_are_of_who_asked_for_them_and_not_too_many(
    start: Start, host: Host, photos: list[bytes]
) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    http = start(keys=[HASH, other], worker=Slow(host), jobs=1)
    mine, theirs = ({"Authorization": f"Bearer {key}"} for key in (KEY, "other"))
    asked = {"files": {"photos": photos[0]}, "data": {"refine_steps": "1"}}
    job = http.post("/v1/refine", headers=mine, **asked).json()["id"]
    answer = http.post("/v1/refine", headers=mine, **asked)
    refused(answer, 429, "1 jobs wait")
    assert int(answer.headers["retry-after"]) > 1
    assert http.get(f"/v1/jobs/{job}", headers=mine).status_code == 200
    for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/result"):
        refused(http.get(path, headers=theirs), 404)
    refused(http.delete(f"/v1/jobs/{job}", headers=theirs), 404)
