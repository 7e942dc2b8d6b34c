"""The rules of the claims on planted figures: each verdict can come out either way."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lorasynth.core.cache import plain
from lorasynth.core.randomness import torch_stream
from lorasynth.engine.recipe import Recipe
from lorasynth.evaluation.config import BenchmarkConfig
from lorasynth.studies.config import ReproduceConfig
from lorasynth.studies.finding import CLAIMS, SECOND, SIMILARITY
from lorasynth.studies.study import Study

SUBJECTS = 40
#: From a cell's name and facts to what was measured.
Plant = Callable[[str, Mapping[str, Any]], Any]


class Planted(Study):
    """A study whose measurements are made up."""

    def __init__(self, plant: Plant) -> None:
        test = BenchmarkConfig(subjects=SUBJECTS)
        self.config = ReproduceConfig(test=test, held_out=SUBJECTS)
        encoder = SimpleNamespace(width=8)
        synthesizer = SimpleNamespace(encoder=encoder)
        self.bundle: Any = SimpleNamespace(
            recipe=Recipe(), pretrained=None, synthesizer=synthesizer
        )
        self.plant = plant

    def cell(self, name: str, facts: Mapping[str, Any], measure: Callable[[], Any]) -> Any:  # noqa: ARG002
        """What is planted."""
        return self.plant(name, plain(facts))


def verdict(claim: str, plant: Plant) -> str:
    return CLAIMS.get(claim).find(Planted(plant)).verdict


HOLDS, PARTLY, NOT = "holds", "holds partly", "does not hold here"
#: A claim, what plants figures for it, with which values, and the verdict.
CASES: list[tuple[str, Callable[..., Plant], tuple[Any, ...], str]] = []


def of(claim: str, *rows: tuple[Any, ...]) -> Callable[[Callable[..., Plant]], None]:
    """Have a claim judged on planted figures: of each row the values, and the verdict."""

    def add(plant: Callable[..., Plant]) -> None:
        CASES.extend((claim, plant, row[:-1], row[-1]) for row in rows)

    return add


def figures(mean: float, *seed: object, spread: float = 0.02) -> list[float]:
    """One number for each subject, around a mean."""
    noise = torch.randn(SUBJECTS, generator=torch_stream(0, *map(str, seed)))
    return (mean + spread * noise).tolist()


def trained(facts: Mapping[str, Any], mean: float, spread: float = 0.02) -> dict[str, Any]:
    """What training a hypernetwork gives."""
    seed = facts["training"]["optimisation"]["seed"]
    row = {"step": 1.0, "x0_error": 0.5, SIMILARITY: mean, "loss": 1.0}
    row |= {"weight_00_enter": 1.0, "weight_01_blocks0": 1.0, "gradient_00_enter": 1.0}
    return {
        SIMILARITY: figures(mean, seed, mean, spread=spread),
        "attribute_accuracy": figures(mean, seed, mean),
        "curve": [row],
        "parameters": 10,
        "seconds": 1.0,
    }


@of(
    "v-prediction",
    ((0.5, 0.01), (0.4, 0.1), HOLDS),
    ((0.5, 0.1), (0.4, 0.01), PARTLY),
    ((0.4, 0.02), (0.4, 0.02), NOT),
)
def v_prediction(v: tuple[float, float], x0: tuple[float, float]) -> Plant:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        predicts = facts["training"]["model"]["parameterisation"]
        return trained(facts, *(v if predicts == "v" else x0))

    return plant


@of("adalora", (0.2, HOLDS), (0.05, PARTLY), (-0.05, NOT))
def adalora(gain: float) -> Plant:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        low_rank = "modulation" in facts["training"]["model"]["denoiser_options"]
        return trained(facts, 0.4 + gain * low_rank)

    return plant


def codec(missed: float, likeness: float, *seed: object) -> dict[str, Any]:
    return {
        "fvu_by_adapter": figures(missed, "missed", *seed),
        SIMILARITY: figures(likeness, "likeness", *seed),
    }


@of("beta", (0.1, 512, HOLDS), (0.1, 1024, PARTLY), (0.02, 512, PARTLY), (-0.1, 128, NOT))
def beta(less: float, best: int) -> Plant:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        options = facts["options"]
        missed = 0.3 - less * (options["beta"] < 1) + 0.05 * (options["latents"] != best)
        return codec(missed, 0.5, *options.values())

    return plant


@of("vae or pca", (0.1, 0.1, HOLDS), (-0.1, 0.1, PARTLY), (0.02, 0.0, NOT), (-0.1, 0.0, NOT))
def vae_or_pca(less: float, more: float) -> Plant:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        vae = facts["codec"] == "vae"
        return codec(0.3 - less * vae, 0.5 + more * vae, 0)

    return plant


def edited(changed: list[float], likeness: list[float]) -> list[dict[str, list[float]]]:
    rows = zip(changed, likeness, strict=True)
    return [{"changed": [c] * 4, "others": [0.6] * 4, SIMILARITY: [kept] * 4} for c, kept in rows]


class Varied(Planted):
    """With a library in which some have glasses and facial hair."""

    library: Any = SimpleNamespace(
        table={
            name: SimpleNamespace(to_pylist=lambda: ["none", "some"])
            for name in ("glasses", "facial_hair")
        }
    )


CLEAN = edited([0.1, 0.3, 0.6, 0.9, 1.0], [0.8, 0.8, 0.7, 0.7, 0.3])
DEAR = edited([0.1, 0.3, 0.6, 0.7, 0.9], [0.8, 0.8, 0.7, 0.7, 0.3])
WEAK = edited([0.1, 0.3, 0.6, 0.6, 0.7], [0.8] * 5)


@pytest.mark.parametrize(
    ("glasses", "facial_hair", "expected"),
    [(CLEAN, CLEAN, HOLDS), (CLEAN, DEAR, PARTLY), (DEAR, DEAR, NOT), (WEAK, WEAK, NOT)],
)
def test_edits(glasses: Any, facial_hair: Any, expected: str) -> None:
    by_name = {"glasses": glasses, "facial_hair": facial_hair}
    finding = CLAIMS.get("edits").find(Varied(lambda _, facts: by_name[facts["attribute"]]))
    assert finding.verdict == expected


@of("linearity", (-0.1, 0.1, HOLDS), (0.1, 0.1, PARTLY), (-0.2, -0.1, NOT))
def linearity(start: float, end: float) -> Plant:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        share = (facts["size"] - 125) / (1000 - 125)
        less = (start + share * (end - start)) * (facts["codec"] == "vae")
        return figures(0.5 - less, *facts["options"].values())

    return plant


def bought(mean: float, *seed: object, spread: float = 0.02) -> dict[str, list[float]]:
    """What the images of a method are worth."""
    names = (SIMILARITY, SECOND, "attribute_accuracy", "prompt_following")
    return {name: figures(mean, *seed, spread=spread) for name in names}


@of("cost", (0.78, 0.8, 0.85, HOLDS), (0.78, 0.8, 0.6, PARTLY), (0.4, 0.8, 0.6, NOT))
def cost(short: float, lora: float, full: float) -> Plant:
    def plant(name: str, facts: Mapping[str, Any]) -> Any:
        means = {"zero-shot": short, "LoRA": lora, "all weights": full}
        method = facts.get("method", name)
        likeness = bought(means.get(method, 0.3), method)
        if method == "all weights":
            likeness = {one: values[:8] for one, values in likeness.items()}
        return {"seconds": 0.1 if method == "zero-shot" else 20.0, **likeness}

    return plant


@of("beyond", (0.79, 0.7, 0.8, HOLDS), (0.79, 0.79, 0.8, PARTLY), (0.7, 0.7, 0.7, NOT))
def beyond(zero: float, inverted: float, refined: float) -> Plant:
    fast = zero > 0.7

    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        means = {"zero-shot": zero, "inversion": inverted, "refine": refined, "LoRA": 0.8}
        method = facts["method"]
        found = bought(means.get(method, 0.5), spread=0.001)
        return {"seconds": 0.1 if fast and method == "zero-shot" else 20.0, **found}

    return plant


@of("adapter methods", (0.3, 0.9, HOLDS), (0.3, 0.99, PARTLY), (0.6, 0.9, NOT))
def adapter_methods(likeness: float, prompts: float) -> Plant:
    def plant(name: str, _: Mapping[str, Any]) -> Any:
        theirs = name == "IP-Adapter"
        found = {
            SIMILARITY: figures(likeness if theirs else 0.5),
            "prompt_following": figures(prompts if theirs else 0.9, spread=0.001),
        }
        return found if name == "ours" else found | {"scale": 1.0}

    return plant


@of("norms", (0.05, 0.5, HOLDS), (0.097, 0.5, PARTLY), (0.05, 1.0, PARTLY), (0.097, 0.99, NOT))
def norms(scatter: float, ridge: float) -> Plant:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        svd = facts["kind"] == "usual" and facts["form"] == "none"
        return {
            "log_norm_std": figures(scatter if svd else 0.1, spread=0.0001),
            "ridge_fvu": figures(ridge if svd else 1.0, spread=0.001),
        }

    return plant


@of("spectrum", (300, 0.4, HOLDS), (300, 0.1, PARTLY), (1000, 0.1, NOT))
def spectrum(components: int, alone: float) -> Plant:
    def plant(name: str, _: Mapping[str, Any]) -> Any:
        if name == "spectrum":
            return [*[0.9] * (components - 1), 1.0]
        told = {"attribute": "glasses", "all_components": 0.6, "best_component": alone}
        return [told, {"attribute": "hat", "all_components": 0.05, "best_component": 0.05}]

    return plant


@of("spaces", (0.6, 0.1, HOLDS), (0.6, 0.3, PARTLY), (0.1, 0.3, NOT))
def spaces(mlp: float, kurtosis: float) -> Plant:
    """The U-Net fails on everything, so the other denoiser is the one that counts."""

    def plant(name: str, facts: Mapping[str, Any]) -> Any:
        if name == "layers":
            return {"smallest": 1.0, "largest": 2.0}
        if name == "normality":
            return {"kurtosis": kurtosis if facts["space"] == "VAE" else 0.2}
        learns = facts["training"]["model"]["denoiser"] == "mlp" and facts["codec"][0] != "scaled"
        return trained(facts, mlp if learns else 0.1)

    return plant


@of("gradient flow", ((4.0, 3.0, 2.5), HOLDS), ((4.0, 3.0, 1.5), PARTLY), ((1.0, 3.0, 1.5), NOT))
def gradient_flow(ends: tuple[float, ...]) -> Plant:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        found = trained(facts, 0.5)
        seed = facts["training"]["optimisation"]["seed"]
        scaled_unet = facts["training"]["model"]["denoiser_options"]
        found["curve"][0]["weight_00_enter"] = ends[seed] if scaled_unet else 9.0
        return found

    return plant


@pytest.mark.parametrize("setting", [{"sizes": (2000,)}, {"refined": (200,)}, {"betas": (0.1,)}])
def test_what_no_verdict_can_follow_from_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        ReproduceConfig(**setting)


@pytest.mark.parametrize(("claim", "plant", "values", "expected"), CASES)
def test_a_verdict_follows_from_the_figures(
    claim: str, plant: Callable[..., Plant], values: tuple[Any, ...], expected: str
) -> None:
    assert verdict(claim, plant(*values)) == expected
