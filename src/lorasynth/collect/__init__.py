"""Collection: train an adapter for each of many subjects, in fleets, into a library."""

from lorasynth.collect.collector import RUN_COLUMNS, CollectionReport, collect
from lorasynth.collect.contract import Anchor, Gate, Verdict
from lorasynth.collect.descent import Descent
from lorasynth.collect.fleet import Fleet, train_fleet
from lorasynth.collect.gate import LikenessGate
from lorasynth.collect.prior import Prior
from lorasynth.collect.recipe import PRESETS, Recipe
from lorasynth.collect.repeatability import Repeatability, compare, train_twice

__all__ = [
    "PRESETS",
    "RUN_COLUMNS",
    "Anchor",
    "CollectionReport",
    "Descent",
    "Fleet",
    "Gate",
    "LikenessGate",
    "Prior",
    "Recipe",
    "Repeatability",
    "Verdict",
    "collect",
    "compare",
    "train_fleet",
    "train_twice",
]
