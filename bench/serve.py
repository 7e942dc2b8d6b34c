"""Load on `lorasynth serve` from a process of its own, over loopback only.

    python bench/serve.py            # starts a service, with batching and then without
    python bench/serve.py --seconds 5
    python bench/serve.py --soak 1830     # half an hour of mixed requests, and the memory they take

A table of answers a second, and of milliseconds until the answer (median, 95th and 99th
percentile), for embeddings and for photos, at 1, 8 and 64 clients.  The soak asks four times a
second for files, images, refinements and what is refused, and prints each minute the memory (USS)
of the server and of each worker.
"""

import argparse
import asyncio
import io
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil

CLIENTS = (1, 8, 64)


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service on a free port of loopback, and its address, once it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "lorasynth", "serve", "--port", "0", "--state", folder]
        words += ["--limits.rate", "1000000/minute", *options]
        service = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert service.stderr is not None
        try:
            yield (
                service,
                next(line.split()[-1] for line in service.stderr if "serving at " in line),
            )
        finally:
            service.send_signal(signal.SIGINT)
            service.wait(120)


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


def soak(seconds: float) -> None:
    """Ask for all that there is, again and again, and print what memory that takes."""
    files, draw = photos(), random.Random(0)
    with serving() as (service, address), httpx.Client(base_url=address, timeout=60) as http:
        server, statuses = psutil.Process(service.pid), Counter[int]()
        print("minute  answers (status: count)  MB of the server and of each worker", flush=True)
        began, count = time.monotonic(), 0
        while (now := time.monotonic() - began) < seconds:
            if now >= 60 * count:
                parts = [server, *server.children(recursive=True)]
                used = [f"{one.memory_full_info().uss / 1e6:.0f}" for one in parts]
                print(f"{count:6}  {dict(statuses)}  {' '.join(used)}", flush=True)
                count += 1
            photo = {"photos": draw.choice(files)}
            content, path = draw.choices(
                [
                    ({"json": {"embedding": [draw.gauss(0, 0.08) for _ in range(175)]}}, "loras"),
                    ({"files": photo, "data": {"seed": str(draw.randrange(9))}}, "loras"),
                    ({"files": photo, "data": {"prompts": "sks", "image_steps": "4"}}, "images"),
                    ({"files": {"photos": photo["photos"][:-40]}}, "loras"),
                    ({"content": draw.randbytes(20_000)}, "loras"),
                    ({"files": photo, "data": {"refine_steps": "1"}}, "refine"),
                ],
                [40, 40, 10, 4, 4, 1],
            )[0]
            statuses[http.post(f"/v1/{path}", **content).status_code] += 1
            time.sleep(max(0.0, now + 0.25 - (time.monotonic() - began)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--most", type=int, default=400, help="answers of each measurement")
    parser.add_argument(
        "--soak", type=float, help="ask for all for so many seconds, in place of it"
    )
    chosen = parser.parse_args()
    if chosen.soak:
        soak(chosen.soak)
        return
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
        with serving("--loras-only", *options) as (_, address):
            for what, send in sent.items():
                for clients in CLIENTS:
                    whole, *taken = asyncio.run(
                        load(address, clients, chosen.seconds, chosen.most, send)
                    )
                    at = [1e3 * taken[int(q * (len(taken) - 1))] for q in (0.5, 0.95, 0.99)]
                    rate = len(taken) / whole
                    figures = "".join(f"{figure:9.0f}" for figure in at)
                    print(f"{what:12}{batching:10}{clients:7}{rate:11.1f}{figures}", flush=True)


if __name__ == "__main__":
    main()
