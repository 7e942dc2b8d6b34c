"""The judge: what it says of images, how it is stored, and that it learns."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorasynth.avatars.config import JudgeConfig
from lorasynth.avatars.judge import AttributeJudge, train_judge
from lorasynth.avatars.pool import LABELS, Pool
from lorasynth.core.errors import BundleError
from lorasynth.core.randomness import torch_stream
from lorasynth.engine.trainer import Optimisation


def config() -> JudgeConfig:
    options = Optimisation(steps=80, batch=16, lr=5e-3, warmup=5, ema=0.8)
    return JudgeConfig(image_size=16, features=32, optimisation=options)


def pool() -> Pool:
    """Forty images whose brightness is their mouth and whose redness their background."""
    stream = torch_stream(0, "judge")
    labels = torch.zeros(40, len(LABELS), dtype=torch.int64)
    mouth, background = (torch.randint(2, (40,), generator=stream) for _ in range(2))
    labels[:, list(LABELS).index("mouth")] = mouth
    labels[:, list(LABELS).index("background")] = background
    images = 60 + 60 * mouth[:, None, None, None].expand(-1, 16, 16, 3).clone()
    images[..., 0] += 100 * background[:, None, None]
    noise = torch.randint(-20, 20, images.shape, generator=stream)
    return Pool(images=(images + noise).to(torch.uint8), labels=labels)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> AttributeJudge:
    checkpoint = tmp_path_factory.mktemp("judge") / "c.safetensors"
    return train_judge(pool(), config(), checkpoint, torch.device("cpu"))


def test_it_learns_to_read_attributes(judge: AttributeJudge) -> None:
    assert not judge.training
    judged = judge.labels(pool().images)
    assert judged.shape == (40, len(LABELS))
    assert (judged == pool().labels).float().mean() > 0.99


def test_labels_are_in_the_range_of_their_attribute() -> None:
    torch.manual_seed(0)
    fresh = AttributeJudge(config()).eval()
    noise = torch.randint(0, 256, (300, 16, 16, 3), generator=torch_stream(0, "x")).to(torch.uint8)
    judged = fresh.labels(noise)
    sizes = torch.tensor([len(values) for values in LABELS.values()])
    assert ((judged >= 0) & (judged < sizes)).all()
    assert judged[:5].equal(fresh.labels(noise[:5]))


def test_what_is_saved_can_be_loaded(judge: AttributeJudge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge")
    loaded = AttributeJudge.load(tmp_path / "judge")
    assert loaded.config == judge.config
    assert loaded.labels(pool().images).equal(judge.labels(pool().images))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _other_trunk(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("residual", "separable"))


@pytest.mark.parametrize("damage", [_truncate, _without_config, _other_trunk])
def test_a_damaged_folder_is_told_in_one_line(
    judge: AttributeJudge, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    judge.save(tmp_path / "judge")
    damage(tmp_path / "judge")
    with pytest.raises(BundleError, match="judge") as caught:
        AttributeJudge.load(tmp_path / "judge")
    assert "\n" not in str(caught.value)
