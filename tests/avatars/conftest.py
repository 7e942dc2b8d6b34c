"""Trainings of the embedded base model, tiny."""

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

QUICK = Optimisation(steps=4, batch=4, lr=1e-3, warmup=2, ema=0.5, checkpoint_seconds=0.0)
CONFIG = BaseTrainingConfig(
    model=AvatarModelConfig(
        image_size=16,
        latent_channels=4,
        vae_channels=(8, 8),
        unet_channels=(32,),
        attention=(True,),
        text_width=16,
        text_layers=1,
        heads=2,
    ),
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
