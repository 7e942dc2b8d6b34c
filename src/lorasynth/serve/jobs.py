"""Jobs: asked for now, done one after the other, asked after until they are done.

States and results are kept in one SQLite file, and no photo, embedding or prompt is: those are in
the service's memory only, so a job that waits or runs when the service ends is refused by the next.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from huey.storage import SqliteStorage
from pydantic import BaseModel, Field

from lorasynth.serve.config import Limits
from lorasynth.serve.requests import AskedRefine, RefusedError

_LOST = "the service was restarted, and photos are kept in memory only: send them again"


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
    """The file of jobs, which server and worker have open."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._kept = SqliteStorage("lorasynth", self.path, strict_fifo=True, fsync=False)

    def put(self, key: str, value: bytes) -> None:
        """Keep a value."""
        self._kept.put_data(key, value)

    def get(self, key: str) -> bytes | None:
        """A value that is kept."""
        found = self._kept.peek_data(key)
        return bytes(found) if isinstance(found, bytes) else None

    def delete(self, *keys: str) -> None:
        """Keep values no more."""
        for key in keys:
            self._kept.pop_data(key)

    def ids(self) -> list[str]:
        """The ids of all jobs."""
        rows = self._kept.sql("select key from kv where key like 'job-%'", results=True)
        return [str(key).removeprefix("job-") for (key,) in rows]

    def enqueue(self, job_id: str) -> None:
        """Let a job wait."""
        self._kept.enqueue(job_id.encode())

    def dequeue(self) -> str | None:
        """The job that has waited longest."""
        found = self._kept.dequeue()
        return None if found is None else bytes(found).decode()

    def goes_on(self, job_id: str, step: int) -> bool:
        """Note how far a job is; whether it is wanted still."""
        self.put(f"step-{job_id}", str(step).encode())
        return self.get(f"cancelled-{job_id}") is None

    def close(self) -> None:
        """Close the file."""
        self._kept.close()


class Jobs:
    """The jobs of a service."""

    def __init__(self, file: JobFile, limits: Limits, do: Callable[..., Awaitable[Any]]) -> None:
        self._file, self._limits, self._do_job = file, limits, do
        self._asked: dict[str, AskedRefine] = {}
        self._new = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many are not done."""
        return len(self._asked)

    async def run(self) -> None:
        """Refuse what the service before has left undone; then do what comes, until cancelled."""
        while self._file.dequeue() is not None:
            pass
        for job in map(self._get, self._file.ids()):
            if job is not None and job.state in ("waiting", "running"):
                self._put(job, state="failed", error=_LOST)
        while True:
            if (job_id := self._file.dequeue()) is None:
                self._new.clear()
                await self._new.wait()
            elif (asked := self._asked.get(job_id)) is not None:
                await self._do(job_id, asked)
                self._asked.pop(job_id, None)

    async def _do(self, job_id: str, asked: AskedRefine) -> None:
        job = self._get(job_id)
        assert job is not None, "what is forgotten is not asked for any more"
        self._put(job, state="running")
        try:
            made = await self._do_job("refine", (asked, job_id, self._file.path))
            self._file.put(f"result-{job_id}", made.data)
            ended: dict[str, Any] = {"state": "done", "step": job.steps, "facts": made.facts}
        except RefusedError as error:
            ended = {"state": "failed", "error": error.detail}
        except Exception:
            ended = {"state": "failed", "error": "the service failed at this"}
        if self._file.get(f"cancelled-{job_id}") is not None:
            self._file.delete(f"result-{job_id}")
            ended = {"state": "cancelled"}
        self._put(job, **ended)

    def submit(self, owner: str, asked: AskedRefine) -> KeptJob:
        """Let a job wait.

        Raises:
            RefusedError: too many wait, or their photos are too large together.
        """
        for old in map(self._get, self._file.ids()):
            if (
                old
                and old.id not in self._asked
                and old.created < time.time() - 3600 * self._limits.kept_hours
            ):
                self._forget(old.id)
        size = sum(sum(map(len, one.photos)) for one in (asked, *self._asked.values()))
        if self.waiting >= self._limits.jobs or size > self._limits.memory << 20:
            raise RefusedError(429, f"{self.waiting} jobs wait: send it again later", 30)
        new, now = secrets.token_urlsafe(16), time.time()
        job = KeptJob(id=new, steps=asked.refine_steps, owner=owner, created=now)
        self._put(job)
        self._asked[job.id] = asked
        self._file.enqueue(job.id)
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
        job, data = self.get(owner, job_id), self._file.get(f"result-{job_id}")
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
            self._file.put(f"cancelled-{job_id}", b"")  # its worker sees it at its next step
        else:
            self._forget(job_id)
        return job.model_copy(update={"state": "cancelled"})

    def _get(self, job_id: str) -> KeptJob | None:
        if (found := self._file.get(f"job-{job_id}")) is None:
            return None
        job, step = KeptJob.model_validate_json(found), self._file.get(f"step-{job_id}")
        return job.model_copy(update={"step": int(step)}) if step else job

    def _put(self, job: KeptJob, **changed: Any) -> None:
        text = job.model_copy(update=changed).model_dump_json()
        self._file.put(f"job-{job.id}", text.encode())

    def _forget(self, job_id: str) -> None:
        self._asked.pop(job_id, None)
        self._file.delete(*(f"{kind}-{job_id}" for kind in ("job", "step", "cancelled", "result")))
