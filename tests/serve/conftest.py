"""The application in this process, with the shipped models, loaded once for all tests."""

import asyncio
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from starlette.testclient import TestClient

from lorasynth import Adapter
from lorasynth.adapter.files import FORMATS
from lorasynth.adapter.files.container import to_bytes
from lorasynth.images import subjects_in, to_image
from lorasynth.serve.application import create_app
from lorasynth.serve.config import Batching, Limits, Setup
from lorasynth.serve.engine import Engine
from lorasynth.serve.gate import Figures
from lorasynth.serve.jobs import open_jobs
from lorasynth.serve.workers import Host

Start = Callable[..., TestClient]


class Inline:
    """A worker in this process: one batch at a time, in a thread."""

    def __init__(self, host: Host) -> None:
        self.host, self._one, self.batches = host, threading.Lock(), list[int]()

    def start(self) -> dict[str, dict[str, Any]]:
        return self.host.described()

    async def work(self, kind: str, asked: Sequence[Any]) -> list[Any]:
        self.batches.append(len(asked))
        return await asyncio.to_thread(self._locked, kind, asked)

    def _locked(self, kind: str, asked: Sequence[Any]) -> list[Any]:
        with self._one:
            return self.host.work(kind, asked)

    def stop(self) -> None: ...


@pytest.fixture(scope="session")
def host() -> Host:
    return Host("images", Setup(device="cpu"))


def written(form: str, adapter: Adapter) -> bytes:
    """The content of a LoRA file."""
    return to_bytes(*FORMATS.get(form).spell(adapter))


def png(pixels: Image.Image) -> bytes:
    data = io.BytesIO()
    pixels.save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """Avatars, as the content of PNG files."""
    source = subjects_in("avatars:4,images=1,seed=5", "a portrait of sks", 96)
    return [png(to_image(source.load(name).photos[0])) for name in source.ids]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The address of a Redis of the test's own."""
    pytest.importorskip("redis")
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("needs redis-server (apt-get install redis-server)")
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        path = Path(folder) / "socket"
        words = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while not path.exists():
            assert server.poll() is None
            time.sleep(0.02)
        yield f"unix://{path}"
        server.terminate()
        server.wait(20)


@pytest.fixture(params=["file", "redis"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where jobs may be kept, each way."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis"))
    return str(tmp_path / "jobs.sqlite")


@pytest.fixture
def start(host: Host, tmp_path: Path) -> Iterator[Start]:
    """Start the application with limits, keys and a worker of the test's own."""
    started: list[TestClient] = []

    def start(
        keys: Sequence[str] = (),
        worker: Any = None,
        kinds: Any = None,
        page: Path | None = None,
        kept: str = "",
        **limits: Any,
    ) -> TestClient:
        figures, batching = Figures(), Batching(wait_ms=20)
        names = kinds or ("loras", "images", "refine")
        one = worker or Inline(host)
        engine = Engine({n: [one] for n in names}, batching, lambda *_: None)
        engine.start()
        bounds = Limits(**{"rate": "100000/minute", **limits})
        jobs = open_jobs(kept or tmp_path / "jobs.sqlite")
        app = create_app(engine, jobs, bounds, keys, figures, page)
        client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        started.append(client.__enter__())
        return client

    yield start
    for client in reversed(started):
        client.__exit__(None, None, None)


class Service(NamedTuple):
    folder: Path
    address: str
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> bytes:
        return (self.folder / "log").read_bytes()


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Service]:
    """A service in a process of its own, in an empty folder, until it is asked to end."""
    (folder / "tmp").mkdir()
    words = [sys.executable, "-m", "lorasynth", "serve", "--port", "0", *options]
    # Threads of several processes on few cores mostly wait for one another.
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        found = None
        while found is None:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
            found = re.search(rb"http://127.0.0.1:\d+", (folder / "log").read_bytes())
        yield Service(folder, found[0].decode(), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
