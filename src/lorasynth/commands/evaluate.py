"""`lorasynth evaluate`: contenders on subjects that none of them has learned from."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional, arg

from lorasynth.commands.shared import PORTRAIT, Repeated, WithBase
from lorasynth.core.command import Command, Flat
from lorasynth.core.errors import ConfigError
from lorasynth.evaluation.config import BenchmarkConfig

if TYPE_CHECKING:
    from lorasynth.adapter import Adapter
    from lorasynth.evaluation.benchmark import Benchmark, Contender
    from lorasynth.evaluation.cases import TestSubjects
    from lorasynth.evaluation.contenders import Parts

#: Columns of the table on the screen, as far as they are measured.
_COLUMNS = (
    *("identity_similarity", "identity_similarity_second", "reference_similarity", "copy_paste"),
    *("attribute_accuracy", "prompt_following", "prompt_score", "diversity"),
)
_SHIPPED = ("bundle/encoders/avatar", "bundle/encoders/avatar-second")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command, WithBase):
    """Measure contenders on unseen subjects: identity, copy-paste, prompts, diversity.

    The first images of each subject condition, the others judge. By default the subjects are the
    shipped avatars' test subjects, and all contenders that can be made take part.

    Example: lorasynth evaluate people --encoder dlib --synthesizer mine --lora peer=loras
    -o report.json

    Attributes:
        test_images: Test subjects: as the IMAGES of collect; default: drawn avatars.
        out: JSON file to write, with curves beside it where there are several strengths.
        synthesizer: Synthesizer: a folder, or hub:owner/name; default, of avatars: the shipped
            one.
        regression: Synthesizer that pretrain made: the contender direct, and what trained
            adapters start from; default: the shipped one, with the shipped synthesizer, as are
            library and recipe.
        library: Folder of latents of a library in the synthesizer's codec, for the baselines.
        recipe: JSON file of the recipe of trained adapters, as collect writes it.
        contenders: Names with commas, of base, described, mean, nearest, ridge, mlp, direct,
            synthesised, trained, refined; default: base and synthesised, of avatars all but
            refined.
        lora: NAME=PATH of a contender: a folder with a LoRA for each subject, named after it;
            repeatable.
        style: PATH=STRENGTH of a LoRA that is added to every contender; repeatable.
        encoder: Encoder that measures identity; default: the shipped avatars' two.
        second: Held-out encoder for evaluation only.
        clip: CLIP model that scores prompts: a folder, or hub:owner/name.
        attributes: Folder of what reads attributes off avatars.
        prompt: Prompt; repeatable, in turn; default: the subjects' own, or a portrait.
        references: Images of each subject that condition, and that it is trained on.
        strength: Strength to measure each contender at; repeatable.
        tune: Choose every contender's strength on this many validation avatars first.
        sheets: Folder for a sheet of images of each of the first 16 subjects.
        cache: Folder for trained adapters and measurements, which are not made twice.
        benchmark: The images.
    """

    group: ClassVar[str] = "Measure"

    test_images: Positional[str | None] = None
    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    synthesizer: str | None = None
    regression: str | None = None
    library: Path | None = None
    recipe: Path | None = None
    contenders: str | None = None
    lora: Repeated = ()
    style: Repeated = ()
    encoder: str | None = None
    second: str | None = None
    clip: str | None = None
    attributes: str = "bundle/judge"
    prompt: Repeated = ()
    references: Annotated[int, Field(ge=1)] = 1
    strength: Repeated = ()
    tune: Annotated[int, Field(ge=2)] | None = None
    sheets: Path | None = None
    cache: Path = Path("runs/evaluation")
    benchmark: Annotated[BenchmarkConfig, Flat] = field(default_factory=BenchmarkConfig)

    def run(self) -> dict[str, Any]:
        """The report, which is written and printed."""
        from lorasynth.core.atomic import make_parent
        from lorasynth.evaluation.report import at_strengths, evaluate, save_report, tuned

        if self.out is not None:
            make_parent(self.out)
        strengths = [_number(text, "--strength") for text in self.strength]
        parts = self._parts()
        subjects = self._subjects(parts.base.image_size)
        benchmark, contenders = self._setup(parts, subjects)
        if self.tune is not None:
            asked = replace(self.benchmark, subjects=self.tune, split="validation")
            best = tuned(*self._setup(parts, _drawn(asked, parts.base.image_size)))
            tuned_ones = (replace(c, strength=best.get(c.name, c.strength)) for c in contenders)
            contenders = list(tuned_ones)
        contenders = at_strengths(contenders, strengths)
        report = evaluate(benchmark, contenders, parts)
        print_table(report["rows"])
        if self.out is not None:
            save_report(report, self.out)
            print(self.out)
        if self.sheets is not None:
            benchmark.save_sheets(contenders, self.sheets, 16)
            print(self.sheets)
        return report

    def _parts(self) -> "Parts":
        from lorasynth.base.compatibility import require_made_for
        from lorasynth.core.config import from_dict, read_json
        from lorasynth.core.places import local
        from lorasynth.edit.latent_library import LatentLibrary
        from lorasynth.engine.recipe import Recipe
        from lorasynth.evaluation.contenders import Parts
        from lorasynth.synthesizer import Synthesizer

        shipped = self.synthesizer is None and self.test_images is None
        name = "bundle/synthesizer" if shipped else self.synthesizer
        regression = self.regression or ("bundle/pretrained" if shipped else None)
        library = self.library or (Path("bundle/library") if shipped else None)
        recipe = self.recipe or (local("bundle/recipe.json") if shipped else None)
        base = self.load_base()
        made: list[Synthesizer | None] = []
        for place in (name, regression):
            made.append(None if place is None else Synthesizer.from_pretrained(place))
            if made[-1] is not None:
                require_made_for(base, made[-1].base_fingerprint, f"synthesizer {place}")
        synthesizer, other = made
        return Parts(
            base=base,
            synthesizer=synthesizer,
            regression=other,
            library=None
            if library is None or synthesizer is None
            else LatentLibrary.open(library, synthesizer.codec),
            recipe=None if recipe is None else from_dict(Recipe, read_json(recipe)),
            seed=self.benchmark.seed,
        )

    def _subjects(self, size: int) -> "TestSubjects":
        from lorasynth.evaluation.cases import SplitSubjects, TestSubjects
        from lorasynth.images import subjects_in

        asked = self.benchmark
        if self.test_images is None:
            return _drawn(asked, size)
        found = subjects_in(self.test_images, PORTRAIT, size)
        if isinstance(found, TestSubjects):
            return found
        prompts = self.prompt or (PORTRAIT,)
        return SplitSubjects(
            source=found, prompts=prompts, references=self.references, subjects=asked.subjects
        )

    def _setup(
        self, parts: "Parts", subjects: "TestSubjects"
    ) -> "tuple[Benchmark, list[Contender]]":
        """Subjects with what is measured of them, and the contenders on them."""
        from lorasynth.condition import load_encoder
        from lorasynth.core.cache import Cache
        from lorasynth.evaluation.benchmark import Benchmark
        from lorasynth.evaluation.contenders import contenders_of, from_files
        from lorasynth.evaluation.metrics import Judges, metrics_for

        names = self.contenders.split(",") if self.contenders else None
        if names is None and self.test_images is not None:
            names = ["base", *(["synthesised"] if parts.synthesizer else [])]
        encoders = [*_SHIPPED] if self.encoder is None else [self.encoder]
        encoders += [] if self.second is None else [self.second]
        judges = Judges(
            encoders=[load_encoder(name, parts.base.device) for name in encoders],
            clip=self.clip,
            attributes=self.attributes,
        )
        cache = Cache(self.cache)
        benchmark = Benchmark(
            parts.base,
            subjects,
            metrics_for(judges, subjects),
            self.benchmark,
            conditioners=parts.conditioners,
            cache=cache,
        )
        styles = [_style(text) for text in self.style]
        found = contenders_of(parts, subjects, cache, names)
        for text in self.lora:
            name, equals, place = text.partition("=")
            if not equals or not name or not Path(place).exists():
                raise ConfigError(f"--lora must be NAME=PATH of what exists, but is {text!r}")
            found.append(from_files(name, Path(place), subjects.ids, parts.base))
        return benchmark, [replace(contender, styles=styles) for contender in found]


def _drawn(config: BenchmarkConfig, size: int) -> "TestSubjects":
    """The avatars' test subjects, of the package that draws them."""
    from lorasynth.evaluation.cases import TestSubjects
    from lorasynth.images import subjects_in

    facts = f"split={config.split},images={config.training_images},seed={config.seed}"
    found = subjects_in(f"test-avatars:{config.drawn},{facts}", PORTRAIT, size)
    assert isinstance(found, TestSubjects)
    return found


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{option} must be a number, but got {text!r}") from error


def _style(text: str) -> "Adapter":
    from lorasynth.adapter import Adapter

    place, _, size = text.rpartition("=")
    if not place:
        raise ConfigError(
            f"--style must be PATH=STRENGTH, such as ink.safetensors=0.7, but is {text!r}"
        )
    return Adapter.load(Path(place)).scaled(_number(size, "the strength of --style"))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows of a report on the screen."""
    from rich.console import Console
    from rich.table import Table

    from lorasynth.evaluation.bootstrap import in_words

    found = {name for row in rows for name in row}
    columns = [name for name in _COLUMNS if name in found]
    heads = (name.replace("_", " ") for name in columns)
    table = Table("method", *heads, title=f"{rows[0]['n']} subjects; 95 % intervals")
    for row in rows:
        first = [in_words(row[columns[0]])]
        rest = (f"{row[name]['mean']:.3f}" if name in row else "" for name in columns[1:])
        table.add_row(row["method"], *first, *rest)
    Console().print(table)
