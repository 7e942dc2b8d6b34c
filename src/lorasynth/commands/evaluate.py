"""`lorasynth evaluate`: contenders on subjects that none of them has learned from."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional, arg

from lorasynth.commands.shared import PORTRAIT, OfOtherBase, Repeated, WithBase
from lorasynth.core.command import Command, Flat
from lorasynth.core.errors import ConfigError
from lorasynth.evaluation.config import BenchmarkConfig

if TYPE_CHECKING:
    from lorasynth.core.cache import Cache
    from lorasynth.evaluation.benchmark import Benchmark, Contender
    from lorasynth.evaluation.cases import TestSubjects
    from lorasynth.evaluation.contenders import Parts

#: Figures on the screen, as far as they are measured, with short heads.
_COLUMNS = {
    "identity_similarity": "identity",
    "identity_similarity_second": "second",
    "reference_similarity": "to ref.",
    "copy_paste": "copied",
    "attribute_accuracy": "traits",
    "prompt_following": "prompts",
    "prompt_score": "CLIP",
    "diversity": "diverse",
}
_ENCODERS = ("bundle/encoders/avatar", "bundle/encoders/avatar-second")


@dataclass(frozen=True, kw_only=True)
class WithBenchmark(WithBase, OfOtherBase):
    """Test subjects, what judges their images, and what is judged.

    Attributes:
        test_images: Test subjects: as the IMAGES of collect, the first images of each condition
            and the others judge; default: the shipped avatars' test subjects.
        synthesizer: Synthesizer: a folder, or hub:owner/name; default, of avatars: the shipped one
            with its regression, library and recipe.
        regression: Synthesizer that pretrain made: the contender direct, and what trained
            adapters start from.
        library: Folder of latents of a library in the synthesizer's codec, for baselines.
        recipe: JSON file of the recipe of trained adapters.
        encoder: Encoder that measures identity; default: the shipped avatars' two.
        second: Held-out encoder for evaluation only.
        clip: CLIP model that scores prompts: a folder, or hub:owner/name.
        attributes: Folder of what reads attributes off avatars.
        prompt: Prompt; repeatable, in turn; default: avatars' own, else a portrait.
        references: Images of each subject that condition.
        judging: Images of each subject that judge, the last ones; trained contenders learn from all
            others. Default: all but the references judge.
        benchmark: The images that are made.
        cache: Folder for trained adapters and measurements, which are not made twice.
    """

    test_images: Positional[str | None] = None
    synthesizer: str | None = None
    regression: str | None = None
    library: Path | None = None
    recipe: Path | None = None
    encoder: str | None = None
    second: str | None = None
    clip: str | None = None
    attributes: str = "bundle/judge"
    prompt: Repeated = ()
    references: Annotated[int, Field(ge=1)] = 1
    judging: Annotated[int, Field(ge=1)] | None = None
    benchmark: Annotated[BenchmarkConfig, Flat] = field(default_factory=BenchmarkConfig)
    cache: Path = Path("runs/evaluation")

    def load_parts(self) -> "Parts":
        """What contenders are made from.

        Raises:
            LorasynthError: one is damaged, or made for another base model.
        """
        from lorasynth.base.compatibility import require_fits, require_made_for
        from lorasynth.core.config import from_dict, read_json
        from lorasynth.core.places import local
        from lorasynth.edit.latent_library import LatentLibrary
        from lorasynth.engine.recipe import Recipe
        from lorasynth.evaluation.contenders import Parts
        from lorasynth.synthesizer import Synthesizer

        shipped = self.synthesizer is None and self.test_images is None
        names = (self.synthesizer, self.regression)
        library, recipe = self.library, self.recipe
        if shipped:
            names = ("bundle/synthesizer", self.regression or "bundle/pretrained")
            library, recipe = (
                one or Path("bundle") / name
                for one, name in ((library, "library"), (recipe, "recipe.json"))
            )
        base = self.load_base()
        synthesizer, regression = (name and Synthesizer.from_pretrained(name) for name in names)
        for name, one in zip(names, (synthesizer, regression), strict=True):
            if isinstance(one, Synthesizer) and self.allow_other_base:
                require_fits(base, one.layout)
            elif isinstance(one, Synthesizer):
                require_made_for(base, one.base_fingerprint, f"synthesizer {name}")
        parts = Parts(
            base=base,
            synthesizer=synthesizer or None,
            regression=regression or None,
            recipe=None if recipe is None else from_dict(Recipe, read_json(local(recipe))),
            seed=self.benchmark.seed,
        )
        if library is None:
            return parts
        return replace(parts, library=LatentLibrary.open(library, parts.whole.codec))

    def load_benchmark(
        self,
        parts: "Parts",
        cache: "Cache",
        config: BenchmarkConfig | None = None,
        skipped: int = 0,
    ) -> "Benchmark":
        """The test subjects and what judges them; by another config, if one is given.

        Args:
            parts: what contenders are made from.
            cache: for measurements.
            config: of avatars, and how many subjects.
            skipped: the first subjects, of images of your own, that are left out.

        Raises:
            LorasynthError: an encoder or a subject cannot be used, or the synthesizer has learned
                from one.
        """
        from lorasynth.condition import load_encoder
        from lorasynth.core.learned import require_unseen
        from lorasynth.evaluation.benchmark import Benchmark
        from lorasynth.evaluation.metrics import Judges, metrics_for

        subjects = self._subjects(config or self.benchmark, parts.base.image_size, skipped)
        for one in (parts.synthesizer, parts.regression):
            if one is not None:
                require_unseen(one.learned, subjects.ids, "the synthesizer")
        names = [*_ENCODERS] if self.encoder is None else [self.encoder]
        names += [] if self.second is None else [self.second]
        judges = Judges(
            encoders=[load_encoder(name, parts.base.device) for name in names],
            clip=self.clip,
            attributes=self.attributes,
        )
        return Benchmark(
            parts.base,
            subjects,
            metrics_for(judges, subjects),
            config or self.benchmark,
            conditioners=parts.conditioners,
            cache=cache,
        )

    def _subjects(self, config: BenchmarkConfig, size: int, skipped: int) -> "TestSubjects":
        from lorasynth.evaluation.cases import SplitSubjects, TestSubjects
        from lorasynth.images import subjects_in

        facts = f"split={config.split},images={config.training_images},seed={config.seed}"
        place = self.test_images or f"test-avatars:{config.drawn},{facts}"
        found = subjects_in(place, PORTRAIT, size)
        if isinstance(found, TestSubjects):
            return found
        return SplitSubjects(
            source=found,
            prompts=self.prompt or (PORTRAIT,),
            references=self.references,
            subjects=config.subjects,
            skipped=skipped,
            judging=self.judging,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command, WithBenchmark):
    """Measure contenders on unseen subjects: identity, copy-paste, prompts, diversity.

    The first images of each subject condition, the others judge. By default the subjects are the
    shipped avatars' test subjects, and all contenders that can be made take part.

    Example: lorasynth evaluate people --encoder dlib --synthesizer mine --lora peer=loras
    -o report.json

    Attributes:
        out: JSON file to write, with curves beside it where there are several strengths.
        contenders: Names with commas, of base, described, mean, nearest, ridge, mlp, direct,
            synthesised, trained, and what is made only when it is asked for: refined, and trained
            adapters in canonical form (canonical), through the codec (compressed), and denoised by
            the hypernetwork (denoised); default: base and synthesised, of avatars all others.
        lora: NAME=PATH of a contender: a folder with a LoRA for each subject, named after it;
            repeatable.
        style: PATH=STRENGTH of a LoRA that is added to every contender; repeatable.
        strength: Strength to measure each contender at; repeatable.
        tune: Choose every contender's strength on this many validation avatars first; of images of
            your own, on so many of the first subjects, which are then not measured.
        sheets: Folder for a sheet of images of each of the first 16 subjects.
    """

    group: ClassVar[str] = "Measure"

    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    contenders: str | None = None
    lora: Repeated = ()
    style: Repeated = ()
    strength: Repeated = ()
    tune: Annotated[int, Field(ge=2)] | None = None
    sheets: Path | None = None

    def run(self) -> dict[str, Any]:
        """The report, which is written and printed."""
        from lorasynth.core.atomic import make_parent
        from lorasynth.core.cache import Cache
        from lorasynth.core.places import public_name
        from lorasynth.evaluation.report import at_strengths, evaluate, save_report, tuned

        if self.out is not None:
            make_parent(self.out)
        strengths = [_number(text, "--strength") for text in self.strength]
        cache, parts = Cache(self.cache), self.load_parts()
        benchmark = self.load_benchmark(parts, cache, skipped=self.tune or 0)
        contenders = self._contenders(parts, benchmark, cache)
        if self.tune is not None:
            asked = replace(self.benchmark, subjects=self.tune, split="validation")
            practice = self.load_benchmark(parts, cache, asked)
            best = tuned(practice, self._contenders(parts, practice, cache))
            contenders = [replace(c, strength=best.get(c.name, 1.0)) for c in contenders]
        contenders = at_strengths(contenders, strengths)
        report = evaluate(benchmark, contenders, parts)
        if self.test_images is not None:  # of which these options say nothing
            for name in ("split", "training_images"):
                del report["config"][name]
            report["images"] = public_name(self.test_images)
        print_table(report["rows"])
        if self.sheets is not None:
            benchmark.save_sheets(contenders, self.sheets, 16)
            print(self.sheets)
        if self.out is not None:  # last, so that it says that all is there
            save_report(report, self.out)
            print(self.out)
        return report

    def _contenders(
        self, parts: "Parts", benchmark: "Benchmark", cache: "Cache"
    ) -> "list[Contender]":
        from lorasynth.adapter import Adapter
        from lorasynth.evaluation.contenders import contenders_of, from_files

        names = self.contenders.split(",") if self.contenders else None
        if names is None and self.test_images is not None:
            names = ["base", *(["synthesised"] if parts.synthesizer else [])]
        styles = []
        for text in self.style:
            place, _, size = text.rpartition("=")
            if not place:
                raise ConfigError(
                    f"--style must be PATH=STRENGTH, such as ink.safetensors=0.7, but is {text!r}"
                )
            styles.append(Adapter.load(Path(place)).scaled(_number(size, "a strength of --style")))
        subjects = benchmark.subjects
        found = contenders_of(parts, subjects, cache, names, styles)
        for text in self.lora:
            name, equals, place = text.partition("=")
            if not equals or not name or not Path(place).exists():
                raise ConfigError(f"--lora must be NAME=PATH of what exists, but is {text!r}")
            found.append(from_files(name, Path(place), subjects.ids, parts.base, styles))
        return found


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{option} must be a number, but got {text!r}") from error


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows of a report on the screen."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    found = [name for name in _COLUMNS if any(name in row for row in rows)]
    heads = [_COLUMNS[name] for name in found]
    table = Table(box=SIMPLE, padding=0, title=f"{rows[0]['n']} subjects, 95 % interval")
    for head in ("", heads[0], "lo", "hi", *heads[1:]):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in rows:
        cells = [f"{row[name]['mean']:.2f}" if name in row else "" for name in found]
        ends = (f"{row[found[0]][end]:.2f}" if cells[0] else "" for end in ("lo", "hi"))
        table.add_row(row["method"], cells[0], *ends, *cells[1:])
    Console().print(table)
