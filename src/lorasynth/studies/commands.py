"""Commands of the studies; they join by entry point, as those of another package would."""

from dataclasses import field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic.dataclasses import dataclass
from tyro.conf import Positional, arg

from lorasynth.commands.evaluate import WithBenchmark, print_table
from lorasynth.commands.shared import Repeated, WithBase
from lorasynth.core.command import Command, Flat, OnDevice
from lorasynth.core.errors import ConfigError
from lorasynth.core.progress import console
from lorasynth.studies.config import ReproduceConfig, W2WConfig, smoke

if TYPE_CHECKING:
    from lorasynth.studies.repeatability import Candidate

Folder = Annotated[Path, arg(aliases=("-o",))]


@dataclass(frozen=True, kw_only=True)
class Repeatability(Command, WithBenchmark):
    """Train subjects twice with each recipe: cosine of the updates, and identity similarity.

    Each training sees one half of a subject's training images. Run again to resume.

    Example: lorasynth study repeatability bench/recipes.json -o runs/recipes --split validation

    Attributes:
        table: JSON of recipes: name -> options, beside them `preset`, and `anchored` (true to
            start from --regression); default: the presets --preset.
        out: Folder for the report and the figure.
        preset: Preset to measure where no table is given; repeatable.
    """

    test_images: Annotated[str | None, arg(name="tests")] = None
    table: Positional[Path | None] = None
    out: Folder
    preset: Repeated = ("ours",)

    def run(self) -> dict[str, dict[str, Any]]:
        """The reports by the recipes' names."""
        from lorasynth.core.atomic import write_json
        from lorasynth.core.cache import Cache
        from lorasynth.core.config import read_json
        from lorasynth.core.figures import save_figure
        from lorasynth.studies.repeatability import compare_recipes, draw_recipes

        asked = {name: {"preset": name} for name in self.preset}
        if self.table is not None:
            asked = read_json(self.table)
        cache, parts = Cache(self.cache), self.load_parts()
        candidates = {
            name: _candidate(name, dict(options), parts.regression)
            for name, options in asked.items()
        }
        reports = compare_recipes(self.load_benchmark(parts, cache), candidates, cache)
        for name, report in reports.items():
            same, other = report["same"], report["different"]
            console.print(f"{name}: same {same:.3f}, different {other:.3f}", highlight=False)
        print_table([{"method": name, **report} for name, report in reports.items()])
        write_json(self.out / "recipes.json", reports)
        save_figure(draw_recipes(reports), self.out / "recipes.png")
        print(self.out / "recipes.json")
        return reports


def _candidate(name: str, options: dict[str, Any], anchor: Any) -> "Candidate":
    from lorasynth.core.config import from_dict, to_dict
    from lorasynth.engine.recipe import PRESETS, Recipe
    from lorasynth.studies.repeatability import Candidate

    anchored, preset = options.pop("anchored", False), options.pop("preset", "ours")
    if preset not in PRESETS:
        raise ConfigError(f"--preset must be one of {', '.join(PRESETS)}, but is {preset!r}")
    if anchored and anchor is None:
        raise ConfigError(f"--regression must name a synthesizer, since {name!r} is anchored")
    recipe = from_dict(Recipe, to_dict(PRESETS[preset]) | options)
    return Candidate(recipe=recipe, anchor=anchor if anchored else None)


@dataclass(frozen=True, kw_only=True)
class Reproduce(Command, OnDevice):
    """Look into each claim of the paper and write a report; run again to resume.

    Without --smoke it takes hours. With it every measurement is made once, as small as can be, in
    three minutes, and there are no verdicts.

    Example: lorasynth study reproduce --smoke -o runs/smoke-report

    Attributes:
        out: Folder of the report; default: docs/report, but report in --run for --smoke and
            --claim.
        claim: Claim to look into; repeatable; default: all.
        bundle: Bundle to study.
        adapters: Library of the bundle's kind to study, such as the one it is made from
            (runs/out/library); default: one is collected.
        run_folder: Folder for libraries and measurements; the same folder resumes.
        note: What the report says of its circumstances, such as the machine.
        config: How much is measured.
    """

    group: ClassVar[str] = "Measure"

    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    claim: Repeated = ()
    bundle: Path = Path("bundle")
    adapters: Path | None = None
    run_folder: Annotated[Path, arg(name="run")] = Path("runs/reproduce")
    note: str | None = None
    config: Annotated[ReproduceConfig, Flat] = field(default_factory=ReproduceConfig)

    def run(self) -> Path:
        """The report's folder."""
        from lorasynth.avatars.bundle import Bundle
        from lorasynth.core.device import pick_device
        from lorasynth.library import Library
        from lorasynth.studies.finding import CLAIMS, in_order
        from lorasynth.studies.report import write_report
        from lorasynth.studies.study import Study

        config, is_smoke = _sizes(self.config), self.config.smoke
        chosen = [CLAIMS.get(name) for name in self.claim or in_order()]
        folder = self.run_folder / "smoke" if is_smoke else self.run_folder
        ours = None if self.adapters is None else Library.open(self.adapters)
        bundle = Bundle.open(self.bundle, pick_device(self.device))
        study, found = Study(bundle, config, folder, ours), []
        out = self.out or (folder / "report" if is_smoke or self.claim else Path("docs/report"))
        for claim in chosen:
            console.print(f"claim: {claim.name}", highlight=False)
            found.append((claim, claim.find(study)))
        words = ["lorasynth study reproduce", *(["--smoke"] if is_smoke else [])]
        words += [f"--claim '{name}'" for name in self.claim]
        write_report(found, out, config, command=" ".join(words), note=self.note)
        print(out / "report.md")
        return out


def _sizes(config: ReproduceConfig) -> ReproduceConfig:
    """What is asked for; of a smoke run whatever is not as usual, and the rest small."""
    if not config.smoke:
        return config
    usual = ReproduceConfig()
    changed = {one.name: getattr(config, one.name) for one in fields(ReproduceConfig)}
    changed = {name: value for name, value in changed.items() if value != getattr(usual, name)}
    return replace(smoke(), **changed)


@dataclass(frozen=True, kw_only=True)
class RecipeW2W(Command, WithBase):
    """weights2weights end to end: import, conditions, codec, hypernetwork, files, evaluation.

    Stages whose output is in OUT/out are skipped, so the same command goes on where it was killed,
    and deleting an output makes that stage again.

    Example: lorasynth study w2w Snapchat/weights2weights -o runs/w2w --encoder dlib
    --base hub:stable-diffusion-v1-5/stable-diffusion-v1-5 --latents 1000

    Attributes:
        source: Folder with all_weights.pt, weight_dimensions.pt and identity_df.csv, or
            Snapchat/weights2weights.
        out: Folder of the run.
        encoder: Makes the conditions, and measures: a folder or a name.
        second: Held-out encoder for evaluation only.
        clip: CLIP model that scores prompts: a folder, or hub:owner/name.
        images: The subjects' images, a folder each by their ids; without it they are made with
            the adapters.
        only: Run this stage alone.
        plan: Say what would be done, and do nothing.
        memory: What fitting the codec may take, such as 8GB; default: half of the machine's.
        config: Choices.
    """

    group: ClassVar[str] = "Measure"

    source: Positional[str]
    out: Folder
    encoder: str
    second: str | None = None
    clip: str | None = None
    images: str | None = None
    only: str | None = None
    plan: bool = False
    memory: str | None = None
    config: Annotated[W2WConfig, Flat] = field(default_factory=W2WConfig)

    def run(self) -> None:
        """Run what is missing, and print the table."""
        from lorasynth.core.config import read_json
        from lorasynth.studies.w2w import W2WRun

        run = W2WRun(self)
        run.stages.say()
        if self.plan:
            return
        if self.only is not None:
            run.stages.make(self.only)
            return
        run.stages.make_all()
        evaluation = run.stages.path("evaluation")
        print_table(read_json(evaluation / "report.json")["rows"])
        print(f"{evaluation}, {run.stages.path('synthesizer')}")


class Studies(Command):
    """Where quality comes from: the paper's claims, recipes, and weights2weights."""

    group: ClassVar[str] = "Measure"

    @classmethod
    def kinds(cls) -> dict[str, type[Command]]:
        """All studies by their names."""
        return {
            "reproduce": Reproduce,
            "repeatability": Repeatability,
            "w2w": RecipeW2W,
        }
