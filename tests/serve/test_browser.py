"""The page in a real browser: `make test-ui`, which has Gradio, Playwright and axe-core."""

import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lorasynth import Adapter

ROOT = Path(__file__).parents[2]
AXE = os.environ.get("LORASYNTH_AXE")
CHROMIUM = os.environ.get("LORASYNTH_CHROMIUM", "/usr/bin/chromium")
PHOTO = ROOT / "examples" / "photo.png"
SIZES = {"wide": (1280, 900), "phone": (390, 844)}
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)
#: How long something may take on a machine that others use too, in milliseconds.
LONG = 150_000

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(AXE is None, reason="LORASYNTH_AXE is axe-core's axe.min.js: make test-ui"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Ui(NamedTuple):
    """The page's service, with a home and a folder for temporary files of its own."""

    folder: Path
    address: str
    process: subprocess.Popen[bytes]

    @property
    def kept(self) -> list[Path]:
        """Files that it has in memory for its page."""
        folders = Path("/dev/shm").glob(f"lorasynth-ui-{self.process.pid}-*")
        return [one for folder in folders for one in folder.rglob("*") if one.is_file()]


def serve(folder: Path) -> Ui:
    (folder / "tmp").mkdir()
    words = [sys.executable, "-m", "lorasynth", "ui", "--port", "0", "--limits.seconds", "300"]
    places = {"TMPDIR": str(folder / "tmp"), "HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    environment = os.environ | places | {"OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
    while True:
        assert process.poll() is None, (folder / "log").read_text()
        if found := re.search(rb"http://127.0.0.1:\d+", (folder / "log").read_bytes()):
            return Ui(folder, found[0].decode(), process)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    ui = serve(tmp_path_factory.mktemp("ui"))
    yield ui
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(60) == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(ui: Ui, browser: Any) -> Iterator[Open]:
    """Open the page at a size; no request may leave this machine, and no program fail."""
    opened = []

    def open_page(size: str = "wide", scheme: str = "light") -> Any:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        page = context.new_page()
        page.set_default_timeout(LONG)
        asked, failed = list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        opened.append((context, asked, failed))
        page.goto(ui.address)
        page.get_by_role("button", name="Make the LoRA").wait_for()
        return page

    yield open_page
    for context, asked, failed in opened:
        context.close()
        theirs = (ui.address, "data:", "blob:")
        assert not [url for url in asked if not url.startswith(theirs)]
        assert not failed


def upload(page: Any, *files: Path | dict[str, Any], field: int = 0) -> None:
    page.locator(".gallery-container input[type=file], input[type=file]").nth(
        field
    ).set_input_files(list(files))
    page.locator(".thumbnail-item").first.wait_for()


def make(page: Any) -> str:
    """Press the button, and wait for what is said at the end."""
    page.get_by_role("button", name="Make the LoRA").click()
    page.get_by_text(re.compile("images? in ")).wait_for()
    return str(page.locator(".said").first.inner_text())


def downloaded(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def violations(page: Any) -> list[str]:
    """What axe-core finds to be serious or critical."""
    assert AXE is not None
    page.evaluate(Path(AXE).read_text())
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in page.evaluate("axe.run()")["violations"]
        for node in one["nodes"]
        if one["impact"] in ("serious", "critical")
    ]


def test_a_photo_becomes_a_file_that_diffusers_loads(open_page: Open, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    page = open_page()
    upload(page, PHOTO)
    page.get_by_label("Images to make: a prompt a line").fill("a portrait of sks\nsks smiling")
    said = make(page)
    assert re.search(r"LoRA made in [\d.]+ s\. 2 images in [\d.]+ s\. Similarity .* 0\.\d\d", said)
    assert page.get_by_role("img", name="sks smiling").is_visible()
    assert page.locator(".shown img").count() == 2
    path = downloaded(page, "Download the LoRA file", tmp_path)
    assert path.name.endswith(".safetensors")
    pipe = StableDiffusionPipeline.from_pretrained(ROOT / "bundle" / "base", dtype=torch.float32)
    pipe.load_lora_weights(path)
    assert len(pipe.get_active_adapters()) == 1
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a portrait of sks", num_inference_steps=2, output_type="np").images[0]
    pipe.unload_lora_weights()
    assert abs(image.mean() - 0.5) < 0.5


def test_a_bad_photo_is_one_clear_line(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Make the LoRA").click()
    page.get_by_role("alert").get_by_text("add one first").wait_for()
    upload(page, {"name": "me.png", "mimeType": "image/png", "buffer": b"no photo"})
    page.get_by_role("button", name="Make the LoRA").click()
    page.get_by_role("alert").get_by_text("the photo").wait_for()
    assert "Traceback" not in page.content()


def test_attributes_and_a_second_person(open_page: Open, tmp_path: Path) -> None:
    page = open_page("phone")
    upload(page, PHOTO)
    page.get_by_label("Images to make: a prompt a line").fill("a portrait of sks")
    page.get_by_role("button", name="Change attributes").click()
    page.get_by_role("slider", name="glasses").first.press("ArrowLeft")
    make(page)
    extra = Adapter.load(downloaded(page, "Download the LoRA file", tmp_path)).metadata.extra
    assert extra["edited"] == "glasses=-0.25"


def test_refining_shows_how_far_it_is_and_before_and_after(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    upload(page, PHOTO)
    page.get_by_label("Images to make: a prompt a line").fill("a portrait of sks")
    make(page)
    page.get_by_label("Steps of training").first.fill("10")
    page.get_by_role("button", name="Refine on the photos").click()
    page.get_by_role("progressbar", name="Steps of training").wait_for()
    page.get_by_role("img", name="After a portrait of sks").wait_for()
    assert page.get_by_role("img", name="Before a portrait of sks").is_visible()
    assert not violations(page)
    path = downloaded(page, "Download the refined LoRA file", tmp_path)
    assert "similarity_after" in Adapter.load(path).metadata.extra


def test_the_doctor(open_page: Open, tmp_path: Path) -> None:
    page = open_page("phone", "dark")
    file = tmp_path / "mine.safetensors"
    from lorasynth import Synthesizer

    Synthesizer.from_pretrained("bundle/synthesizer")(PHOTO).save(file, "kohya")
    page.get_by_role("tab", name="LoRA format doctor").click()
    page.locator("input[type=file]").last.set_input_files(file)
    page.get_by_role("cell", name="all of it").first.wait_for()
    assert not violations(page)
    page.get_by_label("Write it for").click()
    page.get_by_role("option", name="diffusers").click()
    page.get_by_role("button", name="Convert", exact=True).click()
    page.get_by_text("Written for diffusers").wait_for()
    path = downloaded(page, "Download the converted file", tmp_path)
    first, second = Adapter.load(file), Adapter.load(path)
    for module, factor in first.factors.items():
        other = second.factors[module]
        torch.testing.assert_close(factor.B @ factor.A, other.B @ other.A)


def test_it_works_by_keyboard_alone(open_page: Open) -> None:
    page = open_page()

    def go_to(name: str) -> None:
        said = (
            "(e => ['BUTTON', 'A'].includes(e.tagName) ? e.ariaLabel || e.innerText : '')"
            "(document.activeElement)"
        )
        for _ in range(60):
            page.keyboard.press("Tab")
            if name in page.evaluate(said):
                return
        raise AssertionError(f"Tab does not reach {name!r}")

    go_to("Click to Upload")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(PHOTO)
    page.locator(".thumbnail-item").first.wait_for()
    go_to("Make the LoRA")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("images in ")).wait_for()
    go_to("Download the LoRA file")
    with page.expect_download():
        page.keyboard.press("Enter")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(open_page: Open, size: str, scheme: str) -> None:
    page = open_page(size, scheme)
    assert not violations(page)
    for name in ("Change attributes", "Go towards a second person", "Strength, seed, file format"):
        page.get_by_role("button", name=name).click()
    upload(page, PHOTO)
    page.get_by_label("Images to make: a prompt a line").fill("a portrait of sks")
    make(page)
    page.wait_for_timeout(1000)
    assert not violations(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


def test_a_photo_is_taken_with_the_camera(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Or take one with the camera").click()
    page.get_by_role("button", name=re.compile("access webcam", re.I)).click()
    page.get_by_role("button", name=re.compile("capture", re.I)).first.click()
    page.get_by_role("button", name="Make the LoRA").click()
    # The browser's stand-in of a camera shows no avatar, which is said.
    page.get_by_role("alert").get_by_text("the photo").wait_for()


def test_photos_are_on_no_disk_and_gone_when_the_page_is_closed(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("private")
    ui = serve(folder)
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(LONG)
    page.goto(ui.address)
    content = PHOTO.read_bytes() + b"secret-bytes"
    upload(page, {"name": "secret-name.png", "mimeType": "image/png", "buffer": content})
    page.get_by_label("Images to make: a prompt a line").fill("sks secret-prompt")
    make(page)

    def require_clean() -> None:
        secrets = (b"secret-", PHOTO.read_bytes()[60:120], base64.b64encode(content)[60:120])
        for path in [one for one in folder.rglob("*") if one.is_file()]:
            data = path.read_bytes()
            assert not [word for word in secrets if word in data], path
            assert "secret" not in path.name

    require_clean()
    assert [one for one in ui.kept if one.name == "secret-name.png"]
    context.close()
    deadline = time.monotonic() + 60
    while ui.kept:
        assert time.monotonic() < deadline, ui.kept
        time.sleep(0.2)
    require_clean()
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(60) == 0
    assert not list(Path("/dev/shm").glob(f"lorasynth-ui-{ui.process.pid}-*"))
    require_clean()
    assert b"Traceback" not in (folder / "log").read_bytes()
