"""Work on a Ray cluster: functions of a worker over many items, results in the order of the items.

A task whose worker or machine dies is done again on another.  Ray's own answer to a lost head is to
end the process after a minute; here it is an error before that, as long as results are waited for.
(Ray may print its daemon's log beside it, where that ran on this machine.)
"""

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, TypeVar, runtime_checkable

from typing_extensions import override

from lorasynth.collect.worker import Executor, Worker
from lorasynth.core.errors import CollectionError, LorasynthError, installing, reason_of
from lorasynth.core.progress import Advance

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

#: Seconds between two looks at the head while a result is waited for, and those for which it may be
#: silent; Ray itself gives up after 60.
_LOOK_EVERY, _PATIENCE = 2.0, 20.0
#: Times that a task whose worker died is done again; tasks begun before the first is done.
_RETRIES, _AHEAD = 5, 128


@runtime_checkable
class Loads(Protocol):
    """Loads a worker where it is called; travels to the machines, and is hashable by value."""

    def load_worker(self) -> Worker:
        """Load it."""
        ...

    def __hash__(self) -> int: ...


@cache
def _loaded(worker: Loads) -> Worker:
    """A process's worker, which outlives its tasks."""
    return worker.load_worker()


def _do(item: Any, work: Callable[..., ResultT], worker: Loads, *shared: Any) -> ResultT:
    """One task, in a worker's process."""
    return work(_loaded(worker), item, *shared)


class Cluster(Executor):
    """A cluster that this process is connected to; made by `connected`."""

    most = 32

    def __init__(self, ray: Any, worker: Loads) -> None:
        self._ray = ray
        self._worker = worker
        self._head = str(ray.get_runtime_context().gcs_address)
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
        # Without max_calls, Ray ends a worker after each task that had a GPU.
        self._options = {"max_retries": _RETRIES, "num_gpus": gpus, "max_calls": 0}

    @override
    def map(
        self, work: Callable[..., ResultT], items: Iterable[ItemT], *shared: object
    ) -> Iterator[ResultT]:
        task = self._ray.remote(**self._options)(_do)
        given = [self._ray.put(value) for value in (work, self._worker, *shared)]
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(task.remote(item, *given))
            if len(waiting) >= _AHEAD:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    @override
    def watch(self, advance: Advance) -> bool:
        return False  # steps are not told over the network

    def _result(self, task: Any) -> Any:
        """Wait for a task."""
        errors = self._ray.exceptions
        heard = time.monotonic()
        while True:
            try:
                return self._ray.get(task, timeout=_LOOK_EVERY)
            except errors.GetTimeoutError:
                now = time.monotonic()
                heard = now if _answers(self._head) else heard
                if now - heard > _PATIENCE:
                    raise self._lost(f"its head has not answered for {now - heard:.0f} s") from None
            except errors.RayTaskError as error:
                if isinstance(error.cause, LorasynthError):
                    raise error.cause from error
                raise
            except errors.RayError as error:
                reason = reason_of(error)
                raise self._lost(f"a task lost its worker again and again ({reason})") from error

    def _lost(self, what: str) -> CollectionError:
        return CollectionError(
            f"a Ray cluster must stay up while it works, but of the one at {self._head} {what}: "
            "what was finished is kept; start the cluster, and run the same command to go on"
        )


@contextmanager
def connected(address: str, worker: Loads) -> Iterator[Cluster]:
    """Connect to a cluster, or start a local one, for as long as the context lasts.

    Args:
        address: `local` starts one on this machine; `auto` finds one that runs here; else
            `host:port` of a head.
        worker: loads what every process of it needs; its files must be on each machine.

    Raises:
        CollectionError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise CollectionError(
            f"work on a cluster needs Ray, but it is not installed: {installing('cluster')}"
        ) from error
    local = address == "local"
    try:
        if not local and address != "auto" and not _answers(address):
            raise ConnectionError("nothing answers there")
        options = {"include_dashboard": False} if local else {}
        ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = reason_of(error)
        raise CollectionError(
            f"--address must be that of a running Ray cluster, but {address} cannot be "
            f"reached ({reason}): use host:port of its head, or auto on one of its machines"
        ) from error
    try:
        yield Cluster(ray, worker)
    finally:
        ray.shutdown()


def _answers(address: str) -> bool:
    """Whether something listens at `host:port`."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False
