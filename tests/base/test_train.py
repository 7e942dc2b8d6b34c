"""Training of the embedded base model, tiny: it ends in a pipeline folder, even if cut off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorasynth.base import BaseModel
from lorasynth.base.avatar_model import AvatarModelConfig
from lorasynth.base.train import (
    BaseTrainingConfig,
    Perception,
    _local_contrast,
    train_autoencoder,
    train_base,
)
from lorasynth.config import from_dict, read_json
from lorasynth.errors import ConfigError
from lorasynth.pictures.avatars import AvatarSubjects
from lorasynth.pictures.pool import Pool, draw_pool
from lorasynth.training import Optimisation, Trainer

QUICK = Optimisation(steps=4, batch=4, lr=1e-3, warmup=2, ema=0.5, checkpoint_seconds=0.0)
CONFIG = BaseTrainingConfig(
    model=AvatarModelConfig(
        picture_size=16,
        latent_channels=4,
        vae_channels=(8, 8),
        unet_channels=(32,),
        attention=(True,),
        text_width=16,
        text_layers=1,
        heads=2,
    ),
    autoencoder=QUICK,
    unet=QUICK,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    subjects = AvatarSubjects(split="train", count=6, pictures=2, size=16)
    return draw_pool(subjects, tmp_path_factory.mktemp("pool"), workers=1)


def train(
    pool: Pool, folder: Path, config: BaseTrainingConfig = CONFIG, maps: Perception | None = None
) -> Path:
    """Both trainings, into a folder where they may have been cut off before."""
    run, autoencoder = folder / "run", folder / "autoencoder"
    if not autoencoder.exists():
        train_autoencoder(pool, config, run, autoencoder, CPU, maps)
    train_base(pool, config, autoencoder, run, folder / "base", CPU)
    return folder / "base"


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(pool, tmp_path_factory.mktemp("trained"))


def weights(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")
    }


def test_the_result_is_a_base_model(trained: Path, pool: Pool) -> None:
    base = BaseModel.load(trained)
    latents = base.encode_pictures(pool.pictures)
    assert latents.std() == pytest.approx(1, abs=0.02)  # so that noise has the size of the signal
    assert from_dict(BaseTrainingConfig, read_json(trained / "training.json")) == CONFIG
    assert set(weights(trained)) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


@pytest.mark.parametrize("model", ["autoencoder", "unet"])
def test_a_run_that_is_cut_off_ends_alike(
    trained: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    step = Trainer._step

    def interrupted(self: Trainer, loss: Any, number: int) -> str:
        if number == 2 and self.checkpoint.stem == model:
            raise KeyboardInterrupt
        return step(self, loss, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(pool, tmp_path)
    assert not (tmp_path / "base").exists()
    assert weights(train(pool, tmp_path)) == weights(trained)


def test_feature_maps_train_the_autoencoder_too(trained: Path, pool: Pool, tmp_path: Path) -> None:
    def halves(pictures: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(pictures, 2)]

    name = "vae/diffusion_pytorch_model.safetensors"
    assert weights(train(pool, tmp_path, maps=halves))[name] != weights(trained)[name]
    with pytest.raises(ConfigError, match="another computation"):
        train_autoencoder(pool, CONFIG, tmp_path / "run", tmp_path / "other", CPU)


def test_small_features_weigh_more_than_flat_areas() -> None:
    picture = torch.zeros(1, 3, 16, 16)
    picture[:, :, 6:9, 6:9] = 1.0
    contrast = _local_contrast(picture)
    assert contrast.mean().item() == pytest.approx(1)
    assert contrast[0, 0, 7, 7] > 3
    assert contrast[0, 0, 0, 0] == 0
    assert _local_contrast(torch.ones(1, 3, 16, 16)).isfinite().all()


def test_another_seed_is_another_model(trained: Path, pool: Pool, tmp_path: Path) -> None:
    config = replace(CONFIG, unet=replace(QUICK, seed=1))
    other = BaseModel.load(train(pool, tmp_path, config))
    assert other.fingerprint != BaseModel.load(trained).fingerprint
