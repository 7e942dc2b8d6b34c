"""How much the studies measure; no torch, since commands have these options."""

from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lorasynth.collect.config import GeneratedConfig
from lorasynth.engine.optimisation import Optimisation
from lorasynth.evaluation.config import BenchmarkConfig

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """How much is measured of the paper's claims.

    Attributes:
        smoke: So little that no verdict follows.
        seeds: Of every training.
        recipe_steps: Of adapters of both kinds; default: those of their recipes.
        known: Adapters of our kind that are learned from.
        compared: Adapters of the paper's kind, and of ours where the two are compared.
        held_out: Further adapters of each kind, to measure errors on.
        test: The test subjects, the same for all claims.
        curve: Validation subjects, measured during training and for choices.
        steps: Of every hypernetwork.
        slow_steps: Of it where a step is slow: U-Nets, and whatever works on scaled vectors.
        batch: Of every hypernetwork.
        record_every: Steps between points of its curve.
        latents: Of codecs, but for where a claim varies it.
        widths: Of codecs that are compared.
        betas: Of VAEs that are compared.
        large_betas: Further ones, at the width and depth that suit beta = 1 best.
        depths: Of VAEs that are compared.
        vae_epochs: Of every VAE.
        sizes: Of libraries that are compared.
        ranks: Of low-rank modulations that are compared.
        refined: Steps of refining that are compared.
        trained: Steps of training a LoRA, and all weights, that are compared.
        optimised: Steps of mixtures and inversions; 400 are weights2weights' own.
        strength: Of what these give, chosen on validation subjects as the synthesizer's is, but
            for weights2weights, which has none.
        fully_trained: Subjects for whom all weights are trained.
        full_rates: Learning rates of that, of which validation subjects choose.
        ip_steps: Of the IP-Adapter, and of ours beside it.
        ip_batch: Subjects in a step of these.
        ip_subjects: Whose images they are trained on.
        ip_scales: Of its attention, and strengths of ours, of which validation subjects choose.
    """

    smoke: bool = False
    seeds: Annotated[tuple[int, ...], Field(min_length=2)] = (0, 1, 2)
    recipe_steps: Count | None = None
    known: Count = 1900
    compared: Count = 500
    held_out: Annotated[int, Field(ge=2)] = 100
    test: BenchmarkConfig = field(default_factory=lambda: BenchmarkConfig(subjects=50))
    curve: BenchmarkConfig = field(
        default_factory=lambda: BenchmarkConfig(subjects=12, images=4, split="validation")
    )
    steps: Count = 4000
    slow_steps: Count = 2000
    batch: Count = 64
    record_every: Count = 500
    latents: Count = 128
    widths: tuple[int, ...] = (32, 128, 512, 1024)
    betas: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    large_betas: tuple[float, ...] = (10.0, 100.0)
    depths: tuple[int, ...] = (1, 2)
    vae_epochs: Count = 400
    sizes: tuple[int, ...] = (125, 250, 500, 1000, 1900)
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    refined: tuple[int, ...] = (10, 50, 200)
    trained: Annotated[tuple[int, ...], Field(min_length=1)] = (50, 100, 300, 1000)
    optimised: Count = 400
    strength: float = 1.1
    fully_trained: Annotated[int, Field(ge=2)] = 8
    full_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    ip_steps: Count = 10_000
    ip_batch: Count = 64
    ip_subjects: Count = 16_000
    ip_scales: tuple[float, ...] = (0.7, 0.85, 1.0, 1.15, 1.3, 1.45, 1.6)

    @model_validator(mode="after")
    def _can_decide(self) -> "ReproduceConfig":
        """Refuse what no verdict can follow from."""
        most = min(self.test.drawn, self.curve.drawn)
        rules = {
            "sizes": (max(self.sizes) <= self.known, f"at most known={self.known}"),
            "compared": (self.compared <= self.known, f"at most known={self.known}"),
            "betas": (1.0 in self.betas and min(self.betas) < 1, "1.0 and some below it"),
            "refined": (min(self.refined, default=51) <= 50, "of 50 steps or fewer, at least one"),
            "fully_trained": (self.fully_trained <= most, "at most the subjects of test and curve"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}, but got {getattr(self, name)}")
        return self


def smoke() -> ReproduceConfig:
    """Every measurement once, as small as can be."""
    # a batch that takes one subject's images, and not a whole number of subjects'
    few = BenchmarkConfig(
        subjects=2, images=2, training_images=2, sampling_steps=2, sampling_batch=3
    )
    return ReproduceConfig(
        smoke=True,
        seeds=(0, 1),
        recipe_steps=2,
        known=12,
        compared=8,
        held_out=4,
        test=few,
        curve=replace(few, split="validation"),
        steps=4,
        slow_steps=2,
        batch=4,
        record_every=2,
        latents=4,
        widths=(2, 4),
        betas=(0.1, 1.0),
        large_betas=(10.0,),
        depths=(1, 2),
        vae_epochs=2,
        sizes=(6, 8, 12),
        ranks=(1, 2),
        refined=(1, 2),
        trained=(1, 2),
        optimised=2,
        fully_trained=2,
        full_rates=(1e-4, 3e-4),
        ip_steps=4,
        ip_batch=4,
        ip_subjects=4,
        ip_scales=(1.0, 1.5),
    )


@dataclass(frozen=True, kw_only=True)
class W2WConfig:
    """Every choice of a run from weights2weights' files to a measured synthesizer.

    Attributes:
        gauge: Of the canonical vectors.
        stored: dtype in which the library stores them.
        person: Column of the table that says who is shown.
        generated: How adapters show their subjects, where no images are given.
        codec: Name of the codec.
        latents: Of the codec.
        optimisation: Of the hypernetwork.
        trigger: Trigger phrase of the subject.
        prompt: That is measured.
        tests: Test subjects, and their images.
    """

    gauge: str = "procrustes"
    stored: Literal["float16", "float32"] = "float16"
    person: str = "identity"
    generated: GeneratedConfig = GeneratedConfig()
    codec: str = "pca"
    latents: Count = 512
    optimisation: Optimisation = Optimisation(steps=5000, batch=64, lr=5e-4)
    trigger: str = "sks person"
    prompt: str = "a photo of sks person"
    tests: BenchmarkConfig = field(
        default_factory=lambda: BenchmarkConfig(subjects=100, images=4, sampling_steps=20)
    )
