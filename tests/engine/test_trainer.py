"""The loop: where it resumes it ends alike, and what it keeps is the running average."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock, call

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorasynth.core.checkpoint import read_state, write_state
from lorasynth.core.config import from_dict, to_dict
from lorasynth.core.errors import BundleError, ConfigError
from lorasynth.core.randomness import torch_stream
from lorasynth.engine.trainer import Optimisation, Trainer

STEPS = 8
CONFIG = Optimisation(steps=STEPS, batch=16, lr=0.05, warmup=2, ema=0.7, checkpoint_seconds=0.0)


def make_model(hidden: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2)
    )


def loss(model: nn.Module, step: int) -> tuple[Tensor, str]:
    x = torch.randn(CONFIG.batch, 3, generator=torch_stream(5, step))
    return (model(x).float() - x[:, :2].roll(1, 1)).square().mean(), f"step {step}"


def train(
    folder: Path,
    config: Optimisation = CONFIG,
    loss: Callable[[nn.Module, int], tuple[Tensor, str]] = loss,
    model: nn.Module | None = None,
) -> nn.Module:
    trainer = Trainer(model or make_model(), config, folder / "c.safetensors", torch.device("cpu"))
    return trainer.run("test", loss)


def interrupted_at(last: int) -> Callable[[nn.Module, int], tuple[Tensor, str]]:
    def interrupted(model: nn.Module, step: int) -> tuple[Tensor, str]:
        if step == last:
            raise KeyboardInterrupt
        return loss(model, step)

    return interrupted


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    for name, value in first.state_dict().items():
        assert value.equal(second.state_dict()[name]), name


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch", 0), ("steps", -3), ("warmup", -5), ("lr", 0.0), ("lr", float("nan")),
        ("weight_decay", -0.1), ("clip", 0.0), ("ema", 1.0), ("ema", -0.1), ("decay", 0.0),
        ("decay", 1.1), ("decay", float("nan")), ("checkpoint_seconds", -1.0),
    ],
)  # fmt: skip
def test_nonsense_is_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"Optimisation\.{option}: .*, but got {value}"):
        from_dict(Optimisation, to_dict(CONFIG) | {option: value})


@pytest.mark.parametrize("interruptions", [(0,), (3,), (2, 5, 7)])
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1000.0])
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    tmp_path: Path, interruptions: tuple[int, ...], checkpoint_seconds: float
) -> None:
    config = replace(CONFIG, checkpoint_seconds=checkpoint_seconds)
    for last in interruptions:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", config, interrupted_at(last))
    assert (tmp_path / "cut").exists() == (checkpoint_seconds == 0 and interruptions != (0,))
    assert_equal(train(tmp_path / "cut", config), train(tmp_path / "whole", config))


def test_resuming_repeats_no_step_and_a_finished_run_does_none(tmp_path: Path) -> None:
    steps: list[int] = []

    def counted(model: nn.Module, step: int) -> tuple[Tensor, str]:
        steps.append(step)
        return interrupted_at(5)(model, step) if len(steps) <= 6 else loss(model, step)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss=counted)
    finished = train(tmp_path, loss=counted)
    assert steps == [0, 1, 2, 3, 4, 5, 5, 6, 7]
    assert_equal(train(tmp_path, loss=counted), finished)
    assert len(steps) == 9


def test_the_average_of_the_weights_is_kept(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def watched(model: nn.Module, step: int) -> tuple[Tensor, str]:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return loss(model, step)

    kept = train(tmp_path, loss=watched)
    stored = load_file(tmp_path / "c.safetensors")
    after = [*seen[1:], {name: stored[f"model.{name}"] for name in seen[0]}]
    average = after[0]
    for count, weights in enumerate(after[1:], start=1):
        decay = min(CONFIG.ema, (1 + count) / (10 + count))
        average = {n: decay * average[n] + (1 - decay) * weights[n] for n in average}
    for name, parameter in kept.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name])
        assert not parameter.equal(stored[f"model.{name}"])
    assert not kept.training


def test_it_learns(tmp_path: Path) -> None:
    def error(model: nn.Module) -> float:
        with torch.no_grad():
            return loss(model.eval(), 10_000)[0].item()

    before = error(make_model())
    assert (
        error(train(tmp_path, replace(CONFIG, steps=150, checkpoint_seconds=99.0))) < 0.3 * before
    )


def test_gradients_are_clipped(tmp_path: Path) -> None:
    def huge(model: nn.Module, step: int) -> tuple[Tensor, str]:
        value, note = loss(model, step)
        norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters() if step]))
        return value * 1e6, note

    norms: list[Tensor] = []
    train(tmp_path, replace(CONFIG, clip=0.5), huge)
    torch.testing.assert_close(torch.stack(norms[1:]), torch.full((STEPS - 1,), 0.5))


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = replace(CONFIG, steps=100, warmup=10)
    rates = torch.tensor([config.rate(step) for step in range(101)])
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert (rates[:10].diff() > 0).all()
    assert (rates[10:].diff() < 0).all()
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-6)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _forget_step(path: Path) -> None:
    save_file(load_file(path), path)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _forget_step, _empty])
def test_a_damaged_checkpoint_is_told_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    train(tmp_path)
    damage(tmp_path / "c.safetensors")
    with pytest.raises(
        BundleError, match=r"c\.safetensors.*delete .*c\.safetensors to begin anew"
    ) as caught:
        train(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(BundleError, match="of the model being trained"):
        train(tmp_path, model=make_model(hidden=7))


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    def trainer(batch: int, weight: float) -> Trainer:
        config = replace(CONFIG, batch=batch)
        path, device = tmp_path / "c.safetensors", torch.device("cpu")
        return Trainer(nn.Linear(2, 1), config, path, device, {"weight": weight})

    def zero(model: nn.Module, step: int) -> tuple[Tensor, str]:
        return model.weight.square().sum() + model.bias.sum(), ""

    trainer(4, 1.0).run("test", zero)
    trainer(4, 1.0).run("test", zero)
    for batch, weight, change in (
        (5, 1.0, r"optimisation\.batch was 4 and is now 5"),
        (4, 2.0, r"weight was 1\.0 and is now 2\.0"),
    ):
        with pytest.raises(ConfigError, match=change):
            trainer(batch, weight).run("test", zero)


def test_the_rate_falls_in_the_last_part_alone() -> None:
    config = replace(CONFIG, steps=22, warmup=2, decay=0.25)
    assert config.falls_at == 17
    rates = [config.rate(step) for step in range(22)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:18] == [1.0] * 16
    assert rates[17:] == sorted(rates[17:], reverse=True)
    assert 0 < rates[-1] < 0.2
    assert replace(config, decay=1.0).rate(12) == pytest.approx(0.5)


@pytest.mark.parametrize("steps", [12, 5, 3])
def test_more_or_fewer_steps_go_on_from_the_checkpoint(
    tmp_path: Path, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The schedule is stretched, or ends where the run is."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss=interrupted_at(5))
    seen: list[int] = []

    def counted(model: nn.Module, step: int) -> tuple[Tensor, str]:
        seen.append(step)
        return loss(model, step)

    train(tmp_path, replace(CONFIG, steps=steps), counted)
    assert seen == list(range(5, steps))
    [line] = [line for line in capsys.readouterr().err.splitlines() if "has done" in line]
    assert "has done 5 of 8 steps" in line
    assert f"goes on to {steps}" in line or "ends as it is" in line


def test_where_the_rate_has_not_fallen_yet_nothing_tells_that_steps_were_added(
    tmp_path: Path,
) -> None:
    short = replace(CONFIG, steps=12, decay=0.5)  # falls at 7
    long = replace(short, steps=16)  # falls at 9
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "early", short, interrupted_at(6))
    assert_equal(train(tmp_path / "early", long), train(tmp_path / "whole", long))


def test_a_checkpoint_whose_identity_has_the_steps_is_read(tmp_path: Path) -> None:
    """As they were written until 0.1."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "old", loss=interrupted_at(5))
    path = tmp_path / "old/c.safetensors"
    state = read_state(path, {}, free=("optimisation",))
    assert state is not None
    tensors = {name: value for name, value in state.tensors.items() if name != "losses"}
    write_state(path, {"optimisation": to_dict(CONFIG)}, tensors, step=5, steps=STEPS)
    assert_equal(train(tmp_path / "old"), train(tmp_path / "whole"))


# What is recorded


def trainer_of(folder: Path, config: Optimisation = CONFIG) -> Trainer:
    return Trainer(make_model(), config, folder / "c.safetensors", torch.device("cpu"))


def rows_of(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_rows_have_loss_rate_and_figures_and_a_killed_run_has_the_same(tmp_path: Path) -> None:
    def figures(model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        assert first_parameter(model).grad is not None
        return {"held_out": float(first_parameter(model).abs().sum()), "step_seen": step}

    def run(folder: Path, loss: Callable[..., tuple[Tensor, str]]) -> list[dict[str, float]]:
        trainer = trainer_of(folder)
        trainer.record(3, figures)
        trainer.run("test", loss)
        return trainer.history

    whole = run(tmp_path / "whole", loss)
    assert [row["step"] for row in whole] == [3, 6, 8]
    for last in (2, 7):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", interrupted_at(last))
    assert run(tmp_path / "cut", loss) == whole
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    for row, kept in zip(rows_of(tmp_path / "cut"), whole, strict=True):
        assert row == {"training": "test", "rate": row["rate"], **kept}
        assert row["rate"] == pytest.approx(CONFIG.lr * CONFIG.rate(int(row["step"]) - 1))


def test_tensorboard_where_it_is_installed_has_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages themselves read them in their own environment (extra `watch`)."""
    board = MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path).run("test", interrupted_at(2))
    trainer_of(tmp_path).run("test", loss)
    folder = str(tmp_path / "tensorboard/test")
    assert board.SummaryWriter.call_args_list == [
        call(folder, purge_step=1),
        call(folder, purge_step=3),
    ]
    told = [one.args for one in board.SummaryWriter().add_scalar.call_args_list]
    [row] = [json.loads(one) for one in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted(told) == [(name, row[name], 8) for name in ("loss", "rate", "seconds")]


def test_several_trainings_share_a_folder(tmp_path: Path) -> None:
    for name in ("one", "two", "one"):
        path = tmp_path / f"{name}.safetensors"
        Trainer(make_model(), CONFIG, path, torch.device("cpu")).run(name, loss)
    assert sorted(str(row["training"]) for row in rows_of(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("killed", [False, True])
def test_it_stops_early_and_keeps_the_best_average(tmp_path: Path, killed: bool) -> None:
    seen: dict[int, Tensor] = {}

    def figures(model: nn.Module, step: int) -> dict[str, float]:
        seen[step] = first_parameter(model).clone()
        return {"held_out": abs(step - 4.0)}

    def run(loss: Callable[..., tuple[Tensor, str]]) -> nn.Module:
        trainer = trainer_of(tmp_path, replace(CONFIG, steps=40))
        trainer.record(2, figures, lowest="held_out", patience=3)
        found = trainer.run("test", loss)
        assert [row["step"] for row in trainer.history] == [2, 4, 6, 8, 10]
        return found

    if killed:
        with pytest.raises(KeyboardInterrupt):
            run(interrupted_at(7))
    for _ in range(2):  # and where it had ended, it does not go on
        assert first_parameter(run(loss)).equal(seen[4])


def test_divergence_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"diverged before step 8 .* smaller lr than 0\.05"):
        train(tmp_path, loss=lambda model, _: (first_parameter(model).sum() * torch.inf, ""))


def test_rates_can_differ_by_parameter(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "c.safetensors"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rates = {"0.weight": 0.0}
    config = replace(CONFIG, weight_decay=0.0)
    trainer = Trainer(model, config, path, torch.device("cpu"))
    trainer.scale_rates(rates)
    trainer.run("test", loss)
    assert model.state_dict()["0.weight"].equal(before["0.weight"])
    assert not model.state_dict()["3.weight"].equal(before["3.weight"])


def first_parameter(model: nn.Module) -> nn.Parameter:
    return next(model.parameters())


def test_progress_says_this_steps_loss_and_the_last_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    @contextmanager
    def progress(*_: object, **__: object) -> Iterator[Callable[..., None]]:
        yield lambda note: said.append(note)  # noqa: PLW0108 it has the argument's name

    def noted(model: nn.Module, step: int) -> tuple[Tensor, str]:
        return loss(model, step)[0], f"loss of {step}"

    monkeypatch.setattr("lorasynth.engine.trainer.progress", progress)
    trainer = trainer_of(tmp_path)
    trainer.record(3, lambda *_: {"held_out": 0.5})
    trainer.run("test", noted)
    assert said[:2] == ["loss of 0", "loss of 1"]
    assert re.fullmatch(r"loss of 4; at step 3 loss \S+, held_out 0.5", said[4])
