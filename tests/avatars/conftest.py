"""Trainings of the embedded base model, tiny."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorasynth.avatars.config import (
    AutoencoderTraining,
    AvatarModelConfig,
    BaseTrainingConfig,
    DenoiserTraining,
)
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.avatars.pool import Drawn, Pool
from lorasynth.engine.trainer import Optimisation
from tiny_pipelines import SIZES

QUICK = Optimisation(steps=4, batch=4, lr=1e-3, warmup=2, ema=0.5, checkpoint_seconds=0.0)
CONFIG = BaseTrainingConfig(
    model=replace(SIZES, tokens=AvatarModelConfig().tokens),
    autoencoder=AutoencoderTraining(optimisation=QUICK, crop=8, whole=2),
    denoiser=DenoiserTraining(optimisation=QUICK),
)
SUBJECTS = AvatarSubjects(split="train", count=6, images=2, size=16)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Drawn(SUBJECTS, tmp_path_factory.mktemp("pool")).pool()


def weights(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")
    }
