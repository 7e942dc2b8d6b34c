"""Fleets against the same adapters trained alone, by this code and by PEFT."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import mse_loss

from lorasynth.adapter import Factor, map_factors
from lorasynth.base import BaseModel, Memory
from lorasynth.core.errors import CollectionError, ConfigError, LayoutError
from lorasynth.core.randomness import torch_stream
from lorasynth.engine import Recipe, encode_subjects, train_fleet
from lorasynth.engine.draws import draw_steps
from lorasynth.engine.loop import clip_each
from lorasynth.engine.recipe import PriorPreservation

SHORT = Recipe(steps=6, rank=2, targets=("to_q", "to_v", "ff.net.2"), images_per_step=2)
RECIPES = {
    "default": Recipe(steps=50, rank=2, average=0.0),
    "both": Recipe(
        steps=50,
        rank=3,
        alpha=6.0,
        trained="both",
        start="own",
        noise="own",
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=5,
        clip=0.02,
        caption_dropout=0.3,
        weight_decay=0.1,
        average=0.0,
        targets=("attn1.to_q", "attn2.to_v"),
    ),
    "sgd": Recipe(
        steps=50,
        rank=2,
        optimiser="sgd",
        learning_rate=0.3,
        noise="own",
        average=0.0,
        targets=("attn2.to_k", "attn2.to_v"),
    ),
}


def update(factor, row):
    return factor.B[row] @ factor.A[row]


def distance(left, right, row, other):
    """Relative error of ΔW over all modules."""
    wrong = sum((update(left[m], row) - update(right[m], other)).square().sum() for m in left)
    size = sum(update(right[m], other).square().sum() for m in left)
    return float((wrong / size).sqrt())


def train_with_peft(base, recipe, subject, start):
    """One adapter as anyone would train it: PEFT layers, a torch optimiser, a loop."""
    unet = copy.deepcopy(base.denoiser)
    names = list(start)
    alpha = recipe.alpha or recipe.rank
    unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=alpha, target_modules=names))
    layers = {name: module for name, module in unet.named_modules() if name in start}
    for name, layer in layers.items():
        layer.lora_A["default"].weight.data = start[name].A.clone()
        layer.lora_B["default"].weight.data = start[name].B.clone()
        layer.lora_A["default"].weight.requires_grad_(recipe.trained == "both")
    parameters = [p for p in unet.parameters() if p.requires_grad]
    if recipe.optimiser == "adam":
        decay = recipe.weight_decay
        optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=decay)
    else:
        optimiser = torch.optim.SGD(parameters, recipe.learning_rate, momentum=recipe.momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: recipe.rate(min(step, recipe.steps - 1)) / recipe.learning_rate
    )
    latents = base.encode_images(subject.images)
    texts, empty = (
        base.encode_prompts(said).parts["prompt_embeds"] for said in (subject.captions, [""])
    )
    for draw in draw_steps(base, recipe, [subject.id], [len(latents)]):
        text = texts[draw.images[0]].clone()
        text[draw.dropped[0]] = empty[0]
        times, noise = draw.times[0], draw.noise[0]
        noisy = base.scheduler.add_noise(latents[draw.images[0]], noise, times)
        loss = mse_loss(unet(noisy, times, text).sample, noise)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        schedule.step()
    scale = alpha / recipe.rank
    return {
        name: Factor(
            layer.lora_A["default"].weight.detach()[None],
            scale * layer.lora_B["default"].weight.detach()[None],
        )
        for name, layer in layers.items()
    }


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_an_adapter_of_a_fleet_is_the_one_that_peft_trains(folder, subjects, name, dtype, bound):
    base, recipe = BaseModel.load(folder, dtype=dtype), RECIPES[name]
    fleet = train_fleet(base, recipe, subjects[:3])
    # A starts where a recipe without steps worth the name leaves it.
    still = replace(recipe, steps=1, warmup_steps=0, learning_rate=1e-300, weight_decay=0.0)
    begin = train_fleet(base, still, subjects[:3]).factors
    start = {m: Factor(f.A[1], torch.zeros_like(f.B[1])) for m, f in begin.items()}
    alone = train_with_peft(base, recipe, subjects[1], start)
    assert distance(fleet.factors, alone, 1, 0) <= bound
    assert distance(fleet.factors, alone, 0, 0) > 10 * bound


@pytest.mark.parametrize("name", ["default", "both"])
def test_fleet_size_and_order_do_not_matter(base, subjects, name):
    recipe = replace(RECIPES[name], steps=12, average=0.5)
    five = train_fleet(base, recipe, subjects).factors
    three = train_fleet(base, recipe, subjects[3:0:-1]).factors
    one = train_fleet(base, recipe, subjects[2:3]).factors
    assert distance(three, five, 1, 2) <= 1e-9
    assert distance(three, five, 0, 3) <= 1e-9
    assert distance(one, five, 0, 2) <= 1e-9
    assert distance(one, five, 0, 3) > 1e-3


def test_subjects_may_have_different_numbers_of_images(base, subjects):
    fewer = replace(subjects[1], photos=subjects[1].images[:2], captions=["a", "b"])
    together = train_fleet(base, SHORT, [subjects[0], fewer, subjects[2]])
    alone = train_fleet(base, SHORT, [subjects[2]])
    assert distance(together.factors, alone.factors, 2, 0) <= 1e-9


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_prediction_types(tmp_path, make_pipeline, subjects, kind):
    base = BaseModel.load(make_pipeline(tmp_path / "base", kind), dtype=torch.float64)
    fleet = train_fleet(base, SHORT, subjects[:1])
    encoded = encode_subjects(base, subjects[:1])
    draw = next(draw_steps(base, SHORT, [subjects[0].id], [3]))
    x, noise, times = encoded.latents[draw.images[0]], draw.noise[0], draw.times[0]
    signal = base.scheduler.alphas_cumprod[times].double()[:, None, None, None]
    noisy = signal.sqrt() * x + (1 - signal).sqrt() * noise
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * x
    with torch.no_grad():
        predicted = base.denoise(noisy, times, encoded.texts[draw.images[0]])
    expected = mse_loss(predicted, velocity if kind == "v_prediction" else x)
    torch.testing.assert_close(fleet.losses[0, 0], expected, rtol=1e-6, atol=0)


def test_result_is_the_mean_of_the_last_steps(base, subjects):
    def last(steps):
        recipe = replace(SHORT, steps=steps, average=0.0)
        return train_fleet(base, recipe, subjects[:1]).factors

    averaged = train_fleet(base, replace(SHORT, average=0.5), subjects[:1])
    tail = [last(steps) for steps in (4, 5, 6)]
    for module, factor in averaged.factors.items():
        mean = sum(factors[module].B for factors in tail) / 3
        torch.testing.assert_close(factor.B, mean, rtol=1e-9, atol=1e-15)


def test_only_b_is_trained_and_a_is_shared(base, subjects):
    factors = train_fleet(base, SHORT, subjects[:2]).factors
    other = train_fleet(base, replace(SHORT, steps=2), subjects[3:4]).factors
    for module, factor in factors.items():
        torch.testing.assert_close(factor.A[0], factor.A[1], rtol=0, atol=0)
        torch.testing.assert_close(factor.A[0], other[module].A[0], rtol=0, atol=0)
        gram = factor.A[0] @ factor.A[0].T
        torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64))
        assert factor.B.flatten(1).norm(dim=1).gt(0).all()
    reseeded = train_fleet(base, replace(SHORT, seed=1), subjects[:1]).factors
    assert all(not torch.equal(reseeded[m].A, factors[m].A[:1]) for m in factors)


def test_training_lowers_the_loss(base, subjects):
    recipe = replace(SHORT, steps=45, learning_rate=5e-2, noise="own")
    losses = train_fleet(base, recipe, subjects[:2]).losses
    assert (losses[:, -15:].mean(1) < losses[:, :15].mean(1)).all()


def test_an_initial_adapter_is_the_start_and_pulls(base, subjects):
    start = train_fleet(base, SHORT, subjects[:2]).factors
    one = map_factors(lambda part: part[:1], start)
    still = replace(SHORT, learning_rate=1e-12)
    kept = train_fleet(base, still, subjects[2:4], init=start).factors
    assert distance(kept, start, 1, 1) < 1e-6
    free = train_fleet(base, SHORT, subjects[2:4], init=one).factors
    pull = replace(SHORT, weight_decay=50.0)
    pulled = train_fleet(base, pull, subjects[2:4], init=one).factors
    assert distance(pulled, one, 1, 0) < 0.95 * distance(free, one, 1, 0)
    with pytest.raises(CollectionError, match="1 adapter or one for each of the 3"):
        train_fleet(base, SHORT, subjects[:3], init=start)


def test_gradients_are_clipped_adapter_by_adapter():
    torch.manual_seed(0)
    gradients = [torch.randn(3, 2, 4), torch.randn(3, 5, 2)]
    gradients[0][1] *= 100
    gradients[1][2] *= 1e-3
    gradients[0][2] *= 1e-3
    expected = []
    for row in range(3):
        parts = [torch.nn.Parameter(g[row].clone()) for g in gradients]
        for part in parts:
            part.grad = part.data.clone()
        torch.nn.utils.clip_grad_norm_(parts, 1.0)
        expected.append([part.grad for part in parts])
    clip_each(gradients, 1.0)
    for row in range(3):
        for gradient, wanted in zip(gradients, expected[row], strict=True):
            torch.testing.assert_close(gradient[row], wanted)


def test_base_model_is_left_as_it_was(base, subjects):
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    train_fleet(base, SHORT, subjects[:2])
    after = base.denoiser.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(not module._forward_hooks for module in base.denoiser.modules())
    assert all(p.grad is None for p in base.denoiser.parameters())


def test_low_precision(folder, subjects):
    exact = train_fleet(BaseModel.load(folder), SHORT, subjects[:2])
    low = train_fleet(BaseModel.load(folder, dtype=torch.bfloat16), SHORT, subjects[:2])
    half = train_fleet(BaseModel.load(folder, dtype=torch.float16), SHORT, subjects[:2])
    for fleet in (low, half):
        assert all(f.B.dtype == torch.float32 for f in fleet.factors.values())
        torch.testing.assert_close(fleet.losses, exact.losses, rtol=0.05, atol=0)
    # Small gradients are not lost: with SGD, steps are as large as the gradients.
    plain = replace(SHORT, optimiser="sgd", learning_rate=1e-3, average=0.0, clip=None)
    fine = train_fleet(BaseModel.load(folder), plain, subjects[:1]).factors
    rough = train_fleet(BaseModel.load(folder, dtype=torch.float16), plain, subjects[:1]).factors
    assert distance(rough, fine, 0, 0) < 0.05


def test_reports_each_step(base, subjects):
    seen = []
    fleet = train_fleet(base, SHORT, subjects[:2], on_step=lambda *step: seen.append(step))
    assert [step for step, _ in seen] == list(range(1, SHORT.steps + 1))
    assert torch.equal(torch.stack([losses for _, losses in seen], dim=1), fleet.losses)


def test_bad_input(base, subjects):
    with pytest.raises(CollectionError, match="at least one subject"):
        train_fleet(base, SHORT, [])
    with pytest.raises(CollectionError, match=r"'subject-000' has 3 images and 1 captions"):
        train_fleet(base, SHORT, [replace(subjects[0], captions=["one"])])
    with pytest.raises(LayoutError, match="'to_x'"):
        train_fleet(base, replace(SHORT, targets=("to_x",)), subjects)
    with pytest.raises(ConfigError, match="rank must be at most the narrower side"):
        train_fleet(base, replace(SHORT, rank=17), subjects)


@pytest.fixture
def of_all_sides(subjects):
    """Subjects with upright, lying and square images, which differ from one to another."""
    sides = [[(16, 32), (16, 16)], [(32, 16)], [(18, 14), (16, 32), (32, 16)]]
    return [
        replace(
            subject,
            photos=[subject.images[0].repeat(2, 2, 1)[:height, :width] for height, width in own],
            captions=subject.captions[: len(own)],
        )
        for subject, own in zip(subjects, sides, strict=False)
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rectangles_are_trained_on_in_batches_of_their_own(folder, of_all_sides, checkpointing):
    memory = Memory(gradient_checkpointing=checkpointing)
    base = BaseModel.load(folder, dtype=torch.float64, memory=memory)
    base.use_buckets()
    seen = []
    base.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2:]))
    recipe = replace(SHORT, steps=4, noise="own", prior=PriorPreservation(prompt="person"))
    classes = torch.randn(2, *base.latent_shape, generator=torch_stream(1), dtype=torch.float64)
    fleet = train_fleet(base, recipe, of_all_sides, classes=classes)
    assert {tuple(shape) for shape in seen} == {(4, 12), (8, 8), (12, 4)}
    for row, subject in enumerate(of_all_sides):
        alone = train_fleet(base, recipe, [subject], classes=classes)
        assert distance(fleet.factors, alone.factors, row, 0) < 1e-9
        torch.testing.assert_close(fleet.losses[row], alone.losses[0])


def test_a_rectangle_is_trained_on_as_peft_would(folder, of_all_sides):
    base = BaseModel.load(folder, dtype=torch.float64)
    base.use_buckets()
    [upright] = of_all_sides[1:2]
    upright = replace(upright, photos=upright.photos[0].repeat(1, 2, 1)[None, :32, :8])
    recipe = RECIPES["default"]
    fleet = train_fleet(base, recipe, [upright])
    start = train_fleet(base, replace(recipe, steps=1, learning_rate=1e-30), [upright])
    one = {name: Factor(f.A[0], torch.zeros_like(f.B[0])) for name, f in start.factors.items()}
    base.latent_shape = base.shape_of(32, 8)  # so that noise has the same numbers
    theirs = train_with_peft(base, recipe, upright, one)
    assert distance(fleet.factors, theirs, 0, 0) < 1e-9
