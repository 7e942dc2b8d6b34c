"""Training of the autoencoder, tiny: it resumes, its latents are white, and it can be enlarged."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from avatars.conftest import CONFIG, QUICK, weights
from command_line import interrupt
from lorasynth.avatars.autoencoder import (
    Perception,
    _adversarial,
    _batch,
    _discriminator,
    _local_contrast,
    perceive,
    train_autoencoder,
)
from lorasynth.avatars.config import BaseTrainingConfig, JudgeConfig
from lorasynth.avatars.denoiser import encoder_fingerprint
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.pool import Pool
from lorasynth.core.errors import BaseModelError, ConfigError
from lorasynth.engine.trainer import Trainer
from lorasynth.images.files import to_unit_range

CPU = torch.device("cpu")


def halves(images: Tensor) -> Sequence[Tensor]:
    return [torch.nn.functional.avg_pool2d(images, 2)]


def train(
    pool: Pool,
    folder: Path,
    maps: Perception | None = halves,
    config: BaseTrainingConfig = CONFIG,
    start: Path | None = None,
) -> Path:
    checkpoint, out = folder / "autoencoder.safetensors", folder / "autoencoder"
    vae = train_autoencoder(pool.images, config, checkpoint, CPU, maps, start)
    vae.to(dtype=torch.float16).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(pool, tmp_path_factory.mktemp("trained"))


def test_latents_are_white(trained: Path, pool: Pool) -> None:
    vae = AutoencoderKL.from_pretrained(trained)
    assert vae.config.scaling_factor == 1
    with torch.no_grad():
        latents = vae.float().encode(to_unit_range(pool.images)).latent_dist
        cells = latents.mean.movedim(1, -1).flatten(0, 2)
        assert latents.sample().sub(latents.mean).abs().max() < 1e-5
    assert cells.mean(dim=0).abs().max() < 0.02
    widths = torch.linalg.eigvalsh(torch.cov(cells.T))
    assert widths.max() == pytest.approx(1, abs=0.02)  # narrow ones are not made wide at any price


def test_whitening_changes_no_image(
    trained: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorasynth.avatars.autoencoder._whiten", lambda *_: None)
    plain = AutoencoderKL.from_pretrained(train(pool, tmp_path)).float()
    white = AutoencoderKL.from_pretrained(trained).float()
    images = to_unit_range(pool.images[:4])
    with torch.no_grad():
        decoded = [vae.decode(vae.encode(images).latent_dist.mean).sample for vae in (plain, white)]
    assert decoded[0].sub(decoded[1]).abs().max() < 0.02


def test_a_run_that_is_cut_off_ends_alike(
    trained: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, Trainer, "_step", calls=3)
        with pytest.raises(KeyboardInterrupt):
            train(pool, tmp_path)
    assert not (tmp_path / "autoencoder").exists()
    assert weights(train(pool, tmp_path)) == weights(trained)


def test_feature_maps_train_it_too(trained: Path, pool: Pool, tmp_path: Path) -> None:
    assert weights(train(pool, tmp_path, maps=None)) != weights(trained)
    with pytest.raises(ConfigError, match="another computation"):
        train(pool, tmp_path)


def test_a_network_of_smaller_images_perceives_larger_ones() -> None:
    judge = AttributeJudge(JudgeConfig(image_size=16, features=8)).eval()
    maps = perceive(judge, replace(CONFIG.model, image_size=32))
    images = torch.rand(2, 3, 32, 32)
    small = torch.nn.functional.avg_pool2d(images, 2)
    for seen, expected in zip(maps(images), judge.feature_maps(small), strict=True):
        assert seen.equal(expected)


def test_it_starts_from_another_of_the_same_shape(
    trained: Path, pool: Pool, tmp_path: Path
) -> None:
    vae, start = (
        AutoencoderKL.from_pretrained(folder).float()
        for folder in (train(pool, tmp_path, None, start=trained), trained)
    )
    own, taken = (m.encoder.mid_block.resnets[0].conv1.weight for m in (vae, start))
    assert own.sub(taken).abs().max() < 0.02  # four steps away
    assert not own.equal(taken)
    odd = replace(CONFIG, model=replace(CONFIG.model, vae_channels=(4, 8)))
    with pytest.raises(BaseModelError, match="must have the layers of what is trained"):
        train(pool, tmp_path / "other", None, odd, trained)


def test_most_steps_are_of_crops(pool: Pool) -> None:
    training, generator = CONFIG.autoencoder, torch.Generator()
    shapes = [_batch(pool.images, training, step, generator).shape for step in range(2)]
    assert shapes == [(QUICK.batch, 3, 8, 8), (1, 3, 16, 16)]


def test_small_features_weigh_more_than_flat_areas() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[:, :, 6:9, 6:9] = 1.0
    contrast = _local_contrast(image)
    assert contrast.mean().item() == pytest.approx(1)
    assert contrast[0, 0, 7, 7] > 3
    assert contrast[0, 0, 0, 0] == 0
    assert _local_contrast(torch.ones(1, 3, 16, 16)).isfinite().all()


def test_a_decoder_trained_alone_keeps_the_latents(
    trained: Path, pool: Pool, tmp_path: Path
) -> None:
    alone = replace(CONFIG, autoencoder=replace(CONFIG.autoencoder, decoder_alone=True))
    out = train(pool, tmp_path, None, alone, trained)
    before, after = (AutoencoderKL.from_pretrained(folder).float() for folder in (trained, out))
    assert encoder_fingerprint(before) == encoder_fingerprint(after)
    old, new = (vae.decoder.conv_out.weight for vae in (before, after))
    assert not old.equal(new)


def test_decoder_and_discriminator_learn_from_losses_of_their_own(pool: Pool) -> None:
    torch.manual_seed(0)
    network = _discriminator()
    drawn = to_unit_range(pool.images[:4])
    decoded = torch.zeros_like(drawn, requires_grad=True)
    made, told_apart = _adversarial(network, decoded, drawn)
    made.backward()
    assert decoded.grad is not None
    assert decoded.grad.abs().max() > 0
    assert all(part.grad is None for part in network.parameters())
    decoded.grad = None
    told_apart.backward()
    assert decoded.grad is None
    assert all(part.grad is not None for part in network.parameters())


def test_a_discriminator_trains_the_decoder_too(pool: Pool, trained: Path, tmp_path: Path) -> None:
    judged = replace(CONFIG.autoencoder, adversarial_weight=0.5, adversarial_after=1)
    out = train(pool, tmp_path, config=replace(CONFIG, autoencoder=judged))
    assert weights(out) != weights(trained)
