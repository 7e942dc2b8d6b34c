"""`lorasynth recipe domain`: from a folder of images to a measured synthesizer."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import field, fields, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import AvoidSubcommands

from lorasynth.codec.config import PCAConfig
from lorasynth.commands.collect import Collect
from lorasynth.commands.evaluate import Evaluate
from lorasynth.commands.plan import Plan
from lorasynth.commands.pretrain import Pretrain
from lorasynth.commands.shared import PORTRAIT, TRIGGER, WithBase, WithImages
from lorasynth.commands.train import Fit, Train
from lorasynth.commands.training import WithRecipe
from lorasynth.core.command import Out
from lorasynth.core.errors import ConfigError
from lorasynth.evaluation.config import BenchmarkConfig
from lorasynth.hypernet.config import HypernetConfig
from lorasynth.predict.config import PredictorTraining

if TYPE_CHECKING:
    from lorasynth.core.stages import StagedRun

_GB = 1e9
#: Seconds of training that --plan measures.
_MEASURED = 5.0
#: TFLOP/s where it cannot be measured: an A100's in bf16.
_ASSUMED = 125.0
#: Samples of its steps, at most.
_BATCH = 16
#: Fields that say how a run goes on, and decide nothing of what it makes.
_FREE = ("out", "device", "plan", "only", "gpu")


@dataclass(frozen=True, kw_only=True)
class Domain(WithRecipe, WithBase, WithImages):
    """Make a measured synthesizer of your own domain from images; run again to go on.

    Stages, each in OUT/out: check (looks at every image), learn.parquet (who is learned from and
    who is held out, with captions), predictor, with --library also library, codec and synthesizer,
    then benchmark and model. One that is made is skipped; delete it to make it again.
    OUT/index.html shows how far it is.

    Several GPUs: `accelerate launch -m lorasynth recipe domain ... --only predictor` first.

    Consent: of people only with their consent.

    Example: lorasynth recipe domain people --base hub:stabilityai/stable-diffusion-xl-base-1.0
    --encoder dlib --gpu 24GB -o runs/people

    Attributes:
        out: Folder of the run; OUT/out/model is the result.
        encoder: Condition encoder: a folder or a name.
        second: Held-out encoder for the benchmark only.
        trigger: Trigger phrase, such as 'sks person', stored in the metadata.
        captioner: Model of transformers that says what images without a caption show: a folder, or
            hub:owner/name; default: --caption alone.
        library: Adapters to train around the predictor, from which diffusion learns how they
            scatter; 0: the predictor is the synthesizer.
        latents: Principal components of those adapters.
        plan: Say what will be done and what it takes, measured for some seconds where the base
            model's weights are here, else from its configs alone; do nothing.
        gpu: Memory of the GPU, such as 24GB: dtype, gradient checkpointing and batch are chosen so
            that it is enough.
        only: Make this stage alone.
        predictor: How it is trained.
        diffusion: How that around it is trained.
        benchmark: The images that are made of held-out subjects.
    """

    group: ClassVar[str] = "Make a synthesizer"
    shared: ClassVar[bool] = True

    out: Out
    encoder: str
    second: str | None = None
    trigger: str = TRIGGER
    captioner: str | None = None
    library: Annotated[int, Field(ge=0)] = 0
    latents: Annotated[int, Field(ge=1)] = 128
    plan: bool = False
    gpu: str | None = None
    only: str | None = None
    predictor: PredictorTraining = field(default_factory=PredictorTraining)
    diffusion: Annotated[HypernetConfig, AvoidSubcommands] = field(default_factory=HypernetConfig)
    benchmark: BenchmarkConfig = field(default_factory=lambda: BenchmarkConfig(subjects=20))

    def run(self) -> Path:
        """Make what is missing; the path of the synthesizer, or of what was to be made alone."""
        from lorasynth.commands.recipe_page import kept_page
        from lorasynth.core.device import launched, pick_device
        from lorasynth.engine.processes import Processes

        first = Processes.here(pick_device(self.device)).is_first
        if self.only != "predictor" and launched() > 1:
            raise ConfigError(
                f"{launched()} processes share the stage predictor, but all stages are asked for: "
                "launch --only predictor, then run the command without a launcher"
            )
        chosen = self.fitted() if self.gpu else self
        stages = chosen.stages
        stages.require_same_choices()
        if self.plan:
            chosen.say()
            return stages.path("model")
        with kept_page(self.out, stages) if first else nullcontext():
            if self.only is not None:
                stages.make(self.only)
            else:
                stages.make_all()
        made = stages.path(self.only or "model")
        print(f"{made}, {self.out / 'index.html'}")
        return made

    @cached_property
    def stages(self) -> "StagedRun":
        """What is made, in its order."""
        from lorasynth.core.config import to_dict
        from lorasynth.core.stages import StagedRun

        makers: dict[str, Callable[[Path], Any]] = {
            "check": self._check,
            "learn.parquet": self._choose,
            "predictor": lambda path: self._predictor(path).run(),
        }
        if self.library:
            makers |= {
                "library": lambda path: self._collect(path).run(),
                "codec": lambda path: self._codec(path).run(),
                "synthesizer": lambda path: self._synthesizer(path).run(),
            }
        makers |= {"benchmark.json": self._measure, "model": self._finish}
        stated = {name: value for name, value in to_dict(self).items() if name not in _FREE}
        return StagedRun(self.out, makers, stated)

    # The stages ---------------------------------------------------------------------------------

    def _check(self, path: Path) -> None:
        """Look at every image, and write what was found."""
        from lorasynth.collect.checking import check_images
        from lorasynth.collect.sheet import cut_subjects, write_sheet
        from lorasynth.condition import JoinedEncoder, load_encoder
        from lorasynth.core.atomic import atomic_directory, write_json
        from lorasynth.core.device import pick_device

        base = replace(self, device="meta").load_base()
        # An image counts if those who condition and those who judge find something in it.
        named = [name for name in (self.encoder, self.second) if name]
        parts = [load_encoder(name, pick_device(self.device)) for name in named]
        encoder = parts[0] if len(parts) == 1 else JoinedEncoder(parts)
        # With the usual caption, which says that an image has none of its own.
        source = replace(self, caption=PORTRAIT).load_images(base.image_size)
        found = check_images(source, encoder)
        print(found.table)
        kept = {"photos": found.photos, "captions": found.captions, "groups": found.groups}
        with atomic_directory(path) as folder:
            write_json(folder / "report.json", found.report)
            write_json(folder / "usable.json", kept)
            (folder / "report.txt").write_text(found.table)
            first = list(found.photos)[:16]
            shown = cut_subjects(source, first, base.frames, [encoder])
            write_sheet(folder / "sheet.png", shown)

    def _choose(self, path: Path) -> None:
        """Hold subjects out, and write everybody's captions."""
        from lorasynth.collect.checking import Checked
        from lorasynth.core.config import read_json
        from lorasynth.images.chosen import write_choices

        kept = read_json(self.stages.path("check") / "usable.json")
        found = Checked(photos=kept["photos"], captions=kept["captions"], groups=kept["groups"])
        choices = found.choices(self._captions(found.photos, found.captions))
        tests = {name: one for name, one in choices.items() if one.split == "test"}
        write_choices(self._tests, tests)
        write_choices(path, {n: one for n, one in choices.items() if n not in tests})

    def _captions(
        self, photos: Mapping[str, Sequence[int]], own: Mapping[str, Sequence[str | None]]
    ) -> dict[str, list[str]]:
        """Everybody's captions; those that are missing are made, or --caption."""
        from lorasynth.collect.captioning import Captioner
        from lorasynth.core.device import pick_device
        from lorasynth.core.progress import progress

        if self.captioner is None:
            return {name: [text or self.caption for text in texts] for name, texts in own.items()}
        captioner = Captioner.load(self.captioner, pick_device(self.device))
        source, said = self.load_images(self.size or 512), dict[str, list[str]]()
        with progress("captions", len(own)) as advance:
            for name, texts in own.items():
                said[name] = [text or "" for text in texts]
                if None in texts:
                    subject = source.load(name)
                    made = captioner(
                        replace(subject, photos=[subject.photos[i] for i in photos[name]])
                    )
                    said[name] = [
                        text or f"{self.caption}, {new}"
                        for text, new in zip(texts, made, strict=True)
                    ]
                advance()
        return said

    def _predictor(self, path: Path) -> Pretrain:
        return Pretrain(
            **self._adapters,
            out=path,
            encoder=self.encoder,
            trigger=self.trigger,
            training=self.predictor,
            run_folder=self.out / "work/predictor",
        )

    def _collect(self, path: Path) -> Collect:
        """The first of those that are learned from; the held-out ones stop the training."""
        return Collect(
            **self._adapters | {"images": f"chosen:{self._first()}:{self.images}"},
            out=path,
            encoder=self.encoder,
            init_from=str(self.stages.path("predictor")),
        )

    def _first(self) -> Path:
        """A table of as many subjects as the library shall have."""
        from itertools import islice

        from lorasynth.images.chosen import read_choices, write_choices

        path = self.out / "work/library.parquet"
        choices = read_choices(self.stages.path("learn.parquet"))
        train = ((name, one) for name, one in choices.items() if one.split == "train")
        write_choices(path, dict(islice(train, self.library)))
        return path

    def _codec(self, path: Path) -> Fit:
        kind: Any = Fit.kinds()["pca"]
        latents = min(self.latents, self.library - 1)
        fit: Fit = kind(
            library=self.stages.path("library"),
            out=path,
            split="all",  # those that it was collected of are of one split
            run_folder=self.out / "work/fit",
            device=self.device,
            config=PCAConfig(latents=latents),
        )
        return fit

    def _synthesizer(self, path: Path) -> Train:
        return Train(
            library=self.stages.path("library"),
            codec=self.stages.path("codec"),
            encoder=self.encoder,
            out=path,
            split="all",
            base=self.base,
            residual_of=str(self.stages.path("predictor")),
            trigger=self.trigger,
            run_folder=self.out / "work/synthesizer",
            device=self.device,
            training=self.diffusion,
        )

    def _measure(self, path: Path) -> None:
        """Predictor, synthesizer, adapters that are trained and the base model, on the tests."""
        from lorasynth.core.atomic import write_json
        from lorasynth.core.config import to_dict
        from lorasynth.images.chosen import read_choices

        fewest = min(len(one.photos) for one in read_choices(self._tests).values())
        write_json(recipe := self.out / "work/recipe.json", to_dict(self._own_recipe()))
        names = ["base", "direct", *(["synthesised"] if self.library else []), "trained"]
        Evaluate(
            **self._loading,
            test_images=f"chosen:{self._tests}:{self.images}",
            synthesizer=str(self._best),
            regression=str(self.stages.path("predictor")),
            recipe=recipe,
            encoder=self.encoder,
            second=self.second,
            prompt=(self.caption,),
            judging=max(fewest // 2, 1),
            benchmark=replace(self.benchmark, seed=self.seed),
            cache=self.out / "work/evaluation",
            contenders=",".join(names),
            out=path,
            sheets=path.with_name("benchmark"),
        ).run()

    def _own_recipe(self) -> Any:
        return self.recipe_for(replace(self, device="meta").load_base())

    def _finish(self, path: Path) -> None:
        """The synthesizer with its card."""
        from lorasynth.core.card import Card
        from lorasynth.core.config import read_json
        from lorasynth.evaluation.bootstrap import in_words
        from lorasynth.synthesizer import Synthesizer

        rows = read_json(self.stages.path("benchmark.json"))["rows"]
        figures = {
            f"identity similarity, {row['method']} ({row['n']} subjects never learned from)": (
                in_words(row["identity_similarity"])
            )
            for row in rows
            if "identity_similarity" in row
        }
        Synthesizer.from_pretrained(self._best).save_pretrained(path, Card(figures=figures))

    # What the stages share ----------------------------------------------------------------------

    @property
    def _tests(self) -> Path:
        return self.out / "work/test.parquet"

    @property
    def _best(self) -> Path:
        return self.stages.path("synthesizer" if self.library else "predictor")

    @property
    def _loading(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(WithBase)}

    @property
    def _adapters(self) -> dict[str, Any]:
        learn = f"chosen:{self.stages.path('learn.parquet')}:{self.images}"
        names = ("preset", "recipe", "seed", "caption", "buckets")
        stated = {name: getattr(self, name) for name in names}
        return {**self._loading, **stated, "images": learn}

    # The plan -----------------------------------------------------------------------------------

    def fitted(self) -> "Domain":
        """These choices with a dtype, checkpointing and batch for which the GPU has memory.

        Raises:
            ConfigError: one adapter at a time is too much.
        """
        wanted, tried = self.predictor.optimisation.batch, list[tuple[int, Domain]]()
        for dtype, checkpointing in dict.fromkeys(
            [(self.dtype, self.gradient_checkpointing), ("bfloat16", False), ("bfloat16", True)]
        ):
            one = replace(self, dtype=dtype, gradient_checkpointing=checkpointing)
            [row] = one.planned(_ASSUMED).rows("pretrain")
            tried.append((row["at_once"], one))
            if tried[-1][0] >= wanted:
                break
        batch, best = max(tried, key=lambda pair: pair[0])
        if not batch:
            raise ConfigError(
                f"one adapter must fit into --gpu {self.gpu}, but the base model {self.base} with "
                "one takes more: use a larger GPU, a smaller --size or a smaller base model"
            )
        options = replace(best.predictor.optimisation, batch=min(batch, wanted))
        chosen = replace(best, predictor=replace(best.predictor, optimisation=options))
        print(
            f"for {self.gpu}: --dtype {chosen.dtype}, batch {options.batch} of {wanted}, gradient "
            f"checkpointing {'on' if chosen.gradient_checkpointing else 'off'}"
        )
        return chosen

    def planned(self, tflops: float) -> Plan:
        """The command that says memory and hours."""
        options, recipe = self.predictor.optimisation, self.recipe
        return Plan(
            **self._loading,
            gpu=self.gpu or "24GB",
            tflops=tflops,
            pretrain_steps=options.steps,
            subjects_per_step=options.batch * self.predictor.images,
            adapters=max(self.library, self.benchmark.subjects or 20),
            adapter_steps=recipe.steps,
            images_per_step=recipe.images_per_step,
            rank=recipe.rank,
        )

    def say(self) -> None:
        """Print the stages, and what they take: on this device, or, without weights, on paper."""
        import torch

        from lorasynth.base import BaseModel
        from lorasynth.engine import plan

        self.stages.say()
        sketch = BaseModel.load(self.base, "meta", image_size=self.size)
        rate, how = _ASSUMED, "assumed: the weights are not here"
        if sketch.fingerprint:
            base, batch = self.load_base(), min(self.predictor.optimisation.batch, _BATCH)
            recipe = self.recipe_for(base)
            rate = plan.measured_rate(base, recipe.targets, recipe.rank, batch, _MEASURED)
            how = f"measured here in {_MEASURED:g} s of training"
        planned = self.planned(rate)
        planned.show(planned.rows(), how)
        source = self.load_images(sketch.image_size)
        ids = list(source.ids)
        images = len(ids) * len(source.load(ids[0]).photos)
        with plan.fake(sketch, self.base, getattr(torch, self.dtype)) as fake:
            parts = fake.encode_prompts([self.caption]).parts.values()
            numbers = prod(fake.latent_shape) + sum(part[0].numel() for part in parts)
        print(f"disk: {images * 4 * numbers / _GB:.2g} GB for about {images} encoded images")
