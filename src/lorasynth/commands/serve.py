"""`lorasynth serve` and `ui`: LoRA files and images over HTTP, and a page for a browser."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lorasynth.commands.shared import Repeated
from lorasynth.core.command import Command, OnDevice
from lorasynth.core.errors import ConfigError, installing
from lorasynth.core.progress import console
from lorasynth.serve.config import Batching, Limits, Setup, in_redis

if TYPE_CHECKING:
    from lorasynth.serve.jobs import JobFile

#: What the extra brings.
_PACKAGES = ("fastapi", "uvicorn", "batched", "limits", "prometheus_client")


@dataclass(frozen=True, kw_only=True)
class Serve(Command, OnDevice):
    """Serve LoRA files and images over HTTP, for many users at once.

    Without --keys it serves this machine only. Photos are in memory until the answer, and nowhere
    else. docs/serve.md shows the routes, and /openapi.json describes them.

    Consent: of people only with their consent. Every file says that it is synthesised.

    Attributes:
        synthesizer: Synthesizer: a folder, or hub:owner/name; repeatable; default:
            bundle/synthesizer.
        base: Base model: a pipeline folder, or hub:owner/name.
        library: Library in whose latents adapters are edited: of adapters, or of latents as in a
            bundle; default: the shipped one, where it is of the synthesizer.
        loras_only: Make LoRA files only; no base model is loaded.
        host: Address to listen at.
        port: Port to listen at; 0: any that is free.
        keys: File with the hashes of API keys, a line for each.
        new_key: Name of a new caller: print a key and its line for --keys, and do nothing else.
        state: Folder of the jobs' states and results, or redis://HOST:PORT/NUMBER of one service.
        engine: local: a process for each worker; ray: actors on the nodes of a cluster.
        replicas: Workers that make LoRA files, and as many that make images.
        limits: What callers may ask for.
        batching: How requests are computed together.
    """

    group: ClassVar[str] = "Use"
    more: ClassVar[dict[str, tuple[str, ...]]] = {}

    synthesizer: Repeated = ()
    base: str = "bundle/base"
    library: str | None = None
    loras_only: bool = False
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    keys: Path | None = None
    new_key: str | None = None
    state: str = "runs/serve"
    engine: Literal["local", "ray"] = "local"
    replicas: Annotated[int, Field(ge=1)] = 1
    limits: Limits = Limits()
    batching: Batching = Batching()

    def run(self) -> None:
        """Serve until Ctrl-C."""
        needed = {"serve": _PACKAGES} | self.more
        needed |= {"cluster": ("ray",)} if self.engine == "ray" else {}
        needed |= {"redis": ("redis",)} if in_redis(self.state) else {}
        packages = [name for names in needed.values() for name in names]
        if missing := [name for name in packages if find_spec(name) is None]:
            raise ConfigError(
                f"serving needs an extra, but {', '.join(missing)} is not installed: "
                f"{installing(','.join(needed))}"
            )
        from lorasynth.serve.gate import LOOPBACK, new_key, read_keys

        if self.new_key is not None:
            key, line = new_key(self.new_key)
            print(f"for the caller: {key}\nfor the file of --keys: {line}")
            return
        keys = read_keys(self.keys)
        if not keys and self.host not in LOOPBACK:
            raise ConfigError(
                f"callers of --host {self.host} need keys, but there are none: give --keys, or "
                "listen at 127.0.0.1"
            )
        with (
            listening(self.host, self.port) as sock,
            (alone_in_redis if in_redis(self.state) else alone)(self.state) as jobs,
            self.page_folder() as page,
        ):
            self._serve(sock, jobs, keys, page)

    def page_folder(self) -> contextlib.AbstractContextManager[Path | None]:
        """The folder for files of the page, where there is one."""
        return contextlib.nullcontext()

    def _serve(
        self, sock: socket.socket, jobs: "JobFile", keys: list[str], page: Path | None
    ) -> None:
        import uvicorn

        from lorasynth.serve.application import create_app
        from lorasynth.serve.engine import ENGINES, Engine
        from lorasynth.serve.gate import Figures

        folders, figures = self.synthesizer or ("bundle/synthesizer",), Figures()
        base = None if self.loras_only else self.base
        setup = Setup(synthesizers=folders, base=base, library=self.library, device=self.device)
        counts = {"loras": self.replicas}
        counts |= {} if base is None else {"images": self.replicas, "refine": 1}
        make = ENGINES[self.engine]
        remotes = {kind: [make(kind, setup) for _ in range(n)] for kind, n in counts.items()}
        engine = Engine(
            remotes, self.batching, lambda kind, n: figures.batches.labels(kind).observe(n)
        )
        try:
            engine.start()
            app = create_app(engine, jobs, self.limits, keys, figures, page)
            host = f"[{self.host}]" if ":" in self.host else self.host
            console.print(f"serving at http://{host}:{sock.getsockname()[1]}", soft_wrap=True)
            config = uvicorn.Config(
                app,
                http="h11",  # which bounds headers
                access_log=False,
                log_level="error",
                server_header=False,
                limit_concurrency=4 * self.limits.queue + 64,
                timeout_graceful_shutdown=10,
            )
            with contextlib.suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[sock])
        finally:
            engine.stop()


@dataclass(frozen=True, kw_only=True)
class Ui(Serve):
    """Show a page in the browser: photos to LoRA files and images, and a doctor of LoRA files.

    It is the service of `lorasynth serve` with a page, which is at the address that is printed; all
    options are the same. Photos are in memory, and are deleted when the page is closed.

    Consent: of people only with their consent. Every file says that it is synthesised.

    Attributes:
        state: Folder of the jobs' states and results, or redis://HOST:PORT/NUMBER.
        limits: What callers may ask for.
    """

    more: ClassVar[dict[str, tuple[str, ...]]] = {"ui": ("gradio",)}

    state: str = "runs/ui"
    limits: Limits = Limits(body=512, memory=2048)  # for LoRA files of large models

    @contextlib.contextmanager
    def page_folder(self) -> Iterator[Path]:
        """A folder of this process's own, in memory where there is such a place; gone at the end.

        What one that was killed has left is deleted first.
        """
        import psutil

        from lorasynth.serve.workers import memory_folder

        place, begin = Path(memory_folder() or tempfile.gettempdir()), "lorasynth-ui-"
        for old in place.glob(f"{begin}*"):
            number = old.name.removeprefix(begin).partition("-")[0]
            if number.isdecimal() and not psutil.pid_exists(int(number)):
                shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"{begin}{os.getpid()}-", dir=place) as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
            yield Path(folder)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket on a port; 0: any that is free.

    Raises:
        ConfigError: the port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(socket.SOMAXCONN)
        except OSError as error:
            raise ConfigError(
                f"--port must be free at {host}, but {port} is not to be had ({error.strerror}): "
                "end what uses it, or choose another"
            ) from error
        yield sock


@contextlib.contextmanager
def alone(state: str) -> Iterator["JobFile"]:
    """The jobs in a folder that no other service uses, and nobody else can read.

    Raises:
        ConfigError: another one uses it.
    """
    from filelock import FileLock, Timeout

    from lorasynth.serve.jobs import JobFile

    folder = Path(state)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield JobFile(folder / "jobs.sqlite")
    except Timeout as error:
        raise ConfigError(
            f"--state must be of one service, but another one uses {folder}: choose another"
        ) from error


@contextlib.contextmanager
def alone_in_redis(state: str) -> Iterator["JobFile"]:
    """The jobs in a database of Redis that no other service uses.

    Raises:
        ConfigError: another one uses it, or it does not answer.
    """
    from lorasynth.serve.jobs import JobRedis
    from lorasynth.serve.requests import RefusedError

    service = "lorasynth-serve"  # what its connections are called, as long as it lives
    shown = state.rpartition("@")[2]  # without a password
    try:
        used = JobRedis(state).is_used(service)
        jobs = JobRedis(state, service)
        jobs.get("", "")
    except (ValueError, RefusedError) as error:
        raise ConfigError(
            f"--state must be a folder, or redis://HOST:PORT/NUMBER where Redis answers, but at "
            f"{shown} none does"
        ) from error
    if used:
        raise ConfigError(
            f"--state must be of one service, but another one uses {shown}: choose another NUMBER"
        )
    yield jobs
