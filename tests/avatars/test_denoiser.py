"""Training of the denoiser, tiny: it ends in a pipeline folder, even if cut off."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from avatars.conftest import CONFIG, QUICK, SUBJECTS, weights
from command_line import interrupt
from lorasynth.avatars.autoencoder import train_autoencoder
from lorasynth.avatars.commands import TrainAutoencoder, TrainBase
from lorasynth.avatars.config import BaseTrainingConfig, DenoiserTraining, JudgeConfig
from lorasynth.avatars.denoiser import Progress, draw_times, save_pipeline, train_base, untrained
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.parts import Following
from lorasynth.avatars.pool import LABELS, Drawn, Pool
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.core.config import read_json, to_dict
from lorasynth.core.randomness import torch_stream
from lorasynth.engine.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def autoencoder(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    vae = train_autoencoder(pool.images, CONFIG, folder / "c", CPU)
    vae.to(dtype=torch.float16).save_pretrained(folder / "out")
    return folder / "out"


def train(
    autoencoder: Path,
    folder: Path,
    config: BaseTrainingConfig = CONFIG,
    watch: Progress | None = None,
) -> Path:
    torch.manual_seed(0)
    seen = AttributeJudge(JudgeConfig(image_size=16, features=8)).eval()
    pipeline = untrained(config, autoencoder)
    made = train_base(Drawn(SUBJECTS, folder / "run"), config, pipeline, CPU, seen, watch)
    save_pipeline(made, folder / "base", {"steps": 4})
    return folder / "base"


@pytest.fixture(scope="module")
def trained(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(autoencoder, tmp_path_factory.mktemp("trained"))


def test_the_result_is_a_base_model_in_half_precision(trained: Path, pool: Pool) -> None:
    base = BaseModel.load(trained)
    assert base.encode_images(pool.images).std() == pytest.approx(1, abs=0.1)
    assert read_json(trained / "training.json") == {"steps": 4}
    assert set(weights(trained)) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    numbers = sum(p.numel() for part in base._networks() for p in part.parameters())
    assert sum(map(len, weights(trained).values())) < 2 * numbers + 100_000


def test_a_run_that_is_cut_off_ends_alike(
    autoencoder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, Trainer, "_step", calls=3)
        with pytest.raises(KeyboardInterrupt):
            train(autoencoder, tmp_path)
    assert not (tmp_path / "base").exists()
    assert weights(train(autoencoder, tmp_path)) == weights(trained)


def test_what_watches_changes_nothing(autoencoder: Path, trained: Path, tmp_path: Path) -> None:
    judge = AttributeJudge(JudgeConfig(image_size=16, features=8)).eval()
    asked = Following(count=3, sampling=SamplingConfig(steps=2))
    watch = Progress(run=tmp_path / "run", judge=judge, following=asked, every=2)
    assert weights(train(autoencoder, tmp_path, watch=watch)) == weights(trained)
    table = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in table]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(0 <= row[name] <= 1 for row in rows for name in LABELS)
    assert (tmp_path / "run" / "samples.png").is_file()
    assert weights(tmp_path / "run" / "so-far") == weights(trained)  # those of the last step


def test_another_seed_is_another_model(autoencoder: Path, trained: Path, tmp_path: Path) -> None:
    other = replace(CONFIG, denoiser=DenoiserTraining(optimisation=replace(QUICK, seed=1)))
    first, second = BaseModel.load(trained), BaseModel.load(train(autoencoder, tmp_path, other))
    assert first.fingerprint != second.fingerprint


def test_most_timesteps_are_where_captions_act() -> None:
    times = draw_times(DenoiserTraining(), 20_000, torch_stream(0, "times"))
    assert times.min() == 0
    assert times.max() == 999
    # 30 % of them uniform; of the others those within one standard deviation.
    middle = ((times >= 400) & (times < 700)).float().mean()
    assert middle.item() == pytest.approx(0.3 * 0.3 + 0.7 * 0.683, abs=0.02)
    assert (times < 100).float().mean().item() == pytest.approx(0.03 + 0.7 * 0.0013, abs=0.01)


def test_features_of_images_train_it_too(autoencoder: Path, trained: Path, tmp_path: Path) -> None:
    pipeline = untrained(CONFIG, autoencoder)
    made = train_base(Drawn(SUBJECTS, tmp_path / "run"), CONFIG, pipeline, CPU)
    save_pipeline(made, tmp_path / "base", {})
    assert weights(tmp_path / "base") != weights(trained)


def test_a_base_states_how_each_part_was_trained(trained: Path, tmp_path: Path) -> None:
    """Its autoencoder's options are those of the autoencoder that it was given, not its own."""
    drawn: dict[str, Any] = {"subjects": 4, "device": "cpu", "workers": 1}
    own = replace(CONFIG, autoencoder=replace(CONFIG.autoencoder, kl_weight=0.5))
    first, second, base = (tmp_path / name for name in ("first", "second", "base"))
    TrainAutoencoder(out=first, run_folder=tmp_path / "1", config=own, **drawn).run()
    TrainAutoencoder(
        out=second, run_folder=tmp_path / "2", config=CONFIG, start=first, **drawn
    ).run()
    TrainBase(
        out=base, autoencoder=second, start=trained, run_folder=tmp_path / "3", config=own, **drawn
    ).run()
    stated = read_json(base / "training.json")
    assert stated["start"] == read_json(trained / "training.json")
    assert stated["denoiser"] == to_dict(CONFIG.denoiser)
    assert stated["autoencoder"] == to_dict(CONFIG.autoencoder) | {
        "start": to_dict(own.autoencoder) | {"start": None}
    }
