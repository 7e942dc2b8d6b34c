"""Adapters that are changed by a request, and images that are compared with the photos."""

from pathlib import Path

import pytest

from lorasynth import Adapter
from lorasynth.edit import LatentSpace
from lorasynth.serve import Client, ServiceError
from lorasynth.serve.config import Setup
from lorasynth.serve.workers import Host

from .conftest import Start, written
from .test_routes import ASKED, loaded


def same(mine: Adapter, theirs: Adapter) -> bool:
    update = {m: (f.B @ f.A).double() for m, f in theirs.factors.items()}
    return all(
        float(((mine.factors[m].B @ mine.factors[m].A).double() - w).norm()) <= 1e-4 * w.norm()
        for m, w in update.items()
    )


@pytest.fixture
def space(host: Host) -> LatentSpace:
    return host.spaces["synthesizer"]


def test_an_attribute_is_changed_as_edit_changes_it(
    start: Start, host: Host, space: LatentSpace, photos: list[bytes], tmp_path: Path
) -> None:
    answer = Client(http=start()).lora([photos[0]], edit={"glasses": 1.5, "hair:red": -0.5})
    first = host.synthesizers["synthesizer"](photos[0])
    moved = space.moved(first, space.direction({"glasses": 1.5, "hair:red": -0.5}))
    mine = loaded(tmp_path, answer.data)
    assert same(mine, moved)
    assert not same(mine, first)
    assert answer.facts["edited"] == "glasses=+1.5 hair:red=-0.5"
    assert mine.metadata.extra["edited"] == answer.facts["edited"]


def test_a_file_is_changed_too_and_an_end_of_the_way_is_the_other_subject(
    start: Start, host: Host, space: LatentSpace, photos: list[bytes], tmp_path: Path
) -> None:
    client, synthesizer = Client(http=start()), host.synthesizers["synthesizer"]
    one, two = (synthesizer(photo) for photo in photos[:2])
    file = written("diffusers", one)
    for share in (0.0, 0.25, 1.0):
        answer = client.lora([], lora=file, other=[photos[1]], share=share)
        [between] = space.between(one, two, [share])
        assert same(loaded(tmp_path, answer.data), between)
        assert answer.facts["interpolated"] == f"{share:g}"


def test_images_say_how_similar_they_are_to_the_photos(start: Start, photos: list[bytes]) -> None:
    http = start()
    client = Client(http=http)
    lora = client.lora([photos[0]]).data
    fields = {"prompts": ["a portrait of sks"] * 2, "image_steps": 20}

    def similarity(photo: bytes) -> list[float]:
        files = [("photos", photo), ("lora", lora)]
        answer = http.post("/v1/images", data=fields, files=files)
        return [float(part) for part in answer.headers["x-lorasynth-similarity"].split(",")]

    own, others = similarity(photos[0]), similarity(photos[1])
    assert len(own) == 2
    assert min(own) > 0.4 > max(others)
    answer = http.post("/v1/images", data=ASKED, files=[("lora", lora)])
    assert "x-lorasynth-similarity" not in answer.headers


def test_what_cannot_be_changed_is_refused(
    start: Start, host: Host, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    http = start()
    client = Client(http=http)
    for more, line in (
        ({"edit": {"wings": 1}}, "an attribute must be one of"),
        ({"edit": {"glasses": 99}}, "edit.glasses"),
        ({"other": [b"no photo"]}, "of the other subject"),
        ({"other": [b""]}, "a file is empty"),
        ({"lora": b"no LoRA"}, "the LoRA file"),
        ({"share": 2}, "share"),
    ):
        with pytest.raises(ServiceError, match=line) as refused:
            client.lora([photos[0]], **more)
        assert refused.value.status == 422
    files = [("photos", photos[0]), *[("other", photos[1])] * 9]
    assert "other: at most 8" in http.post("/v1/loras", files=files).json()["detail"]
    monkeypatch.setattr(host, "spaces", {})
    with pytest.raises(ServiceError, match="it has no library") as refused:
        client.lora([photos[0]], edit={"glasses": 1})
    assert refused.value.status == 501


def test_a_library_of_no_synthesizer_is_refused_if_it_was_asked_for() -> None:
    with pytest.raises(Exception, match="a library of latents must be of the synthesizer's codec"):
        Host("loras", Setup(synthesizers=("bundle/pretrained",), library="bundle/library"))
    assert not Host("loras", Setup(synthesizers=("bundle/pretrained",))).spaces


def test_a_library_that_fits_offers_its_attributes(start: Start) -> None:
    [model] = start().get("/v1/models").json()
    assert {"glasses", "facial_hair", "hair:red"} <= set(model["edits"])
