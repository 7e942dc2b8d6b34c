"""Options of what trains adapters."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from lorasynth.core.command import Command, Seeded, with_default
from lorasynth.engine.recipe import PRESETS, Recipe

if TYPE_CHECKING:
    from lorasynth.base import BaseModel
    from lorasynth.images import Subject


@dataclass(frozen=True, kw_only=True)
class WithRecipe(Command, Seeded):
    """How each adapter is trained.

    Attributes:
        preset: Recipe whose values are the defaults of --recipe.
        recipe: Differs from the preset.
    """

    preset: Literal["ours", "anchored", "refine", "usual", "weights2weights"] = "ours"
    recipe: Recipe = Recipe()

    @classmethod
    def chosen_by(cls, words: Sequence[str]) -> type[Command]:
        """With the preset's recipe as the default."""
        named = [b for a, b in pairwise(words) if a == "--preset"]
        named += [word.partition("=")[2] for word in words if word.startswith("--preset=")]
        if not named or named[-1] not in PRESETS:
            return cls
        return with_default(cls, "recipe", Recipe, lambda: PRESETS[named[-1]])

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, given: Any) -> Any:
        """In Python too, a preset alone is its recipe."""
        if isinstance(given, ArgsKwargs):
            stated = dict(given.kwargs or {})
            if "recipe" not in stated and stated.get("preset") in PRESETS:
                return ArgsKwargs((), stated | {"recipe": PRESETS[stated["preset"]]})
        return given

    def recipe_for(self, base: "BaseModel") -> Recipe:
        """The recipe with the command's seed; its targets, unless stated, are the family's."""
        recipe = replace(self.recipe, seed=self.seed or self.recipe.seed)
        if recipe.targets == Recipe().targets:
            recipe = replace(recipe, targets=base.default_targets)
        return recipe


@dataclass(frozen=True, kw_only=True)
class WithSheet:
    """A look at what is trained on.

    Attributes:
        sheet: PNG to write: the photos of the first subjects, cut as they are trained on.
    """

    sheet: Path | None = None

    def draw_sheet(self, subjects: "Iterable[Subject]") -> None:
        """Write it, if it is asked for."""
        if self.sheet is not None:
            from lorasynth.collect.sheet import write_sheet

            write_sheet(self.sheet, subjects)
            print(self.sheet)
