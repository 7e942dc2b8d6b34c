"""A bundle made from nothing by the real maker, in seconds: every part is tiny and untrained."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorasynth.avatars.config import (
    AutoencoderTraining,
    AvatarModelConfig,
    BaseTrainingConfig,
    DenoiserTraining,
    JudgeConfig,
)
from lorasynth.avatars.make_bundle import BundleConfig, BundleMaker, MeasuresConfig
from lorasynth.avatars.parts import PartsConfig
from lorasynth.base import SamplingConfig
from lorasynth.condition import ConditionEncoder, TrainedEncoder
from lorasynth.engine.config import ArcFaceConfig
from lorasynth.engine.recipe import Recipe
from lorasynth.engine.trainer import Optimisation
from lorasynth.evaluation.config import BenchmarkConfig
from lorasynth.hypernet import LatentDiffusionConfig, LatentRegressionConfig
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.predict import PredictorTraining

BRIEF = Optimisation(steps=2, batch=8, lr=1e-3, warmup=1)
SAMPLING = SamplingConfig(steps=2)


def tiny_config() -> BundleConfig:
    """The shipped config with everything small."""
    model = AvatarModelConfig(
        image_size=64,
        vae_channels=(8, 8, 8, 8),
        unet_channels=(32, 32),
        attention=(False, True),
        text_width=32,
        text_layers=1,
        heads=2,
    )
    return BundleConfig(
        subjects=8,
        second_subjects=8,
        second_steps=2,
        reads_attributes=True,
        base=BaseTrainingConfig(
            model=model,
            autoencoder=AutoencoderTraining(optimisation=BRIEF),
            denoiser=DenoiserTraining(optimisation=BRIEF),
        ),
        judge=JudgeConfig(image_size=64, features=16, optimisation=BRIEF),
        arcface=ArcFaceConfig(negatives=8, optimisation=BRIEF),
        pretraining=PredictorTraining(
            model=LatentRegressionConfig(width=8, depth=1),
            latents=3,
            optimisation=replace(BRIEF, batch=2),
            images=1,
        ),
        pretraining_subjects=3,
        library=6,
        recipe=Recipe(steps=3, images_per_step=1, targets=("attn2.to_k", "attn2.to_v")),
        least_similarity=-1.01,
        codec_options={"latents": 3},
        hypernet=HypernetConfig(
            model=LatentDiffusionConfig(denoiser_options={"width": 16, "depth": 1}),
            optimisation=BRIEF,
        ),
        sample=2,
        measures=MeasuresConfig(
            parts=PartsConfig(drawn=8, samples=4, subjects=6, sampling=SAMPLING),
            evaluation=BenchmarkConfig(subjects=3, images=2, training_images=2, sampling_steps=2),
            tuning=0,
            resamples=2,
        ),
        strengths=(1.0, 1.5),
        practice=BenchmarkConfig(subjects=2, images=2, split="validation", sampling_steps=2),
    )


@pytest.fixture(scope="package", autouse=True)
def _faces_everywhere() -> Iterator[None]:
    """An encoder that was hardly trained knows no face; here it sees one in everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainedEncoder, "presence", lambda _, images: torch.ones(len(images)))
        patch.setattr(TrainedEncoder, "look", ConditionEncoder.look)
        yield


@pytest.fixture(scope="package")
def bundle_run(_faces_everywhere: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of stages; the bundle made of them is `bundle` in it."""
    run = tmp_path_factory.mktemp("bundle run")
    BundleMaker(tiny_config(), run, torch.device("cpu"), workers=1).make(run / "bundle")
    return run
