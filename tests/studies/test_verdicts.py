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


@pytest.mark.parametrize(
    ("v", "x0", "expected"),
    [
        ((0.5, 0.01), (0.4, 0.1), "holds"),
        ((0.5, 0.1), (0.4, 0.01), "holds partly"),
        ((0.4, 0.02), (0.4, 0.02), "does not hold here"),
    ],
)
def test_v_prediction(v: tuple[float, float], x0: tuple[float, float], expected: str) -> None:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        predicts = facts["training"]["model"]["parameterisation"]
        return trained(facts, *(v if predicts == "v" else x0))

    assert verdict("v-prediction", plant) == expected


@pytest.mark.parametrize(
    ("gain", "expected"), [(0.2, "holds"), (0.05, "holds partly"), (-0.05, "does not hold here")]
)
def test_adalora(gain: float, expected: str) -> None:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        low_rank = "modulation" in facts["training"]["model"]["denoiser_options"]
        return trained(facts, 0.4 + gain * low_rank)

    assert verdict("adalora", plant) == expected


def codec(missed: float, likeness: float, *seed: object) -> dict[str, Any]:
    return {
        "fvu_by_adapter": figures(missed, "missed", *seed),
        SIMILARITY: figures(likeness, "likeness", *seed),
    }


@pytest.mark.parametrize(
    ("less", "best", "expected"),
    [
        (0.1, 512, "holds"),
        (0.1, 1024, "holds partly"),
        (0.02, 512, "holds partly"),
        (-0.1, 128, "does not hold here"),
    ],
)
def test_beta(less: float, best: int, expected: str) -> None:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        options = facts["options"]
        missed = 0.3 - less * (options["beta"] < 1) + 0.05 * (options["latents"] != best)
        return codec(missed, 0.5, *options.values())

    assert verdict("beta", plant) == expected


@pytest.mark.parametrize(
    ("less", "more", "expected"),
    [
        (0.1, 0.1, "holds"),
        (-0.1, 0.1, "holds partly"),
        (0.02, 0.0, "does not hold here"),
        (-0.1, 0.0, "does not hold here"),
    ],
)
def test_vae_or_pca(less: float, more: float, expected: str) -> None:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        vae = facts["codec"] == "vae"
        return codec(0.3 - less * vae, 0.5 + more * vae, 0)

    assert verdict("vae or pca", plant) == expected


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
    [
        (CLEAN, CLEAN, "holds"),
        (CLEAN, DEAR, "holds partly"),
        (DEAR, DEAR, "does not hold here"),
        (WEAK, WEAK, "does not hold here"),
    ],
)
def test_edits(glasses: Any, facial_hair: Any, expected: str) -> None:
    by_name = {"glasses": glasses, "facial_hair": facial_hair}
    finding = CLAIMS.get("edits").find(Varied(lambda _, facts: by_name[facts["attribute"]]))
    assert finding.verdict == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(-0.1, 0.1, "holds"), (0.1, 0.1, "holds partly"), (-0.2, -0.1, "does not hold here")],
)
def test_linearity(start: float, end: float, expected: str) -> None:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        share = (facts["size"] - 125) / (1000 - 125)
        less = (start + share * (end - start)) * (facts["codec"] == "vae")
        return figures(0.5 - less, *facts["options"].values())

    assert verdict("linearity", plant) == expected


def bought(mean: float, *seed: object, spread: float = 0.02) -> dict[str, list[float]]:
    """What the images of a method are worth."""
    names = (SIMILARITY, SECOND, "attribute_accuracy", "prompt_following")
    return {name: figures(mean, *seed, spread=spread) for name in names}


@pytest.mark.parametrize(
    ("short", "lora", "full", "expected"),
    [
        (0.78, 0.8, 0.85, "holds"),
        (0.78, 0.8, 0.6, "holds partly"),
        (0.4, 0.8, 0.6, "does not hold here"),
    ],
)
def test_cost(short: float, lora: float, full: float, expected: str) -> None:
    def plant(name: str, facts: Mapping[str, Any]) -> Any:
        means = {"zero-shot": short, "LoRA": lora, "all weights": full}
        method = facts.get("method", name)
        likeness = bought(means.get(method, 0.3), method)
        if method == "all weights":
            likeness = {one: values[:8] for one, values in likeness.items()}
        return {"seconds": 0.1 if method == "zero-shot" else 20.0, **likeness}

    assert verdict("cost", plant) == expected


@pytest.mark.parametrize(
    ("zero", "inverted", "refined", "expected"),
    [
        (0.79, 0.7, 0.8, "holds"),
        (0.79, 0.79, 0.8, "holds partly"),
        (0.7, 0.7, 0.7, "does not hold here"),
    ],
)
def test_beyond(zero: float, inverted: float, refined: float, expected: str) -> None:
    fast = expected != "does not hold here"

    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        means = {"zero-shot": zero, "inversion": inverted, "refine": refined, "LoRA": 0.8}
        method = facts["method"]
        found = bought(means.get(method, 0.5), spread=0.001)
        return {"seconds": 0.1 if fast and method == "zero-shot" else 20.0, **found}

    assert verdict("beyond", plant) == expected


@pytest.mark.parametrize(
    ("likeness", "prompts", "expected"),
    [(0.3, 0.9, "holds"), (0.3, 0.99, "holds partly"), (0.6, 0.9, "does not hold here")],
)
def test_adapter_methods(likeness: float, prompts: float, expected: str) -> None:
    def plant(name: str, _: Mapping[str, Any]) -> Any:
        theirs = name == "IP-Adapter"
        found = {
            SIMILARITY: figures(likeness if theirs else 0.5),
            "prompt_following": figures(prompts if theirs else 0.9, spread=0.001),
        }
        return found if name == "ours" else found | {"scale": 1.0}

    assert verdict("adapter methods", plant) == expected


@pytest.mark.parametrize(
    ("scatter", "ridge", "expected"),
    [
        (0.05, 0.5, "holds"),
        (0.097, 0.5, "holds partly"),
        (0.05, 1.0, "holds partly"),
        (0.097, 0.99, "does not hold here"),
    ],
)
def test_norms(scatter: float, ridge: float, expected: str) -> None:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        svd = facts["kind"] == "usual" and facts["form"] == "none"
        return {
            "log_norm_std": figures(scatter if svd else 0.1, spread=0.0001),
            "ridge_fvu": figures(ridge if svd else 1.0, spread=0.001),
        }

    assert verdict("norms", plant) == expected


@pytest.mark.parametrize(
    ("components", "alone", "expected"),
    [(300, 0.4, "holds"), (300, 0.1, "holds partly"), (1000, 0.1, "does not hold here")],
)
def test_spectrum(components: int, alone: float, expected: str) -> None:
    def plant(name: str, _: Mapping[str, Any]) -> Any:
        if name == "spectrum":
            return [*[0.9] * (components - 1), 1.0]
        told = {"attribute": "glasses", "all_components": 0.6, "best_component": alone}
        return [told, {"attribute": "hat", "all_components": 0.05, "best_component": 0.05}]

    assert verdict("spectrum", plant) == expected


@pytest.mark.parametrize(
    ("mlp", "kurtosis", "expected"),
    [(0.6, 0.1, "holds"), (0.6, 0.3, "holds partly"), (0.1, 0.3, "does not hold here")],
)
def test_spaces(mlp: float, kurtosis: float, expected: str) -> None:
    """The U-Net fails on everything, so the other denoiser is the one that counts."""

    def plant(name: str, facts: Mapping[str, Any]) -> Any:
        if name == "layers":
            return {"smallest": 1.0, "largest": 2.0}
        if name == "normality":
            return {"kurtosis": kurtosis if facts["space"] == "VAE" else 0.2}
        learns = facts["training"]["model"]["denoiser"] == "mlp" and facts["codec"][0] != "scaled"
        return trained(facts, mlp if learns else 0.1)

    assert verdict("spaces", plant) == expected


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((4.0, 3.0, 2.5), "holds"),
        ((4.0, 3.0, 1.5), "holds partly"),
        ((1.0, 3.0, 1.5), "does not hold here"),
    ],
)
def test_gradient_flow(ends: tuple[float, ...], expected: str) -> None:
    def plant(_: str, facts: Mapping[str, Any]) -> Any:
        found = trained(facts, 0.5)
        seed = facts["training"]["optimisation"]["seed"]
        scaled_unet = facts["training"]["model"]["denoiser_options"]
        found["curve"][0]["weight_00_enter"] = ends[seed] if scaled_unet else 9.0
        return found

    assert verdict("gradient flow", plant) == expected


@pytest.mark.parametrize("setting", [{"sizes": (2000,)}, {"refined": (200,)}, {"betas": (0.1,)}])
def test_what_no_verdict_can_follow_from_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        ReproduceConfig(**setting)
