"""Batches across requests, and the workers that compute them.

Requests gather in a queue for each worker, which `batched` cuts into batches; each batch goes to a
process of its own on this machine, or to an actor of Ray on any node.  A worker that dies fails its
batch with a clear line, and is started again.
"""

import asyncio
import logging
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from itertools import cycle
from typing import Any, Protocol, runtime_checkable

from batched.aio import AsyncBatchProcessor

from lorasynth.core.errors import ConfigError
from lorasynth.serve.config import Batching, Setup
from lorasynth.serve.requests import RefusedError

log = logging.getLogger(__name__)


class DiedError(Exception):
    """A worker died while it had a batch."""


@runtime_checkable
class Remote(Protocol):
    """A worker, wherever it is."""

    def start(self) -> dict[str, dict[str, Any]]:
        """Load its models; what callers may know of each synthesizer, by its name."""

    async def work(self, kind: str, asked: Sequence[Any]) -> list[Any]:
        """The results of a batch; raises `DiedError`."""

    def stop(self) -> None:
        """End it."""


_host: Any = None


def _load(kind: str, setup: Setup) -> dict[str, dict[str, Any]]:
    """In a worker's process: load its models, and end with the process that started it."""
    global _host  # noqa: PLW0603  a process is one worker
    from lorasynth.serve.workers import Host

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which ends us
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    _host = Host(kind, setup)
    described: dict[str, dict[str, Any]] = _host.described()
    return described


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(kind: str, asked: Sequence[Any]) -> list[Any]:
    results: list[Any] = _host.work(kind, asked)
    return results


class Process:
    """A process on this machine; one that was never started is when it is needed."""

    def __init__(self, kind: str, setup: Setup) -> None:
        self._kind, self._setup = kind, setup
        self._pool: ProcessPoolExecutor | None = None

    def start(self) -> dict[str, dict[str, Any]]:
        """Load the models; work that comes meanwhile waits.

        Returns:
            What callers may know of each synthesizer, by its name.

        Raises:
            LorasynthError: they cannot be loaded.
        """
        self.stop()
        # Forks would share locks of torch's threads.
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._pool = pool
        try:
            return pool.submit(_load, self._kind, self._setup).result()
        except BrokenExecutor as error:
            raise ConfigError(
                f"a worker for {self._kind} must load its models, but was stopped while it did: is "
                "there memory enough?"
            ) from error

    async def work(self, kind: str, asked: Sequence[Any]) -> list[Any]:
        """The results of a batch; raises `DiedError`."""
        try:
            if self._pool is None:
                await asyncio.to_thread(self.start)
            assert self._pool is not None
            return await asyncio.wrap_future(self._pool.submit(_work, kind, asked))
        except (BrokenExecutor, ConfigError) as error:
            raise DiedError from error

    def stop(self) -> None:
        """End the process."""
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())  # no public way before 3.14
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
        self._pool = None


class Actor:
    """An actor of Ray, which Ray starts again where there is room."""

    def __init__(self, kind: str, setup: Setup) -> None:
        import ray

        from lorasynth.serve.workers import Host

        if not ray.is_initialized():
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if "RAY_ADDRESS" not in os.environ:  # a Ray of our own, on this machine
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                # Photos are in what is sent, so that is kept in memory.
                kept = {"automatic_object_spilling_enabled": False}
                options |= {"include_dashboard": False, "_system_config": kept}
            ray.init(**options)
        self._actor: Any = ray.remote(max_restarts=-1)(Host).remote(kind, setup)

    def start(self) -> dict[str, dict[str, Any]]:
        """Wait until the models are loaded, or loaded again."""
        import ray

        while True:
            try:
                described: dict[str, dict[str, Any]] = ray.get(self._actor.described.remote())
            except ray.exceptions.ActorUnavailableError:
                time.sleep(0.5)
            else:
                return described

    async def work(self, kind: str, asked: Sequence[Any]) -> list[Any]:
        """The results of a batch."""
        from ray.exceptions import RayActorError

        try:
            results: list[Any] = await self._actor.work.remote(kind, asked)
        except RayActorError as error:
            raise DiedError from error
        return results

    def stop(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)


#: The engines by name.
ENGINES: Mapping[str, Callable[[str, Setup], Remote]] = {"local": Process, "ray": Actor}


class Engine:
    """Workers of every kind, each behind a queue.

    Attributes:
        models: what the workers say of each synthesizer, by its name.
        makes_images: whether there is a base model.
    """

    def __init__(
        self,
        remotes: Mapping[str, Sequence[Remote]],
        batching: Batching,
        on_batch: Callable[[str, int], None],
    ) -> None:
        """Put queues before workers.

        Args:
            remotes: of `loras`, and where images are made of `images` and `refine`.
            batching: how large batches are.
            on_batch: is told the kind and the size of each.
        """
        self.models: dict[str, dict[str, Any]] = {}
        self.makes_images = "images" in remotes
        self._remotes, self._on_batch = remotes, on_batch
        self._reviving: dict[int, asyncio.Task[None]] = {}
        sizes = {"loras": batching.loras, "images": batching.images, "refine": 1}
        self._queues = {
            kind: cycle([self._queue(kind, one, sizes[kind], batching.wait_ms) for one in several])
            for kind, several in remotes.items()
        }

    def _queue(self, kind: str, remote: Remote, size: int, wait_ms: float) -> Any:
        async def work(asked: list[Any]) -> list[Any]:
            self._on_batch(kind, len(asked))
            try:
                return await remote.work(kind, asked)
            except DiedError:
                self._revive(remote)
                detail = "the worker that had this request stopped: send it again"
                raise RefusedError(503, detail, 2) from None

        return AsyncBatchProcessor(work, batch_size=size, timeout_ms=wait_ms)

    def _revive(self, remote: Remote) -> None:
        """Start a worker that died, beside the requests."""

        async def start() -> None:
            try:
                await asyncio.to_thread(remote.start)
            except Exception as error:
                log.error("a worker cannot be started again: %s", error)
            del self._reviving[id(remote)]

        if id(remote) not in self._reviving:
            self._reviving[id(remote)] = asyncio.create_task(start())

    def start(self) -> None:
        """Load all but what refines, which most services never need.

        Raises:
            LorasynthError: a model cannot be loaded.
        """
        for kind, several in self._remotes.items():
            for remote in several if kind != "refine" else ():
                self.models = remote.start()

    def stop(self) -> None:
        """End all workers."""
        for several in self._remotes.values():
            for remote in several:
                remote.stop()

    @property
    def is_ready(self) -> bool:
        """Whether no worker is being started again."""
        return not self._reviving

    async def do(self, kind: str, asked: Any) -> Any:
        """What is asked for.

        Raises:
            RefusedError: it cannot be done.
        """
        result = await next(self._queues[kind])(asked)
        if isinstance(result, RefusedError):
            raise result
        return result
