"""Jobs: asked for now, done one after the other, asked after until they are done.

States and results are kept in one SQLite file, or in Redis, and no photo, embedding or prompt is:
those are in the service's memory only, so a job that waits or runs when the service ends is refused
by the next.
"""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from lorasynth.serve.config import Limits, in_redis
from lorasynth.serve.requests import AskedRefine, RefusedError

_LOST = (
    "the service was restarted, or its disk full, and photos are in memory only: send them again"
)


class Job(BaseModel):
    """How far a job is."""

    id: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"] = "waiting"
    step: int = Field(0, description="Steps that are done.")
    steps: int
    error: str = Field("", description="Why it failed, in one line.")


class KeptJob(Job):
    """A job as it is kept: with whose it is, and what its file is."""

    owner: str
    created: float
    facts: dict[str, str] = {}


class JobFile:
    """The file of jobs, which server and worker have open: values of a few kinds for each job."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._kept = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._kept.execute("pragma journal_mode=wal")
        self._kept.execute(
            "create table if not exists kept (job text, kind text, value, primary key (job, kind))"
        )

    def put(self, job_id: str, kind: str, value: str | bytes | int) -> None:
        """Keep a value.

        Raises:
            RefusedError: the disk is full or cannot be written.
        """
        try:
            statement = "insert or replace into kept values (?, ?, ?)"
            self._kept.execute(statement, (job_id, kind, value))
        except sqlite3.OperationalError as error:
            raise RefusedError(507, "the service cannot keep jobs: its disk is full", 60) from error

    def get(self, job_id: str, kind: str) -> Any:
        """A value that is kept, or None."""
        asked = "select value from kept where job = ? and kind = ?"
        found = self._kept.execute(asked, (job_id, kind)).fetchone()
        return None if found is None else found[0]

    def jobs(self) -> list[KeptJob]:
        """All jobs."""
        found = self._kept.execute("select value from kept where kind = 'job'").fetchall()
        return [KeptJob.model_validate_json(text) for (text,) in found]

    def delete(self, job_id: str) -> None:
        """Keep nothing of a job."""
        self._kept.execute("delete from kept where job = ?", (job_id,))

    def goes_on(self, job_id: str, step: int) -> bool:
        """Note how far a job is; whether it is wanted still."""
        self.put(job_id, "step", step)
        return self.get(job_id, "cancelled") is None

    def close(self) -> None:
        """Close the file."""
        self._kept.close()


class JobRedis(JobFile):
    """The same in Redis, by its address, for services whose disk goes with them."""

    def __init__(self, path: str, name: str | None = None) -> None:
        import redis

        self.path = path
        self._redis = redis.Redis.from_url(path, socket_timeout=10, client_name=name)

    @contextmanager
    def _told(self) -> Iterator[None]:
        import redis

        try:
            yield
        except redis.RedisError as error:
            full = isinstance(error, redis.OutOfMemoryError)
            why = "the service cannot keep jobs: its Redis " + ("is full" if full else "is away")
            raise RefusedError(507 if full else 503, why, 60) from error

    def put(self, job_id: str, kind: str, value: str | bytes | int) -> None:
        """Keep a value.

        Raises:
            RefusedError: Redis is full, or does not answer, as at all else.
        """
        with self._told():
            self._redis.hset(_key(job_id), kind, value)

    def get(self, job_id: str, kind: str) -> Any:
        """A value that is kept, as bytes, or None."""
        with self._told():
            return self._redis.hget(_key(job_id), kind)

    def jobs(self) -> list[KeptJob]:
        """All jobs."""
        with self._told():
            found = [self._redis.hget(key, "job") for key in self._redis.scan_iter(_key("*"))]
        return [KeptJob.model_validate_json(text) for text in found if text]

    def delete(self, job_id: str) -> None:
        """Keep nothing of a job."""
        with self._told():
            self._redis.delete(_key(job_id))

    def is_used(self, name: str) -> bool:
        """Whether a client of this name has the database open."""
        with self._told():
            mine = str(self._redis.connection_pool.connection_kwargs.get("db") or 0)
            clients = self._redis.client_list()
        return any(one["name"] == name and one["db"] == mine for one in clients)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def _key(job_id: str) -> str:
    return f"lorasynth:{job_id}"


def open_jobs(place: Path | str) -> JobFile:
    """Where jobs are kept: a file, or an address of Redis."""
    return JobRedis(str(place)) if in_redis(str(place)) else JobFile(place)


class Jobs:
    """The jobs of a service."""

    def __init__(self, file: JobFile, limits: Limits, do: Callable[..., Awaitable[Any]]) -> None:
        self._file, self._limits, self._ask_worker = file, limits, do
        self.undone: dict[str, AskedRefine] = {}
        self._new = asyncio.Event()

    async def run(self) -> None:
        """Do what is asked for, until cancelled."""
        while True:
            for job_id in list(self.undone):
                if job_id in self.undone:  # it may be cancelled meanwhile
                    with suppress(RefusedError):  # what cannot be kept is lost
                        await self._do(job_id)
                    self.undone.pop(job_id, None)
            self._new.clear()
            if not self.undone:
                await self._new.wait()

    async def _do(self, job_id: str) -> None:
        asked, job = self.undone[job_id], self._get(job_id)
        assert job is not None, "what is forgotten is not undone"
        self._put(job, state="running")
        try:
            made = await self._ask_worker("refine", (asked, job_id, self._file.path))
            self._file.put(job_id, "result", made.data)
            ended: dict[str, Any] = {"state": "done", "facts": made.facts}
        except RefusedError as error:
            stopped = self._file.get(job_id, "cancelled") is not None
            ended = {"state": "cancelled" if stopped else "failed", "error": error.detail}
        except Exception:
            ended = {"state": "failed", "error": "the service failed at this"}
        self._put(job, **ended)

    def submit(self, owner: str, asked: AskedRefine) -> KeptJob:
        """Let a job wait.

        Raises:
            RefusedError: too many wait, or their photos are too large together.
        """
        oldest = time.time() - 3600 * self._limits.kept_hours
        for old in self._file.jobs():
            if old.created < oldest and old.id not in self.undone:
                self._file.delete(old.id)
        size = sum(sum(map(len, one.photos)) for one in (asked, *self.undone.values()))
        if len(self.undone) >= self._limits.jobs or size > self._limits.memory << 20:
            raise RefusedError(429, f"{len(self.undone)} jobs wait: send it again later", 30)
        new, now = secrets.token_urlsafe(16), time.time()
        job = KeptJob(id=new, steps=asked.refine_steps, owner=owner, created=now)
        self._put(job)
        self.undone[job.id] = asked
        self._new.set()
        return job

    def get(self, owner: str, job_id: str) -> KeptJob:
        """A job of this owner.

        Raises:
            RefusedError: there is none.
        """
        job = self._get(job_id)
        if job is None or job.owner != owner:
            raise RefusedError(404, "there is no such job, or it is too old")
        return job

    def result(self, owner: str, job_id: str) -> tuple[KeptJob, bytes]:
        """What a job has made.

        Raises:
            RefusedError: there is no such job, or it is not done.
        """
        job, data = self.get(owner, job_id), self._file.get(job_id, "result")
        if job.state != "done" or data is None:
            why = job.error or f"it is {job.state}, at step {job.step} of {job.steps}"
            after = 1 if job.state in ("waiting", "running") else None
            raise RefusedError(409, f"the job has no result: {why}", after)
        return job, data

    def cancel(self, owner: str, job_id: str) -> KeptJob:
        """End a job, or forget one that has ended, and its result.

        Raises:
            RefusedError: there is none.
        """
        job = self.get(owner, job_id)
        if job.state == "running":
            self._file.put(job_id, "cancelled", 1)  # its worker sees it at its next step
        else:
            self.undone.pop(job_id, None)
            self._file.delete(job_id)
        return job.model_copy(update={"state": "cancelled"})

    def _get(self, job_id: str) -> KeptJob | None:
        if (found := self._file.get(job_id, "job")) is None:
            return None
        job, step = KeptJob.model_validate_json(found), int(self._file.get(job_id, "step") or 0)
        lost = job.state in ("waiting", "running") and job_id not in self.undone
        now = {"step": step} | ({"state": "failed", "error": _LOST} if lost else {})
        return job.model_copy(update=now)

    def _put(self, job: KeptJob, **changed: Any) -> None:
        self._file.put(job.id, "job", job.model_copy(update=changed).model_dump_json())
