"""`blend`, `invert`, `refine`, `edit`, `interpolate` and `sample` on the tiny world."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from command_line import Run, interrupt
from lorasynth.adapter import Adapter, AdapterMetadata, Factor
from lorasynth.base import BaseModel
from lorasynth.commands.optimise import Refine
from lorasynth.synthesizer import Synthesizer

from .conftest import World, write_image

FEW = ("--steps", 2, "--device", "cpu")


def places(world: World) -> tuple[object, ...]:
    return ("--synthesizer", world.synthesizer, "--library", world.library, "--base", world.base)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("optimise blend", ()),
        ("optimise blend", ("--over", "adapters", "--simplex")),
        ("optimise invert", ("--prior", 0.1)),
        ("optimise invert", ("--start", "synthesised")),
    ],
)
def test_a_photo_becomes_a_file_by_descent(
    world: World, run: Run, tmp_path: Path, command: str, options: tuple[object, ...]
) -> None:
    out = tmp_path / "me.safetensors"
    result = run(*command.split(), world.photo, "-o", out, *places(world), *options, *FEW)
    assert result.status == 0, result.err
    assert result.out.strip() == str(out)
    made = Adapter.load(out)
    assert made.layout == Adapter.load(world.lora).layout
    assert made.metadata.synthesised
    assert made.metadata.extra["optimised"] == f"{command.split()[1]} 2"


def test_several_subjects_are_optimised_at_once(world: World, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "all"
    assert run("optimise", "blend", world.subjects, "-o", out, *places(world), *FEW).status == 0
    files = sorted(path.name for path in out.iterdir())
    assert files == ["ann.safetensors", "ben.safetensors", "cyd.safetensors"]
    first, second = (Adapter.load(out / name).to_vector() for name in files[:2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("trained", ["both", "B"])
def test_refining_moves_a_file_and_says_so(
    world: World, run: Run, tmp_path: Path, trained: str
) -> None:
    out = tmp_path / "better.safetensors"
    which = ("--trained", trained) if trained == "B" else ()
    result = run("refine", world.lora, world.photo, "-o", out, "--base", world.base, *which, *FEW)
    assert result.status == 0, result.err
    before, after = Adapter.load(world.lora), Adapter.load(out)
    assert after.metadata.extra["optimised"] == "refine 2"
    for module, factors in before.factors.items():
        assert not torch.equal(factors.B, after.factors[module].B)
        stays = torch.allclose(factors.A, after.factors[module].A)
        assert stays == (trained == "B"), module


def refine(world: World, run: Run, out: Path, *options: object, lora: Path | None = None) -> str:
    """Refine, and give what is said on standard error."""
    where = ("--base", world.base, "--device", "cpu")
    result = run("refine", lora or world.lora, world.photo, "-o", out, *where, *options)
    assert result.status == 0, result.err
    assert result.out.strip() == str(out)
    return result.err


def test_refining_never_makes_a_file_worse(world: World, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "better.safetensors"
    wild = ("--encoder", world.encoder, "--learning-rate", 1e6, "--clip", "None", "--steps", 6)
    said = refine(world, run, out, *wild, "--check.every", 1, "--check.patience", 2)
    assert "the first file's adapter is written unchanged" in said
    before, after = Adapter.load(world.lora), Adapter.load(out)
    torch.testing.assert_close(after.to_vector(), before.to_vector(), rtol=0, atol=0)
    facts = after.metadata.extra
    assert facts.pop("similarity_before") == facts.pop("similarity_after")
    assert facts.pop("similarity_encoder") == "tiny-one"
    assert facts == before.metadata.extra
    assert "optimised" not in facts


def test_what_is_kept_was_better_and_says_by_how_much(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasynth.optimise import refining

    found = iter([0.1, 0.2, 0.5, 0.4, 0.3, 0.11, 0.42])  # at 0, 2, 4, 6, 8 steps, and by others
    monkeypatch.setattr(refining._Watch, "similarity", lambda *_: next(found))
    out, other = tmp_path / "better.safetensors", tmp_path / "four.safetensors"
    checks = ("--check.every", 2, "--check.patience", 2)
    said = refine(world, run, out, "--encoder", world.encoder, "--steps", 20, *checks)
    assert "0.1100 before, 0.4200 after 4 steps" in said
    facts = Adapter.load(out).metadata.extra
    assert facts["optimised"] == "refine 4"
    assert (facts["similarity_before"], facts["similarity_after"]) == ("0.1100", "0.4200")
    assert "strength" not in facts
    assert next(found, None) is None
    said = refine(world, run, other, "--steps", 4, "--average", 0)
    assert "may be better or worse: --encoder" in said
    torch.testing.assert_close(Adapter.load(out).to_vector(), Adapter.load(other).to_vector())
    assert "similarity_before" not in Adapter.load(other).metadata.extra


def test_the_shipped_encoder_is_that_of_its_own_files_alone(world: World, tmp_path: Path) -> None:
    def encoder_of(name: str, asked: str | None = None) -> str | None:
        out = tmp_path / "x"
        command = Refine(lora=world.lora, photos=(world.photo,), out=out, encoder=asked)
        found = command._load_encoder(AdapterMetadata(extra={"encoder": name}))
        return None if found is None else found.name

    shipped = Synthesizer.from_pretrained("bundle/synthesizer").encoder.name
    assert encoder_of(shipped) == shipped
    assert encoder_of(shipped, "none") is None
    assert encoder_of("../" + shipped) is None
    assert encoder_of("") is None


def test_refining_twice_gives_the_same_bytes(world: World, run: Run, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for index in range(3):
        write_image(photos / f"{index}.png", index, side=20 + index)
    several = ("--encoder", world.encoder, "--steps", 4, "--check.every", 2, "--check.images", 2)
    made = []
    for name in ("a", "b"):
        out = tmp_path / name / f"{name}.safetensors"
        arguments = ("-o", out, "--base", world.base, "--device", "cpu", *several)
        assert run("refine", world.lora, photos, *arguments).status == 0
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_a_kohya_file_with_text_encoder_layers_is_refined(
    world: World, run: Run, tmp_path: Path
) -> None:
    module = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    base, known = BaseModel.load(world.base), Adapter.load(world.lora)
    width = base.text_encoders["text_encoder"].config.hidden_size
    factor = Factor(torch.randn(2, width), torch.randn(width, 2))
    foreign = Adapter({module: factor, **known.factors}, kernels=known.kernels)
    lora, out = tmp_path / "foreign.safetensors", tmp_path / "better.safetensors"
    foreign.save(lora, format="kohya")
    refine(world, run, out, "--steps", 2, "--encoder", world.encoder, lora=lora)
    before, after = Adapter.load(lora), Adapter.load(out)
    assert after.factors.keys() == before.factors.keys()
    torch.testing.assert_close(after.factors[module].B, before.factors[module].B)


def test_ctrl_c_while_refining_leaves_nothing(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasynth.optimise import refining

    interrupt(monkeypatch, refining._Watch, "look", calls=2)
    options = ("--base", world.base, "--encoder", world.encoder, "--device", "cpu")
    out = tmp_path / "better.safetensors"
    result = run("refine", world.lora, world.photo, "-o", out, *options)
    assert result.status == 130
    assert "interrupted" in result.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_ends_of_an_interpolation_are_the_files(world: World, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    photo = write_image(tmp_path / "other.png", 5)
    assert run("synth", photo, "-o", other, "--synthesizer", world.synthesizer).status == 0
    out, strip = tmp_path / "between", tmp_path / "strip.png"
    options = ("--steps", 3, "-o", out, "--strip", strip)
    result = run("edit", "interpolate", world.lora, other, *options, *places(world))
    assert result.status == 0, result.err
    files = sorted(out.iterdir())
    assert [path.name for path in files] == [f"{i:03d}.safetensors" for i in range(3)]
    for end, file in ((world.lora, files[0]), (other, files[-1])):
        expected = Adapter.load(end).to_vector()
        torch.testing.assert_close(Adapter.load(file).to_vector(), expected, rtol=1e-3, atol=1e-4)
    with Image.open(strip) as image:
        assert (image.height, image.width > 16) == (3 * 16 + 2 * 2, True)  # beside their names
        assert "synthetic" in image.text["Comment"]


@pytest.mark.parametrize("prior", ["gaussian", "standard", "convex", "diffusion"])
def test_unconditional_samples_differ_and_say_where_they_come_from(
    world: World, run: Run, tmp_path: Path, prior: str
) -> None:
    where = ("--synthesizer", world.synthesizer, "--library", world.library)
    assert run("sample", "--prior", prior, "-n", 2, "-o", tmp_path / "out", *where).status == 0
    first, second = (Adapter.load(path) for path in sorted((tmp_path / "out").iterdir()))
    assert first.metadata.extra["prior"] == prior
    assert first.metadata.synthesised
    assert not torch.equal(first.to_vector(), second.to_vector())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--attribute", "glasses"), ("NAME=STEP", "'glasses'")),
        (("--attribute", "glasses=+1"), ("has none", "'glasses'", "library annotate")),
    ],
)
def test_edit_refuses_what_the_library_does_not_know(
    world: World, run: Run, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    out = tmp_path / "edited.safetensors"
    where = ("--synthesizer", world.synthesizer, "--library", world.library)
    run("edit", world.lora, "-o", out, *arguments, *where).is_one_error(*words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("optimise blend", ("--over", "images"), ("latents", "adapters", "'images'")),
        ("optimise invert", ("--start", "photo"), ("mean", "synthesised", "'photo'")),
        ("optimise blend", ("--penalty", -1), ("--penalty", "greater than or equal to 0", "-1")),
        ("optimise blend", ("--over", "adapters", "--library", "nowhere"), ("library", "nowhere")),
    ],
)
def test_bad_options_are_one_line(
    world: World,
    run: Run,
    tmp_path: Path,
    command: str,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    out = tmp_path / "me.safetensors"
    run(*command.split(), world.photo, "-o", out, *places(world), *options).is_one_error(*words)


def test_adapters_that_do_not_fit_into_memory_are_refused(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "me.safetensors"
    monkeypatch.setattr("lorasynth.engine.fleet_size.free_memory", lambda _: 100)
    made = run("optimise", "blend", world.photo, "-o", out, *places(world), "--over", "adapters")
    made.is_one_error("must have all 3 adapters in memory", "use --over latents")


def test_refine_takes_the_lora_first_and_one_subject(world: World, run: Run, tmp_path) -> None:
    where = ("-o", tmp_path / "x.safetensors", "--base", world.base)
    swapped = run("refine", world.photo, world.lora, *where)
    swapped.is_one_error("the LoRA first", world.photo.name)
    run("refine", world.lora, world.subjects, *where).is_one_error("one subject", "3 folders")


@pytest.mark.parametrize("name", ["me.png", "me.ckpt"])
def test_a_name_of_something_else_is_refused_before_work(
    world: World, run: Run, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    for command in (
        ("synth", world.photo),
        ("optimise", "blend", world.photo),
        ("edit", world.lora),
    ):
        more = ("--attribute", "glasses=1") if command[0] == "edit" else ()
        run(*command, "-o", out, *more, "--synthesizer", "nowhere").is_one_error(
            "must be named *.safetensors", name
        )
    assert not out.exists()


def test_what_cannot_be_sampled_is_refused(world: World, run: Run, tmp_path: Path) -> None:
    where = ("-o", tmp_path / "out", "--library", world.library)
    refused = run("sample", "--prior", "uniform", "--synthesizer", world.synthesizer, *where)
    refused.is_one_error("one of diffusion, convex, gaussian, standard", "'uniform'")
    assert not (tmp_path / "out").exists()
