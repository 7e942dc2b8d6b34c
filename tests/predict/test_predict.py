"""A predictor learns, through a tiny base model's loss, who has which colour."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lorasynth.adapter import Factors, count
from lorasynth.base import BaseModel, Memory, StackedAdapters
from lorasynth.condition import ConditionEncoder
from lorasynth.core.errors import CollectionError, ConfigError
from lorasynth.core.randomness import torch_stream
from lorasynth.engine.draws import Draw
from lorasynth.engine.encoded import encode_subjects
from lorasynth.engine.fleet import start_factors
from lorasynth.engine.loop import denoising_losses
from lorasynth.engine.recipe import Recipe
from lorasynth.engine.trainer import Optimisation
from lorasynth.hypernet import LatentRegressionConfig
from lorasynth.images import Subject
from lorasynth.images.framing import framed
from lorasynth.predict import Predicting, Predictor, PredictorTraining, tasks, train_predictor
from lorasynth.predict.tasks import divided, draw_task, encode_with_embeddings

RECIPE = Recipe(rank=2, targets=("to_q", "to_v", "ff.net.2"))
SMALL = PredictorTraining(
    model=LatentRegressionConfig(width=16, depth=1),
    latents=4,
    optimisation=Optimisation(steps=60, batch=6, lr=3e-2, warmup=1, ema=0.9),
    images=2,
)


@dataclass(frozen=True)
class Colours:
    """A source of subjects, each plain images of a colour of its own."""

    count: int = 6

    @property
    def ids(self) -> list[str]:
        return [f"subject-{i}" for i in range(self.count)]

    def load(self, subject_id: str) -> Subject:
        stream = torch_stream(3, subject_id)
        colour = torch.randint(0, 256, (1, 1, 1, 3), generator=stream)
        images = (colour + torch.randint(-9, 9, (3, 16, 16, 3), generator=stream)).clamp(0, 255)
        return Subject(
            id=subject_id, photos=images.to(torch.uint8), captions=["a portrait"] * 3, attributes={}
        )


class MeanColour(ConditionEncoder):
    """An encoder whose embedding is the direction of the mean colour."""

    name, image_size, width, licence = "colour", 16, 4, "none"

    def _fingerprint(self) -> str:
        return "0"

    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        colours = images.float().mean((1, 2)) / 128 - 1
        return functional.normalize(functional.pad(colours, (0, 1), value=0.5), dim=1)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module")
def base(pipeline_folder: Path) -> BaseModel:
    """The tiny base model with latents of unit size, so that noise does not hide the subjects."""
    model = BaseModel.load(pipeline_folder)
    model.vae.register_to_config(scaling_factor=8.0)
    return model


@pytest.fixture(scope="module")
def predicting(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Predicting:
    checkpoint = tmp_path_factory.mktemp("predict") / "checkpoint.safetensors"
    return train_predictor(base, MeanColour(), Colours(), RECIPE, SMALL, checkpoint)


def predict(predicting: Predicting, conditions: Tensor) -> Factors:
    noise = predicting.hypernet.draw_noise(0, range(len(conditions)))
    latents = predicting.hypernet.sample(conditions, noise)
    return predicting.layout.unflatten(predicting.codec.decode(latents))


def embeddings() -> Tensor:
    return torch.cat([MeanColour().embed(Colours().load(n).images) for n in Colours().ids])


def losses(base: BaseModel, factors: Factors) -> Tensor:
    """Each subject's loss under the adapter of the same row."""
    with StackedAdapters(base.denoiser, factors):
        return losses_of_all(base)


def losses_of_all(base: BaseModel) -> Tensor:
    """Each subject's loss under whatever is attached."""
    encoded = encode_subjects(base, [Colours().load(name) for name in Colours().ids])
    n, stream = len(encoded.counts), torch.Generator().manual_seed(0)
    shape = (n, 24)
    noise = torch.randn(1, 24, *encoded.latents.shape[1:], generator=stream)
    draw = Draw(
        images=torch.arange(24).expand(shape) % 3,
        times=torch.arange(20, 980, 40).expand(shape),
        noise=noise.expand(n, -1, -1, -1, -1),
        dropped=torch.zeros(shape, dtype=torch.bool),
    )
    with torch.no_grad():
        return denoising_losses(base, encoded, draw)


def fresh(base: BaseModel) -> Predictor:
    start = start_factors(base.target_linears(RECIPE.targets), RECIPE)
    torch.manual_seed(0)
    return Predictor(SMALL.model, 4, 4, start)


def test_a_new_predictor_predicts_no_update_in_the_recipes_layout(base: BaseModel) -> None:
    model = fresh(base)
    factors = model(torch.eye(4)[:3])
    model.layout.require(factors)
    assert count(factors) == 3
    start = start_factors(base.target_linears(RECIPE.targets), RECIPE)
    for module, factor in factors.items():
        assert not factor.B.any()
        torch.testing.assert_close(factor.A[2], start[module].A[0].float())


def test_split_predicts_the_same_by_components_of_what_is_predicted(base: BaseModel) -> None:
    model = fresh(base).requires_grad_(requires_grad=False)
    torch.nn.init.normal_(model.directions.weight)
    torch.nn.init.normal_(model.directions.bias)
    conditions = embeddings()
    regression, codec = model.split(conditions)
    vectors = model.layout.flatten(model(conditions))
    latents = regression(conditions)
    torch.testing.assert_close(codec.decode(latents), vectors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(codec.encode(vectors), latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.mean(0), regression.mean, atol=1e-4, rtol=0)
    assert latents.square().mean().item() == pytest.approx(1, rel=1e-3)
    covariance = latents.T @ latents / len(latents)
    torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=1e-3, rtol=0)
    assert (covariance.diagonal().diff() < 0).all()
    torch.testing.assert_close(codec.components @ codec.components.T, torch.eye(4))


def test_directions_that_add_nothing_split_as_well(base: BaseModel) -> None:
    model = fresh(base).requires_grad_(requires_grad=False)
    torch.nn.init.normal_(model.directions.weight)
    model.directions.weight[:, 3] = 2 * model.directions.weight[:, 0]
    conditions = embeddings()
    regression, codec = model.split(conditions)
    vectors = model.layout.flatten(model(conditions))
    decoded = codec.decode(regression(conditions))
    torch.testing.assert_close(decoded, vectors, atol=1e-3, rtol=1e-3)


def test_it_learns_to_denoise_the_subject_it_is_asked_for(
    base: BaseModel, predicting: Predicting
) -> None:
    seen = torch.stack([MeanColour().embed(Colours().load(n).images)[0] for n in Colours().ids])
    own = losses(base, predict(predicting, seen))
    assert (own < losses(base, fresh(base)(seen))).all()
    # the noise is the same, so that even small differences are the subjects'
    others = torch.stack([losses(base, predict(predicting, seen.roll(k, 0))) for k in (1, 2, 3)])
    assert (own < others.mean(0)).all()


def test_training_resumes_to_the_same_weights(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    expected, found = predict(whole, torch.eye(4)), predict(resumed, torch.eye(4))
    for module, factor in expected.items():
        torch.testing.assert_close(found[module].B, factor.B)


def test_gradient_checkpointing_trains_the_same_weights(
    base: BaseModel, pipeline_folder: Path, tmp_path: Path
) -> None:
    config = replace(SMALL, optimisation=replace(SMALL.optimisation, steps=4))
    frugal = BaseModel.load(pipeline_folder, memory=Memory(gradient_checkpointing=True))
    frugal.vae.register_to_config(scaling_factor=8.0)
    made = [
        train_predictor(model, MeanColour(), Colours(), RECIPE, config, tmp_path / name)
        for name, model in (("plain", base), ("frugal", frugal))
    ]
    expected, found = (predict(one, torch.eye(4)) for one in made)
    for module, factor in expected.items():
        torch.testing.assert_close(found[module].B, factor.B)


def test_a_recipe_that_trains_both_factors_is_refused(base: BaseModel, tmp_path: Path) -> None:
    both = replace(RECIPE, trained="both")
    with pytest.raises(ConfigError, match='trains "both"'):
        train_predictor(base, MeanColour(), Colours(), both, SMALL, tmp_path / "never")


def test_what_is_encoded_is_kept_and_belongs_to_model_encoder_and_source(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_PART", 4)
    taught = encode_with_embeddings(base, MeanColour(), Colours(), tmp_path)
    whole = encode_subjects(base, [Colours().load(name) for name in Colours().ids])
    rows = torch.arange(18)
    torch.testing.assert_close(taught.latents.rows[rows], whole.latents)
    assert taught.latents.first.equal(whole.first)
    assert tuple(taught.latents.counts.tolist()) == whole.counts
    for name, part in whole.texts.parts.items():
        torch.testing.assert_close(taught.texts[name][rows], part)
    assert taught.embeddings.rows.shape == (18, 4)
    assert len(list(tmp_path.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Colours, "load", lambda _, subject_id: pytest.fail(subject_id))
        again = encode_with_embeddings(base, MeanColour(), Colours(), tmp_path)
    assert again.ids == taught.ids
    assert again.embeddings.some(9).equal(taught.embeddings.rows[rows[::2]])
    encode_with_embeddings(base, MeanColour(), Colours(5), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


# Held-out subjects

WATCHED = replace(
    SMALL, optimisation=replace(SMALL.optimisation, steps=20), record_every=5, samples_every=10
)


@dataclass(frozen=True)
class Split(Colours):
    """Colours that state whose split is which."""

    @property
    def splits(self) -> dict[str, str]:
        return dict.fromkeys(self.ids[:2], "validation") | {self.ids[2]: "test"}


def test_some_are_held_out_by_their_ids_or_by_the_stated_split() -> None:
    known, aside = divided(Colours(100), 0.05)
    assert (len(known), len(aside)) == (95, 5)
    assert set(known) | set(aside) == set(Colours(100).ids)
    assert divided(Colours(100), 0.05)[1] == aside
    assert len(divided(Colours(3000), 0.05)[1]) == 64
    assert len(divided(Colours(8), 0.05)[1]) == 2
    assert divided(Colours(7), 0.5) == (Colours(7).ids, [])
    assert divided(Colours(100), 0.0) == (Colours(100).ids, [])
    ids = Split(5).ids
    assert divided(Split(5), 0.05) == (ids[3:], ids[:2])
    assert divided(Split(5), 0.0) == (ids[3:], [])


def train_watched(base: BaseModel, config: PredictorTraining, folder: Path) -> Predicting:
    return train_predictor(base, MeanColour(), Colours(12), RECIPE, config, folder / "checkpoint")


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_held_out_subjects_are_measured_and_shown_and_change_nothing(
    base: BaseModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = train_watched(base, WATCHED, tmp_path)
    assert "held out by hashes of their ids: 2 of 12 subjects" in capfd.readouterr().err
    assert len(made.held_out) == 2
    assert set(made.ids) == set(Colours(12).ids) - set(made.held_out)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert ["similarity" in row for row in rows] == [False, True, False, True]
    losses = [row["held_out_loss"] for row in rows]
    assert losses[-1] < losses[0]
    for step in (10, 20):
        with Image.open(tmp_path / "samples" / f"{step:06d}.png") as strip:
            assert strip.height == 16  # of one subject, since so small a training is short
            assert "real" in strip.info["Description"]
    unseen = replace(WATCHED, record_every=20, samples_every=0)
    same = train_watched(base, unseen, tmp_path / "unseen")
    expected, found = (predict(one, torch.eye(4)) for one in (made, same))
    for module, factor in expected.items():
        torch.testing.assert_close(found[module].B, factor.B)
    assert not (tmp_path / "unseen/samples").exists()


def test_training_ends_where_held_out_subjects_get_no_better(
    base: BaseModel, tmp_path: Path
) -> None:
    wild = replace(SMALL.optimisation, steps=200, lr=3.0)
    config = replace(WATCHED, optimisation=wild, patience=2, samples_every=0)
    made = train_watched(base, config, tmp_path)
    rows = rows_of(tmp_path)
    best = min(rows, key=lambda row: row["held_out_loss"])
    assert made.figures["step"] == best["step"]
    assert made.figures["held_out_loss"] == best["held_out_loss"]
    assert rows.index(best) == len(rows) - 3
    assert len(rows) < 40


def test_where_all_are_held_out_nothing_can_be_learned(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="all are held out"):
        train_predictor(base, MeanColour(), Split(3), RECIPE, WATCHED, tmp_path / "c")


@dataclass(frozen=True)
class Rectangles(Colours):
    """Of colours; images of some subjects are upright, of some both upright and lying."""

    def load(self, subject_id: str) -> Subject:
        subject = super().load(subject_id)
        upright, other = subject.images[0].repeat(2, 1, 1), subject.images[1].repeat(1, 2, 1)
        several = [other, upright] if subject_id.endswith(("1", "2")) else [upright]
        return replace(subject, photos=several, captions=["a portrait"] * len(several))


def test_all_that_is_denoised_in_a_step_has_equal_sides(base: BaseModel, tmp_path: Path) -> None:
    square = base.frames
    base.use_buckets()
    try:
        taught = encode_with_embeddings(base, MeanColour(), Rectangles(), tmp_path / "encoded")
        again = encode_with_embeddings(base, MeanColour(), Rectangles(), tmp_path / "encoded")
        assert taught.sides.tolist() == [[4, 12], [12, 4]] == again.sides.tolist()
        assert taught.numbers.tolist() == [[0, 1], [1, 1], [1, 1], [0, 1], [0, 1], [0, 1]]
        found = set()
        for step in range(40):
            _, encoded, draw = draw_task(base, taught, SMALL.optimisation, 2, step)
            latents, _ = encoded.pick(draw.images, draw.dropped)
            found.add(tuple(latents.shape))
            for row in latents:
                same = [
                    base.encode_images(framed(photo, base.frames)[None])[0]
                    for name in Rectangles().ids
                    for photo in Rectangles().load(name).photos
                ]
                assert any(row.shape == one.shape and row.allclose(one) for one in same)
        assert found == {(12, 4, 4, 12), (12, 4, 12, 4)}
        known = taught.of(["subject-0", "subject-3"])
        _, encoded, draw = draw_task(base, known, SMALL.optimisation, 2, 0)
        assert encoded.pick(draw.images, draw.dropped)[0].shape[2:] == (12, 4)
        short = replace(SMALL, optimisation=replace(SMALL.optimisation, steps=2))
        checkpoint = tmp_path / "checkpoint.safetensors"
        made = train_predictor(base, MeanColour(), Rectangles(), RECIPE, short, checkpoint)
        assert made.codec.components.isfinite().all()
    finally:
        base.frames = square
    squares = encode_with_embeddings(base, MeanColour(), Rectangles(), tmp_path / "encoded")
    assert squares.sides.tolist() == [[8, 8]]
