"""The page without a browser: what it sends, and what its fields do, asked for as browsers do."""

import base64
import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lorasynth import Adapter
from lorasynth.serve.config import PAGE
from lorasynth.serve.gate import new_key, read_keys
from lorasynth.serve.workers import Host

from .conftest import Start, written
from .test_routes import loaded

pytest.importorskip("gradio")
# Gradio leaves event loops open, which are collected when they are.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
API = f"{PAGE}/gradio_api"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the page keeps files, as `lorasynth ui` sets it."""
    (tmp_path / "kept").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    yield tmp_path / "kept"
    gc.collect()


@pytest.fixture
def visitor(start: Start, folder: Path) -> "Iterator[Visitor]":
    visitor = Visitor(start(page=folder))
    yield visitor
    visitor.leave()


class Visitor:
    """A browser's part: fields hold values, and buttons call functions with them."""

    def __init__(self, http: TestClient) -> None:
        self.http = http
        self.config = http.get(f"{PAGE}/config").json()
        self.parts = {part["id"]: part for part in self.config["components"]}
        self.values = {key: part["props"].get("value") for key, part in self.parts.items()}

    def find(self, label: str) -> int:
        """The number of the field or button that is called so."""
        for key, part in self.parts.items():
            props = part["props"]
            if label in (props.get("label"), props.get("value")) and part["type"] != "tabitem":
                return int(key)
        raise AssertionError(label)

    def fill(self, label: str, value: Any) -> None:
        self.values[self.find(label)] = value

    def send(self, *files: bytes, name: str = "me.png") -> list[dict[str, Any]]:
        """Upload files, as fields hold them."""
        paths = self.http.post(f"{API}/upload", files=[("files", (name, one)) for one in files])
        meta = {"_type": "gradio.FileData"}
        return [{"path": path, "orig_name": name, "meta": meta} for path in paths.json()]

    def photos(self, *files: bytes, label: str = "Photos of one person or subject") -> None:
        items = [{"image": one, "caption": None} for one in self.send(*files)]
        self.fill(label, items)
        self.call(self.find(label), "upload")

    def press(self, label: str) -> list[str]:
        """Press a button; what the page says and shows then, in the order of its parts."""
        return self.call(self.find(label), "click")

    def call(self, part: int, event: str) -> list[str]:
        [function] = [f for f in self.config["dependencies"] if [part, event] in f["targets"]]
        body = {
            "data": [self.values[key] for key in function["inputs"]],
            "fn_index": function["id"],
            "session_hash": "visitor",
        }
        joined = self.http.post(f"{API}/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        told = self.http.get(f"{API}/queue/data", params={"session_hash": "visitor"}).text
        lines = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
        self.told = lines
        [last] = [line for line in lines if line["msg"] == "process_completed"]
        self.done = last["success"]
        for key, value in zip(function["outputs"], last["output"].get("data", ()), strict=False):
            update = isinstance(value, dict) and value.get("__type__") == "update"
            self.values[key] = value.get("value", self.values[key]) if update else value
        return [str(self.values[key]) for key in function["outputs"]]

    def file(self, label: str) -> bytes:
        """What a button to download gives."""
        part = self.find(label)
        answer = self.http.get(self.values[part]["url"])
        assert answer.status_code == 200, answer.text
        return answer.content

    def leave(self) -> None:
        """Close the page."""


def test_the_page_asks_no_other_server(visitor: Visitor) -> None:
    home = visitor.http.get("/")
    assert home.url.path == f"{PAGE}/"
    policy = home.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    loads = re.findall(r'<(?:script|link)[^>]*?(?:src|href)="([^"]*)"', home.text)
    assert loads
    assert not [one for one in loads if one.startswith(("http", "//"))]
    assert visitor.config["analytics_enabled"] is False


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/proxy=https://example.com/",
        f"{API}/vibe-code/",
        f"{API}/runs",
        f"{PAGE}/monitoring",
        f"{API}/deep_link?session_hash=visitor",
        f"{API}/openapi.json",
    ],
)
def test_what_the_page_does_not_need_is_shut(visitor: Visitor, path: str) -> None:
    assert visitor.http.get(path).status_code == 404


def test_nothing_is_fetched_or_read_by_name(visitor: Visitor, folder: Path) -> None:
    for path in ("https://example.com/me.png", str(Path(__file__)), "/etc/passwd"):
        meta = {"_type": "gradio.FileData"}
        item = {"image": {"path": path, "meta": meta}, "caption": None}
        visitor.fill("Photos of one person or subject", [item])
        visitor.call(visitor.find("Photos of one person or subject"), "upload")
        assert not visitor.done
        assert visitor.http.get(f"{API}/file={path}").status_code in (403, 404)
    assert not [one for one in folder.rglob("*") if one.is_file()]


def test_a_photo_becomes_a_file_and_images(
    visitor: Visitor, host: Host, photos: list[bytes], tmp_path: Path
) -> None:
    visitor.photos(photos[0])
    visitor.fill("Images to make: a prompt a line", "a portrait of sks\n\n  sks smiling \n")
    visitor.fill("Seed", 3)
    said, shown, *_ = visitor.press("Make the LoRA")
    assert "LoRA made in" in said
    assert "2 images in" in said
    assert re.search(r"Similarity to the photos 0\.\d\d of 1", said)
    images = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', shown)
    assert [alt.strip() for _, alt in images] == ["a portrait of sks", "sks smiling"]
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data, _ in images)
    [file] = host.synthesizers["synthesizer"].write(
        [photos[0]], [tmp_path / "a.safetensors"], seed=3
    )
    assert visitor.file("Download the LoRA file") == file.read_bytes()


def test_it_is_changed_as_the_fields_say(
    visitor: Visitor, photos: list[bytes], tmp_path: Path
) -> None:
    visitor.photos(photos[0])
    visitor.photos(photos[1], label="Photos of the second person")
    visitor.fill("Images to make: a prompt a line", "")
    visitor.fill("Share of the second person", 0.25)
    visitor.fill("glasses", 1)
    visitor.fill("give it", ["top:bob"])
    assert "LoRA made" in visitor.press("Make the LoRA")[0]
    extra = loaded(tmp_path, visitor.file("Download the LoRA file")).metadata.extra
    assert extra["interpolated"] == "0.25"
    assert extra["edited"] == "glasses=+1 top:bob=+1"


def test_refining_shows_before_and_after(
    visitor: Visitor, photos: list[bytes], tmp_path: Path
) -> None:
    assert "make one first" in visitor.press("Refine on the photos")[0]
    visitor.photos(photos[0])
    visitor.fill("Images to make: a prompt a line", "a portrait of sks")
    visitor.press("Make the LoRA")
    visitor.fill("Steps of training", 10)
    said, shown, _ = visitor.press("Refine on the photos")
    assert "Refined in" in said
    assert shown.index("<b>Before</b>") < shown.index("<b>After</b>")
    extra = loaded(tmp_path, visitor.file("Download the refined LoRA file")).metadata.extra
    assert "similarity_after" in extra
    steps = [line for line in visitor.told if "progress value" in json.dumps(line)]
    assert steps


@pytest.mark.parametrize(
    ("sent", "line"),
    [([b"no photo"], "the photo"), ([], "add one first"), ([b""], "a file is empty")],
)
def test_a_bad_photo_is_one_line(visitor: Visitor, sent: list[bytes], line: str) -> None:
    if sent:
        visitor.photos(*sent)
    said = visitor.press("Make the LoRA")[0]
    assert 'role="alert"' in said
    assert line in said
    assert "Traceback" not in said
    assert "/" not in re.sub("<[^>]*>", "", said)


def test_the_doctor_says_what_a_file_is_and_converts_it(
    visitor: Visitor, host: Host, photos: list[bytes], tmp_path: Path
) -> None:
    adapter = host.synthesizers["synthesizer"](photos[0])
    label = "LoRA file"
    [visitor.values[visitor.find(label)]] = visitor.send(
        written("kohya", adapter), name="secret.safetensors"
    )
    found, *_ = visitor.call(visitor.find(label), "change")
    assert "kohya" in found
    assert "all of it" in found
    assert "secret" not in found
    for program, ending in (("diffusers", ".safetensors"), ("peft", ".zip")):
        visitor.fill("Write it for", program)
        assert f"Written for {program}" in visitor.press("Convert")[0]
        assert visitor.values[visitor.find("Download the converted file")]["path"].endswith(ending)
        data = visitor.file("Download the converted file")
        if ending == ".safetensors":
            assert isinstance(loaded(tmp_path, data), Adapter)
    [visitor.values[visitor.find(label)]] = visitor.send(b"no LoRA", name="secret.safetensors")
    refused = visitor.call(visitor.find(label), "change")[0]
    assert "the LoRA file" in refused
    assert "secret" not in refused


def test_a_key_is_the_password_of_the_page(start: Start, folder: Path, tmp_path: Path) -> None:
    key, line = new_key("anna")
    (tmp_path / "keys").write_text(line)
    http = start(page=folder, keys=read_keys(tmp_path / "keys"))
    refused = http.get(f"{PAGE}/")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic")
    assert http.get(f"{PAGE}/", auth=("anyone", "wrong")).status_code == 401
    assert http.get(f"{PAGE}/", auth=("anyone", key)).status_code == 200
    bearer = {"Authorization": f"Bearer {key}"}
    assert http.get(f"{PAGE}/", headers=bearer).status_code == 401
    assert http.get("/v1/models", headers=bearer).status_code == 200
    assert http.get("/v1/models", auth=("anyone", key)).status_code == 401
