"""A predictor learns, through a tiny base model's loss, who has which colour."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lorasynth.adapter import Layout, count
from lorasynth.base import BaseModel, StackedAdapters
from lorasynth.collect import Recipe
from lorasynth.collect.draws import Draw
from lorasynth.collect.encoded import encode_subjects
from lorasynth.collect.fleet import denoising_losses, start_factors
from lorasynth.errors import BundleError
from lorasynth.pictures import Subject
from lorasynth.predict import Predictor, PredictorConfig, PredictorTraining, train_predictor
from lorasynth.randomness import torch_stream
from lorasynth.training import Optimisation

RECIPE = Recipe(rank=2, targets=("to_q", "to_v", "ff.net.2"))
SMALL = PredictorTraining(
    model=PredictorConfig(width=16, depth=1, latents=4),
    optimisation=Optimisation(steps=40, batch=4, lr=1e-2, warmup=1, ema=0.9),
    pictures=2,
)


@dataclass(frozen=True)
class Colours:
    """A source of subjects, each plain pictures of a colour of its own."""

    count: int = 6

    @property
    def ids(self) -> list[str]:
        return [f"subject-{i}" for i in range(self.count)]

    def load(self, subject_id: str) -> Subject:
        stream = torch_stream(3, subject_id)
        colour = torch.randint(0, 256, (1, 1, 1, 3), generator=stream)
        pictures = (colour + torch.randint(-9, 9, (3, 16, 16, 3), generator=stream)).clamp(0, 255)
        return Subject(
            id=subject_id,
            pictures=pictures.to(torch.uint8),
            captions=["a portrait"] * 3,
            attributes={},
        )


class MeanColour:
    """An encoder whose embedding is the direction of the mean colour."""

    name, picture_size, width, licence, fingerprint = "colour", 16, 4, "none", "0"

    def embed(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        colours = pictures.float().mean((1, 2)) / 128 - 1
        return functional.normalize(functional.pad(colours, (0, 1), value=0.5), dim=1)

    def presence(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        return torch.ones(len(pictures))

    def save(self, folder: Path) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module")
def base(pipeline_folder: Path) -> BaseModel:
    return BaseModel.load(pipeline_folder)


@pytest.fixture(scope="module")
def predictor(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    checkpoint = tmp_path_factory.mktemp("predict") / "checkpoint.safetensors"
    return train_predictor(base, MeanColour(), Colours(), RECIPE, SMALL, checkpoint)


def losses(base: BaseModel, model: Predictor, wrong: int = 0) -> Tensor:
    """Each subject's loss under the adapter predicted for it, or for the one `wrong` further on."""
    subjects = [Colours().load(name) for name in Colours().ids]
    encoded = encode_subjects(base, subjects)
    n, stream = len(subjects), torch.Generator().manual_seed(0)
    shape = (n, 24)
    noise = torch.randn(1, 24, *encoded.latents.shape[1:], generator=stream).expand(
        n, -1, -1, -1, -1
    )
    draw = Draw(
        pictures=torch.arange(24).expand(shape) % 3,
        timesteps=torch.arange(20, 980, 40).expand(shape),
        noise=noise,
        dropped=torch.zeros(shape, dtype=torch.bool),
    )
    seen = torch.stack([MeanColour().embed(subject.pictures)[0] for subject in subjects])
    with torch.no_grad(), StackedAdapters(base.unet, model(seen.roll(wrong, 0))):
        return denoising_losses(base, encoded, draw)


def test_a_new_predictor_predicts_no_update_in_the_recipes_layout(base: BaseModel) -> None:
    start = start_factors(base.target_linears(RECIPE.targets), RECIPE)
    layout = Layout.from_factors(start)
    model = Predictor(PredictorConfig(latents=3), layout, 4)
    model.share(start)
    factors = model(torch.eye(4)[:3])
    layout.require(factors)
    assert count(factors) == 3
    for module, factor in factors.items():
        assert not factor.B.any()
        torch.testing.assert_close(factor.A[2], start[module].A[0].float())


def test_it_learns_to_denoise_the_subject_it_is_asked_for(
    base: BaseModel, predictor: Predictor
) -> None:
    untrained = Predictor(SMALL.model, predictor.layout, 4)
    own = losses(base, predictor)
    assert own.mean() < losses(base, untrained).mean()
    assert own.mean() < losses(base, predictor, wrong=1).mean()


def test_training_resumes_to_the_same_weights(
    base: BaseModel, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(SMALL.optimisation, checkpoint_seconds=0.0)
    config = replace(SMALL, optimisation=options)
    whole = train_predictor(base, MeanColour(), Colours(), RECIPE, config, tmp_path / "whole")

    def stop(*_: object) -> Tensor:
        monkeypatch.undo()
        raise KeyboardInterrupt

    calls = iter(range(100))
    monkeypatch.setattr(
        "lorasynth.predict.train.denoising_losses",
        lambda *args: stop() if next(calls) == 20 else denoising_losses(*args),
    )
    with pytest.raises(KeyboardInterrupt):
        train_predictor(base, MeanColour(), Colours(), RECIPE, config, tmp_path / "cut")
    resumed = train_predictor(base, MeanColour(), Colours(), RECIPE, config, tmp_path / "cut")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_it_is_read_as_it_was_saved(predictor: Predictor, tmp_path: Path) -> None:
    predictor.save(tmp_path / "predictor")
    again = Predictor.load(tmp_path / "predictor")
    condition = torch.eye(4)
    for module, factor in predictor(condition).items():
        assert torch.equal(again(condition)[module].B, factor.B)
        assert torch.equal(again(condition)[module].A, factor.A)
    (tmp_path / "predictor" / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="must describe a predictor"):
        Predictor.load(tmp_path / "predictor")
