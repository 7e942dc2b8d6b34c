"""What each route makes, and that it is what the package makes without a service."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorasynth import Adapter
from lorasynth.adapter import map_factors, stack
from lorasynth.base import SamplingConfig
from lorasynth.images import as_photo
from lorasynth.serve import Client, ServiceError
from lorasynth.serve.workers import Host

from .conftest import Inline, Start, written

ASKED = {"prompts": ["a portrait of sks"], "image_steps": 2}


def loaded(folder: Path, data: bytes) -> Adapter:
    path = folder / "answer.safetensors"
    path.write_bytes(data)
    return Adapter.load(path)


def test_a_photo_becomes_the_file_that_synth_writes(
    start: Start, host: Host, photos: list[bytes], tmp_path: Path
) -> None:
    answer = Client(http=start()).lora([photos[0]])
    [written] = host.synthesizers["synthesizer"].write([photos[0]], [tmp_path / "me.safetensors"])
    assert answer.data == written.read_bytes()
    assert answer.facts == {
        "model": "synthesizer",
        "format": "kohya",
        "trigger-phrase": "sks",
        "base-fingerprint": host.base.fingerprint,
        "seed": "0",
        "strength": "1.1",
    }


def test_an_embedding_stands_for_photos_and_options_are_heard(
    start: Start, host: Host, photos: list[bytes], tmp_path: Path
) -> None:
    client, synthesizer = Client(http=start()), host.synthesizers["synthesizer"]
    embedding = synthesizer.embed([as_photo(photo)[0] for photo in photos[:2]])
    options = {"seed": 3, "strength": 0.5, "format": "diffusers", "steps": 2, "guidance": 1.5}
    by_photos = client.lora(photos[:2], **options)
    by_embedding = client.lora(embedding=embedding.tolist(), **options)
    assert by_photos.data == by_embedding.data
    assert by_photos.facts["strength"] == "0.55"
    mine, theirs = (
        loaded(tmp_path, by_photos.data),
        synthesizer(photos[:2], seed=3, steps=2, guidance=1.5),
    )
    for module, factor in theirs.scaled(0.5).factors.items():
        torch.testing.assert_close(
            mine.factors[module].B @ mine.factors[module].A, factor.B @ factor.A
        )
    assert mine.metadata.synthesised
    assert mine.metadata.extra["seed"] == "3"


def test_requests_share_a_batch_and_each_gets_its_own(
    start: Start, host: Host, photos: list[bytes], tmp_path: Path
) -> None:
    worker = Inline(host)
    client = Client(http=start(worker=worker))
    sent = [*photos, b"no photo", photos[0]]

    def ask(photo: bytes) -> bytes | int:
        try:
            return client.lora([photo]).data
        except ServiceError as error:
            return error.status

    with ThreadPoolExecutor(len(sent)) as pool:
        answers = list(pool.map(ask, sent))
    assert max(worker.batches) > 1
    assert answers[4] == 422
    del answers[4], sent[4]
    for photo, answer in zip(sent, answers, strict=True):
        alone = loaded(tmp_path, client.lora([photo]).data)
        for module, factor in loaded(tmp_path, answer).factors.items():
            other = alone.factors[module]
            torch.testing.assert_close(factor.B @ factor.A, other.B @ other.A, atol=1e-4, rtol=1e-3)


def test_images_of_many_users_are_one_batch(start: Start, host: Host, photos: list[bytes]) -> None:
    worker = Inline(host)
    client = Client(http=start(worker=worker))
    lora = client.lora([photos[1]], format="diffusers").data
    worker.batches.clear()
    with ThreadPoolExecutor(3) as pool:
        one = pool.submit(client.images, photos=[photos[0]], image_seed=4, **ASKED)
        two = pool.submit(client.images, lora=lora, **(ASKED | {"prompts": ["sks", "sks smiling"]}))
        bad = pool.submit(client.images, lora=b"no LoRA", **ASKED)
    assert sum(worker.batches) == 3
    assert max(worker.batches) > 1
    with pytest.raises(ServiceError, match="a LoRA file must be complete safetensors") as refused:
        bad.result()
    assert refused.value.status == 422
    assert "/" not in str(refused.value)  # no path of the server
    [mine], several = one.result(), two.result()
    assert len(several) == 2
    adapter = host.synthesizers["synthesizer"](photos[0])
    [theirs] = host.base.sample(
        ASKED["prompts"], [4], stack([adapter.factors]), SamplingConfig(steps=2)
    )
    difference = (as_photo(mine)[0].int() - theirs.int()).abs()
    assert difference.float().mean() < 1
    with Image.open(io.BytesIO(mine)) as image:
        assert image.info["DigitalSourceType"].endswith("trainedAlgorithmicMedia")
        assert b"trainedAlgorithmicMedia" in image.info["xmp"]


def test_ranks_of_files_may_differ(start: Start, host: Host, photos: list[bytes]) -> None:
    adapter = host.synthesizers["synthesizer"](photos[0])
    low = map_factors(lambda part: part, adapter.factors)
    low = {m: type(f)(f.A[:1], f.B[:, :1]) for m, f in low.items()}
    small = written("auto", type(adapter)(low, adapter.metadata, adapter.layout.kernels))
    client = Client(http=start())
    with ThreadPoolExecutor(2) as pool:
        files = [small, client.lora([photos[0]]).data]
        made = list(pool.map(lambda lora: client.images(lora=lora, **ASKED), files))
    assert made[0] != made[1]


def test_a_job_trains_on_and_its_result_is_kept(
    start: Start, photos: list[bytes], tmp_path: Path
) -> None:
    http = start()
    client = Client(http=http)
    lora = client.lora([photos[0]]).data
    job = client.refine([photos[0]], lora=lora, refine_steps=2)
    better = client.result(job)
    assert client.job(job) == {"id": job, "state": "done", "step": 2, "steps": 2, "error": ""}
    assert better.data != lora
    metadata = loaded(tmp_path, better.data).metadata
    assert metadata.synthesised
    before, after = (float(metadata.extra[f"similarity_{when}"]) for when in ("before", "after"))
    assert -1 <= before <= after <= 1
    assert better.facts["similarity-after"] == metadata.extra["similarity_after"]
    client.cancel(job)
    with pytest.raises(ServiceError, match="no such job"):
        client.result(job)


def test_a_running_job_is_cancelled(start: Start, photos: list[bytes]) -> None:
    client = Client(http=start())
    job = client.refine([photos[0]], refine_steps=500)
    while client.job(job)["step"] == 0:
        time.sleep(0.05)
    client.cancel(job)
    while client.job(job)["state"] == "running":
        time.sleep(0.05)
    assert client.job(job)["state"] == "cancelled"
    with pytest.raises(ServiceError, match="the job was cancelled") as refused:
        client.result(job)
    assert refused.value.status == 409


def test_what_is_served_is_told(start: Start, host: Host) -> None:
    http = start()
    [model] = http.get("/v1/models").json()
    assert model["embedding_width"] == host.synthesizers["synthesizer"].encoder.width
    assert model["trigger_phrase"] == "sks"
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready"}
    figures = http.get("/metrics").text
    assert 'lorasynth_requests_total{route="/v1/models",status="200"} 1.0' in figures


def test_openapi_says_what_is_sent_and_what_comes(start: Start) -> None:
    stated = start().get("/openapi.json").json()
    assert set(stated["paths"]) == {
        *("/health", "/ready", "/metrics", "/v1/models", "/v1/loras", "/v1/images", "/v1/refine"),
        *("/v1/jobs/{job_id}", "/v1/jobs/{job_id}/result"),
    }
    for path, methods in stated["paths"].items():
        for method in methods.values():
            assert method["summary"], path
    body = stated["paths"]["/v1/images"]["post"]["requestBody"]["content"]
    form, plain = (body[kind]["schema"]["properties"] for kind in body)
    assert form["photos"]["items"] == {"type": "string", "format": "binary"}
    assert "embedding" in plain
    assert "photos" not in plain
    for name, field in form.items():
        assert field.get("description"), name
