"""Load on `lorasynth serve` from a process of its own, over loopback only.

    python bench/serve.py            # starts a service, with batching and then without
    python bench/serve.py --seconds 5

A table of answers a second, and of milliseconds until the answer (median, 95th and 99th
percentile), for embeddings and for photos, at 1, 8 and 64 clients.
"""

import argparse
import asyncio
import io
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

CLIENTS = (1, 8, 64)


def start(folder: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A service on a free port of loopback, and its address, once it is ready."""
    words = [sys.executable, "-m", "lorasynth", "serve", "--port", "0", "--loras-only"]
    words += ["--state", str(folder), "--limits.rate", "1000000/minute", *options]
    service = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert service.stderr is not None
    for line in service.stderr:
        if "serving at " in line:
            return service, line.split()[-1]
    raise SystemExit("the service did not start")


async def load(address: str, clients: int, seconds: float, most: int, send: list[bytes]) -> list:
    """Seconds of all, and until each answer, of so many clients that ask again and again.

    They speak HTTP by hand: a client library takes more of the processor than the service.
    """
    taken: list[float] = []
    host, port = address.removeprefix("http://").split(":")

    async def ask(number: int, again: bool = True) -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        while (began := time.perf_counter()) < end and len(taken) < most:
            writer.write(send[number % len(send)])
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
            taken.append(time.perf_counter() - began)
            if not again:
                break
        writer.close()

    end = time.perf_counter() + 60
    await ask(0, again=False)  # caches are there
    taken.clear()
    began = time.perf_counter()
    end = began + seconds
    await asyncio.gather(*(ask(number) for number in range(clients)))
    return [time.perf_counter() - began, *sorted(taken)]


def as_sent(**content: object) -> bytes:
    """A request for a LoRA file, as it goes over the line."""
    request = httpx.Request("POST", "http://127.0.0.1/v1/loras", **content)
    lines = ["POST /v1/loras HTTP/1.1", *(f"{k}: {v}" for k, v in request.headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + request.read()


def photos() -> list[bytes]:
    """The content of a few avatars' files."""
    from lorasynth.images import subjects_in, to_image

    source, files = subjects_in("avatars:8,images=1", "a portrait of sks", 128), []
    for name in source.ids:
        data = io.BytesIO()
        to_image(source.load(name).photos[0]).save(data, "PNG")
        files.append(data.getvalue())
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--most", type=int, default=400, help="answers of each measurement")
    chosen = parser.parse_args()
    draw = random.Random(0)
    sent = {
        "embeddings": [
            as_sent(json={"embedding": [draw.gauss(0, 175**-0.5) for _ in range(175)]})
            for _ in range(16)
        ],
        "photos": [as_sent(files={"photos": photo}) for photo in photos()],
    }
    print("input       batching  clients  answers/s   p50 ms   p95 ms   p99 ms")
    for batching, options in {"yes": (), "no": ("--batching.loras", "1")}.items():
        with tempfile.TemporaryDirectory() as folder:
            service, address = start(Path(folder), *options)
            try:
                for what, send in sent.items():
                    for clients in CLIENTS:
                        whole, *taken = asyncio.run(
                            load(address, clients, chosen.seconds, chosen.most, send)
                        )
                        at = [1e3 * taken[int(q * (len(taken) - 1))] for q in (0.5, 0.95, 0.99)]
                        rate = len(taken) / whole
                        figures = "".join(f"{figure:9.0f}" for figure in at)
                        print(f"{what:12}{batching:10}{clients:7}{rate:11.1f}{figures}", flush=True)
            finally:
                os.kill(service.pid, signal.SIGINT)
                service.wait(20)


if __name__ == "__main__":
    main()
