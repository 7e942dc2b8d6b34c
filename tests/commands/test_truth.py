"""What the metadata of each written file states is what was done to its numbers."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from command_line import Run
from lorasynth import Synthesizer
from lorasynth.adapter import Adapter, Factors, unstack

from .conftest import World
from .test_methods import FEW, places


def dense(factors: Factors) -> torch.Tensor:
    return torch.cat([(factor.B @ factor.A).flatten() for factor in factors.values()])


def raw_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Factors]:
    """Collects what a function of the optimising commands returns, before it is written."""
    import lorasynth.engine as room

    found: list[Factors] = []
    function: Callable[..., object] = getattr(room, name)

    def kept(*arguments: object, **options: object) -> object:
        made = function(*arguments, **options)
        found.extend(unstack(made.factors))
        return made

    monkeypatch.setattr(room, name, kept)
    return found


def test_synth_multiplies_by_the_strength_that_it_states(world: World) -> None:
    synthesizer = Synthesizer.from_pretrained(world.synthesizer)
    written = Adapter.load(world.lora)
    assert written.metadata.extra["strength"] == "1.25"
    embedding = synthesizer.embed(world.photo)
    [same] = synthesizer.from_conditions(embedding[None])
    torch.testing.assert_close(dense(same.factors), dense(written.factors))
    name = hashlib.sha256(embedding.numpy().tobytes()).hexdigest()[:16]
    [raw] = unstack(synthesizer.decode(synthesizer.latents(embedding[None], [name])))
    torch.testing.assert_close(dense(written.factors), 1.25 * dense(raw))


@pytest.mark.parametrize(("prior", "strength"), [("diffusion", 1.25), ("gaussian", 1.0)])
def test_samples_state_their_strength(
    world: World, run: Run, tmp_path: Path, prior: str, strength: float
) -> None:
    where = ("--synthesizer", world.synthesizer, "--library", world.library)
    assert not run("sample", "--prior", prior, "-n", 1, "-o", tmp_path, *where).status
    [path] = tmp_path.iterdir()
    written = Adapter.load(path)
    assert float(written.metadata.extra["strength"]) == strength
    if prior == "diffusion":
        synthesizer = Synthesizer.from_pretrained(world.synthesizer)
        latents = synthesizer.latents(None, ["000"], seed=0, temperature=1.0)
        [raw] = unstack(synthesizer.decode(latents))
        torch.testing.assert_close(dense(written.factors), strength * dense(raw))


@pytest.mark.parametrize("command", ["optimise blend", "optimise invert"])
def test_optimised_files_state_their_strength(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    raw, out = raw_of(monkeypatch, "descend"), tmp_path / "me.safetensors"
    assert not run(*command.split(), world.photo, "-o", out, *places(world), *FEW).status
    written = Adapter.load(out)
    strength = float(written.metadata.extra["strength"])
    torch.testing.assert_close(dense(written.factors), strength * dense(raw[0]))


def test_what_training_changed_states_no_strength(world: World, run: Run, tmp_path: Path) -> None:
    better, way = tmp_path / "better.safetensors", tmp_path / "way"
    refine = ("refine", world.lora, world.photo, "-o", better, "--base", world.base, *FEW)
    assert not run(*refine).status
    assert "strength" not in Adapter.load(better).metadata.extra
    # refining trains A too, and what it wrote goes on to the next command
    where = ("--synthesizer", world.synthesizer, "--library", world.library)
    result = run("edit", "interpolate", world.lora, better, "--steps", 3, "-o", way, *where)
    assert result.status == 0, result.err
    first, middle, last = (Adapter.load(path) for path in sorted(way.iterdir()))
    ends = [dense(Adapter.load(path).factors) for path in (world.lora, better)]
    torch.testing.assert_close(dense(first.factors), ends[0])
    torch.testing.assert_close(dense(last.factors), ends[1])
    assert (dense(middle.factors) - sum(ends) / 2).norm() < 0.1 * (ends[1] - ends[0]).norm()
    assert "strength" not in middle.metadata.extra
