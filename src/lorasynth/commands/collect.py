"""`lorasynth collect`: train an adapter for each of many subjects."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic.dataclasses import dataclass

from lorasynth.collect.config import CollectConfig
from lorasynth.commands.shared import WithBase, WithBuckets, WithImages
from lorasynth.commands.training import WithRecipe, WithSheet
from lorasynth.core.command import Out
from lorasynth.core.errors import CollectionError, ConfigError

if TYPE_CHECKING:
    from lorasynth.collect import Worker
    from lorasynth.collect.worker import Executor


@dataclass(frozen=True, kw_only=True)
class WithWorker(WithBase, WithBuckets):
    """What trains and judges, in this process or in those of a cluster.

    Attributes:
        encoder: Also embed the subjects with this condition encoder: a folder, or a name that
            `lorasynth conditions` lists; it finds the faces around which photos are cut, too.
        init_from: Initialise each adapter from this synthesizer; weight decay acts toward it.
        min_similarity: Reject adapters whose samples have less identity similarity to their
            subjects, as the encoder sees it.
    """

    encoder: str | None = None
    init_from: str | None = None
    min_similarity: float | None = None

    def load_worker(self) -> "Worker":
        """Load it.

        Raises:
            LorasynthError: a part is damaged, or for another base model, or a gate has no encoder.
        """
        from lorasynth.base.compatibility import require_made_for
        from lorasynth.collect import SimilarityGate, Worker
        from lorasynth.condition import load_encoder
        from lorasynth.core.device import pick_device
        from lorasynth.synthesizer import Synthesizer

        if self.min_similarity is not None and self.encoder is None:
            raise ConfigError("--min-similarity needs an encoder that compares: give --encoder")
        on = pick_device("cpu" if self.device == "meta" else self.device)
        worker = Worker(base=self.load_base())
        if self.encoder is not None:
            worker.encoder = load_encoder(self.encoder, on)
            if self.min_similarity is not None:
                worker.gate = SimilarityGate(
                    base=worker.base, encoder=worker.encoder, least=self.min_similarity
                )
        if self.init_from is not None:
            start = Synthesizer.from_pretrained(self.init_from, device=on)
            require_made_for(worker.base, start.base_fingerprint, f"synthesizer {self.init_from}")
            worker.init_from = start
        return worker

    def anywhere(self) -> "WithWorker":
        """These options alone, with whole paths, for processes in other folders."""
        given = {one.name: getattr(self, one.name) for one in fields(WithWorker)}
        for name in ("base", "encoder", "init_from"):
            given[name] = given[name] and _whole(given[name])
        return WithWorker(**given)


def _whole(name: str) -> str:
    """A name with the whole path of what is on this disk, as in `onnx:FILE`; else as it is."""
    if Path(name).exists():
        return str(Path(name).resolve())
    kind, _, file = name.partition(":")
    return f"{kind}:{Path(file).resolve()}" if file and Path(file).exists() else name


@dataclass(frozen=True, kw_only=True)
class Collect(WithRecipe, CollectConfig, WithWorker, WithImages, WithSheet):
    """Train an adapter for each subject into a library; run again to resume.

    What failed, and why, is listed in LIBRARY.failures.json. On many machines: --shard 1/8 to 8/8,
    or --engine ray (docs/cluster.md).

    Consent: of people only with their consent.

    Example: lorasynth collect people -o library --recipe.steps 300 --init-from bundle/pretrained

    Attributes:
        out: Library to make or to go on with.
        shard: i/n: collect part i of n alone, into OUT/parts; `lorasynth library join OUT` joins
            them.
        engine: What does the work: this process, or the workers of a Ray cluster.
        address: Ray cluster: host:port of its head, auto for one that runs on this machine; local
            starts one.
    """

    group: ClassVar[str] = "Make a synthesizer"

    out: Out
    shard: str | None = None
    engine: Literal["here", "ray"] = "here"
    address: str = "local"

    def run(self) -> Path:
        """Collect; the library's path."""
        from lorasynth.collect import collect, embed_library
        from lorasynth.collect.collector import require_place
        from lorasynth.collect.failures import Failures
        from lorasynth.collect.shards import Part, begin_part
        from lorasynth.collect.sheet import cut_subjects
        from lorasynth.collect.worker import embed_over
        from lorasynth.library import Library

        require_place(self.out)
        part = None if self.shard is None else Part.parse(self.shard)
        with self._workers() as (worker, executor):
            images = self if self.engine == "here" else replace(self, images=_whole(self.images))
            source, out = images.load_images(worker.base.image_size), self.out
            if part is not None:
                source, out = begin_part(source, out, part)
            encoder = worker.encoder
            frames, looking = worker.base.frames, worker.looking
            self.draw_sheet(cut_subjects(source, source.ids, frames, looking))
            report = collect(worker, source, out, self.recipe_for(worker.base), self, executor)
            library, failed = Library.open(out), report.failed
            if failed and not len(library):
                raise CollectionError(
                    f"at least one subject must give an adapter, but all {len(failed)} failed, the "
                    f"first because: {next(iter(failed.values()))}"
                )
            if encoder is not None:
                embed = embed_over(executor, source)
                embed_library(library, source, encoder, embed, report.conditions)
        pace = report.seconds / max(len(report.collected), 1)
        why = f" ({Failures(out).path})" if failed else ""
        print(
            f"{out}: {len(library)} adapters, {len(report.collected)} of them new "
            f"({pace:.1f} s each), {len(failed)} failed{why}"
        )
        return out

    @contextmanager
    def _workers(self) -> "Iterator[tuple[Worker, Executor]]":
        """What is loaded here, and what works."""
        from lorasynth.collect import Local
        from lorasynth.collect.cluster import connected

        if self.engine == "here":
            worker = self.load_worker()
            yield worker, Local(worker)
        else:
            sketch = replace(self.anywhere(), device="meta").load_worker()
            with connected(self.address, self.anywhere()) as cluster:
                yield sketch, cluster
