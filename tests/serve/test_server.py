"""A service in a process of its own: what one types, what it logs and keeps, a killed worker."""

import base64
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

import lorasynth.commands.main  # noqa: F401  compiled while there are no threads
from command_line import Run
from lorasynth.serve import Client, ServiceError

from .conftest import Service, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.address) as client:
        yield client


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), "--limits.body", "2") as service:
        yield service


def test_what_one_types_works(service: Service, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "photo.png", tmp_path)
    text = (ROOT / "docs" / "serve.md").read_text()
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", text, re.S) if "curl" in block]
    script = "set -ex\n" + "\n".join(blocks).replace("http://127.0.0.1:8000", service.address)
    words = ["bash", "-c", script]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [python] = re.findall(r"```python\n(.*?)```", text, re.S)
    python = python.replace("http://127.0.0.1:8000", service.address)
    subprocess.run([sys.executable, "-c", python], cwd=tmp_path, check=True)
    assert (tmp_path / "me.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "images.zip").read_bytes().startswith(b"PK")
    for name in ("me", "better"):
        assert b"lorasynth.synthesised" in (tmp_path / f"{name}.safetensors").read_bytes()[:5000]


def test_nothing_of_anybody_is_in_log_or_on_disk(
    service: Service, client: Client, photos: list[bytes], host: object, tmp_path: Path
) -> None:
    photo = photos[0] + b"secret-bytes" + bytes(1_200_000)  # more than forms keep in memory else
    secret = {"prompts": ["a portrait of secret-prompt"], "image_steps": 1}
    client.images(photos=[photo], **secret)
    client.result(client.refine([photo], refine_steps=1, caption="secret-caption"))
    path = tmp_path / "secret-name.png"
    path.write_bytes(photo)
    subprocess.run(
        ["curl", "-sf", "-F", f"photos=@{path}", f"{service.address}/v1/loras"],
        check=True,
        capture_output=True,
    )
    synthesizer = host.synthesizers["synthesizer"]  # type: ignore[attr-defined]
    embedding = synthesizer.embed(photos[0])
    client.lora(embedding=embedding.tolist())
    with pytest.raises(ServiceError):
        client.lora([b"secret-bytes"])
    with pytest.raises(ServiceError):
        client.lora([photo], attributes={"secret-prompt": "yes"})
    number = repr(embedding[3].item())[:9]
    secrets = [b"secret-", number.encode(), embedding.numpy().tobytes()[:64], photos[0][60:120]]
    secrets.append(base64.b64encode(photos[0])[60:120])
    kept = [path for path in service.folder.rglob("*") if path.is_file()]
    assert {path.name for path in kept} >= {"log", "jobs.sqlite"}
    for path in kept:
        content = path.read_bytes()
        for word in secrets:
            assert word not in content, path
    lines = [line for line in service.log.splitlines() if not line.endswith(b": loading")]
    assert len(lines) == 1, service.log


def test_a_killed_worker_is_started_again(
    service: Service, client: Client, photos: list[bytes]
) -> None:
    client.lora([photos[0]])
    workers = psutil.Process(service.process.pid).children()
    workers = [one for one in workers if "spawn_main" in " ".join(one.cmdline())]
    assert len(workers) >= 2
    for worker in workers:
        worker.kill()
    deadline, refused = time.monotonic() + 60, list[tuple[int, bool]]()
    while True:
        try:
            client.lora([photos[0]])
            break
        except ServiceError as error:
            refused.append((error.status, bool(error.retry_after)))
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert set(refused) == {(503, True)}


def test_no_worker_outlives_its_service(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lorasynth", "serve", "--port", "0", "--loras-only"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"serving at" in line:
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    process.stderr.close()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@pytest.mark.long
def test_results_outlive_the_service_in_redis(
    run: Run, redis: str, photos: list[bytes], tmp_path: Path
) -> None:
    state = ("--state", redis)
    with serving(tmp_path, *state) as service, Client(service.address) as client:
        job = client.refine([photos[0]], refine_steps=1)
        made = client.result(job)
        run("serve", "--port", "0", *state).is_one_error("another one uses unix://")
    (tmp_path / "again").mkdir()
    with serving(tmp_path / "again", *state) as service, Client(service.address) as client:
        assert client.result(job).data == made.data


def test_what_cannot_be_served_is_one_clear_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run("serve", "--port", port).is_one_error(
            f"--port must be free at 127.0.0.1, but {port} is not"
        )
    nobody = ("serve", "--port", "0", "--synthesizer", "nowhere")
    run(*nobody).is_one_error("a synthesizer must be a folder that exists", "nowhere")
    run("serve", "--host", "0.0.0.0").is_one_error("need keys")
    run("serve", "--limits.rate", "often", "--port", "0", "--loras-only").is_one_error("600/minute")
    away = run("serve", "--port", "0", "--state", "redis://:pw@127.0.0.1:1/0")
    here = find_spec("redis") is not None
    away.is_one_error("127.0.0.1:1/0 none does" if here else "redis is not installed")
    assert "pw" not in away.err
    (tmp_path / "keys").write_text("anna secret\n")
    refusal = run("serve", "--keys", "keys")
    refusal.is_one_error("the hash of a key")
    assert "anna secret" not in refusal.err


def test_a_new_key_opens_the_door(run: Run, tmp_path: Path, start: object) -> None:
    from lorasynth.serve.gate import read_keys

    printed = run("serve", "--new-key", "anna").out.splitlines()
    key, line = (text.split(": ")[1] for text in printed)
    (tmp_path / "keys").write_text(f"# callers\n{line}\n\n")
    keys = read_keys(tmp_path / "keys")
    http = start(keys=keys)  # type: ignore[operator]
    answer = http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
