"""Commands on LoRA files, as a user runs them, and what they say of bad input."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from command_line import Run
from lorasynth.adapter import Adapter, AdapterMetadata, Factor
from lorasynth.base.outline import outline


@pytest.fixture(scope="module")
def lora(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for the tiny base model, as a synthesizer writes it."""
    network = outline(str(pipeline_folder)).parts[""]
    layers = {name: m for name, m in network.named_modules() if name.endswith((".to_q", ".to_v"))}
    stream = torch.Generator().manual_seed(0)
    factors = {
        name: Factor(
            torch.randn(1, layer.in_features, generator=stream),
            torch.randn(layer.out_features, 1, generator=stream),
        )
        for name, layer in layers.items()
    }
    metadata = AdapterMetadata(trigger_phrase="sks", synthesised=True)
    path = tmp_path_factory.mktemp("lora") / "me.safetensors"
    return Adapter(factors, metadata).save(path, format="kohya")


def test_convert_there_and_back(lora: Path, run: Run, tmp_path: Path) -> None:
    kohya, peft, again = (tmp_path / name for name in ("k.safetensors", "p", "d.safetensors"))
    for source, out, name in (
        (lora, kohya, "kohya"), (kohya, peft, "peft"), (peft, again, "diffusers")
    ):  # fmt: skip
        result = run("convert", source, out, "--format", name)
        assert (result.status, result.out.strip()) == (0, str(out))
    first, last = Adapter.load(lora), Adapter.load(again)
    assert torch.equal(first.to_vector(), last.to_vector())
    assert first.metadata == last.metadata


def test_convert_to_half_precision(lora: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "half.safetensors"
    assert run("convert", lora, out, "--format", "kohya", "--dtype", "float16").status == 0
    weights = [t for key, t in load_file(out).items() if not key.endswith(".alpha")]
    assert {tensor.dtype for tensor in weights} == {torch.float16}
    result = run("convert", lora, out, "--format", "kohya", "--dtype", "int8")
    result.is_one_error("--dtype", "float32", "float16", "bfloat16", "'int8'")


def stranger(path: Path, dtype: torch.dtype = torch.float16, alpha: float = 1.0) -> Path:
    """A kohya file of Stable Diffusion 1 in half precision, whose scale is not 1."""
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    stream = torch.Generator().manual_seed(0)
    a = torch.rand(128, 768, generator=stream) - 0.5
    b = 2e-5 * torch.randn(320, 128, generator=stream)
    tensors = {f"{stem}.lora_down.weight": a.to(dtype), f"{stem}.lora_up.weight": b.to(dtype)}
    save_file({**tensors, f"{stem}.alpha": torch.tensor(alpha)}, path, {"modelspec.title": "Me"})
    return path


def dense(path: Path) -> torch.Tensor:
    [factor] = Adapter.load(path).factors.values()
    return factor.B.double() @ factor.A.double()


def test_convert_keeps_the_type_and_what_small_numbers_say(run: Run, tmp_path: Path) -> None:
    source, out = stranger(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    assert run("convert", source, out).status == 0
    weights = [t for key, t in load_file(out).items() if not key.endswith(".alpha")]
    assert {tensor.dtype for tensor in weights} == {torch.float16}
    assert float((dense(out) - dense(source)).norm() / dense(source).norm()) < 1e-3
    with safe_open(out, "pt") as file:
        assert file.metadata()["modelspec.title"] == "Me"


def test_a_scale_that_half_precision_cannot_hold(run: Run, tmp_path: Path) -> None:
    source = stranger(tmp_path / "in.safetensors", torch.float32, alpha=1e18)
    out = tmp_path / "out.safetensors"
    run("convert", source, out, "--dtype", "float16").is_one_error("float16", "bfloat16")
    assert not out.exists()
    assert run("convert", source, out, "--dtype", "bfloat16").status == 0


def test_convert_for_a_program(run: Run, tmp_path: Path) -> None:
    source, out = stranger(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    run("convert", source, out, "--format", "lycoris").is_one_error("lycoris", "kohya")
    assert not out.exists()
    prefixes = {"a1111": "lora_unet_", "comfyui": "lora_unet_", "diffusers": "unet."}
    for program, prefix in prefixes.items():
        assert run("convert", source, out, "--for", program).status == 0
        assert min(load_file(out)).startswith(prefix)
    run("convert", source, out, "--for", "paint").is_one_error("--for", "'paint'")
    both = ("--for", "kohya", "--format", "peft")
    run("convert", source, out, *both).is_one_error("a file has one format")
    run("convert", source, out, "--family", "sd9").is_one_error("--family must be one of", "sd9")
    run("convert", source, out, "--family", "wan").is_one_error("all layers must be Wan's")


def test_another_kind_becomes_a_lora(run: Run, tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    w1, w2 = torch.randn(3, 2), torch.randn(4, 5)
    save_file({f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2}, tmp_path / "lokr.safetensors")
    out = tmp_path / "lora.safetensors"
    result = run("convert", tmp_path / "lokr.safetensors", out)
    assert result.status == 0
    assert "made of LoKr: rank 8, relative error" in result.err
    torch.testing.assert_close(dense(out).float(), torch.kron(w1, w2), rtol=1e-4, atol=1e-4)
    result = run("convert", tmp_path / "lokr.safetensors", out, "--rank", 2)
    assert "rank 2, relative error 0." in result.err


def test_resize_and_merge(run: Run, tmp_path: Path) -> None:
    source = stranger(tmp_path / "in.safetensors", torch.float32)
    small, sum_ = tmp_path / "small.safetensors", tmp_path / "sum.safetensors"
    result = run("resize", source, small, "--rank", 4)
    assert (result.status, result.out.strip()) == (0, str(small))
    assert "resized: rank 4, relative error 0." in result.err
    assert run("merge", source, small, "--weight", 2, "--weight", -1, "-o", sum_).status == 0
    torch.testing.assert_close(dense(sum_), 2 * dense(source) - dense(small), rtol=1e-3, atol=1e-9)
    run("merge", source, "--weight", 1, "--weight", 2, "-o", sum_).is_one_error("--weight")
    run("merge", source, "--method", "mean", "-o", sum_).is_one_error("--method", "'mean'", "ties")


def test_extract_finds_what_was_merged_into_a_checkpoint(run: Run, tmp_path: Path) -> None:
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    base = {f"{module}.weight": torch.randn(320, 768), "conv_norm_out.weight": torch.ones(320)}
    update = torch.randn(320, 3) @ torch.randn(3, 768)
    tuned = {f"{module}.weight": base[f"{module}.weight"] + update}
    tuned["conv_norm_out.weight"] = torch.full((320,), 2.0)
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name / "unet").mkdir(parents=True)
        save_file(tensors, tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors")
    out = tmp_path / "out.safetensors"
    options = ("--rank", 8, "--dtype", "float32")
    result = run("extract", tmp_path / "tuned", tmp_path / "base", out, *options)
    assert result.status == 0
    assert "extracted from the denoiser: rank" in result.err
    assert "conv_norm_out.weight" in result.err
    torch.testing.assert_close(dense(out).float(), update, rtol=1e-3, atol=1e-3)
    same = run("extract", tmp_path / "base", tmp_path / "base", tmp_path / "no.safetensors")
    same.is_one_error("must differ")
    (tmp_path / "empty").mkdir()
    run("extract", tmp_path / "empty", tmp_path / "base", out).is_one_error("a checkpoint must be")


def test_inspect_as_json_and_by_its_status(run: Run, tmp_path: Path) -> None:
    result = run("inspect", stranger(tmp_path / "in.safetensors"), "--json")
    assert result.status == 0
    found = json.loads(result.out)
    assert (found["family"], found["dtype"]) == ("Stable Diffusion 1", "float16")
    assert {row["program"]: row["modules"] for row in found["programs"]}["ComfyUI"] == 1
    zero = tmp_path / "zero.safetensors"
    tensors = load_file(stranger(zero))
    save_file({k: t * 0 if "lora_up" in k else t for k, t in tensors.items()}, zero)
    result = run("inspect", zero)
    assert result.status == 1
    assert "1 of its 1 updates are zero" in result.out


def test_inspect_says_which_of_several_files_have_one_update(
    lora: Path, run: Run, tmp_path: Path
) -> None:
    same, half = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    copy = tmp_path / "a.safetensors"
    copy.write_bytes(lora.read_bytes())
    run("convert", lora, same, "--format", "diffusers", "--dtype", "bfloat16")
    run("merge", lora, "--weight", "0.5", "-o", half)
    other = stranger(tmp_path / "d.safetensors")
    result = run("inspect", tmp_path, "--json")
    assert result.status == 0
    notes = {Path(one["file"]).name: one["notes"][:1] for one in json.loads(result.out)}
    assert notes["b.safetensors"] == [f"the same update as {copy}"]
    assert notes["c.safetensors"] == [f"the same update as {copy} times 0.5"]
    assert not any(
        "same update" in note for note in (*notes["a.safetensors"], *notes["d.safetensors"])
    )
    other.write_bytes(b"damaged")
    result = run("inspect", lora, same, other)
    assert result.status == 2
    assert result.out.count("the same update as") == 1
    assert "error: a LoRA file must be complete" in result.out


def test_loras_of_two_families_are_not_merged(run: Run, tmp_path: Path) -> None:
    one, two = stranger(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    Adapter({"blocks.0.attn1.to_q": Factor(torch.ones(1, 8), torch.ones(8, 1))}).save(two)
    result = run("merge", one, two, "-o", tmp_path / "x.safetensors")
    result.is_one_error("must be for one family", "Stable Diffusion 1", "Wan")
    assert not (tmp_path / "x.safetensors").exists()


def test_what_a_header_says_acts_on_no_terminal_and_is_no_fact(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    header = {
        "lorasynth.trigger_phrase": "sks\x1b[2J\x1b]0;TITLE\x07",
        "lorasynth.synthesised": "true",
        "lorasynth.extra.origin": "photographed by hand",
    }
    save_file(load_file(stranger(path)), path, header)
    out = run("inspect", path).out
    assert "\x1b" not in out
    assert "\x07" not in out
    lines = [line for line in out.splitlines() if line.startswith("origin")]
    assert [line.split()[1] for line in lines] == ["synthesised"]


@pytest.mark.parametrize("pattern", ["(a|a)+", "(a*)*", "(?=a)a", "a{9}", ".*.*.*.*a"])
def test_an_expression_that_could_take_forever_is_refused(
    run: Run, tmp_path: Path, pattern: str
) -> None:
    module = f"unet.{'a' * 40}!"
    tensors = {f"{module}.lora_{one}.weight": torch.ones(1, 1) for one in "AB"}
    config = {"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 1}}
    header = {"lora_adapter_metadata": json.dumps(config)}
    save_file(tensors, tmp_path / "x.safetensors", header)
    run("inspect", tmp_path / "x.safetensors").is_one_error("alpha_pattern must be names")


def test_inspect(lora: Path, run: Run, tmp_path: Path) -> None:
    result = run("inspect", lora)
    assert result.status == 0
    facts = dict(line.split(maxsplit=1) for line in result.out.splitlines() if " " in line.strip())
    assert facts["format"] == "kohya"
    assert facts["origin"] == "synthesised"
    assert facts["trigger"] == "sks"
    assert "mid_block" in result.out
    assert "warning" not in result.out
    other = tmp_path / "other.safetensors"
    assert run("convert", lora, other, "--format", "diffusers").status == 0
    assert "0 of 16" in row(run("inspect", other).out, "ComfyUI")


def row(out: str, program: str) -> str:
    """The line of a program in what `inspect` prints."""
    [line] = [line for line in out.splitlines() if program in line]
    return line


def test_inspect_with_a_base_model(lora: Path, pipeline_folder: Path, run: Run, tmp_path) -> None:
    result = run("inspect", lora, "--base", pipeline_folder)
    assert result.status == 0
    assert f"modules fit {pipeline_folder}" in result.out
    factors = dict(Adapter.load(lora).factors)
    own = outline(str(pipeline_folder)).stored_fingerprint()
    for fingerprint, said in ((own, "as"), ("0", "not")):
        told = Adapter(factors, AdapterMetadata(base_fingerprint=fingerprint))
        path = told.save(tmp_path / "told.safetensors")
        out = run("inspect", path, "--base", pipeline_folder).out
        assert f"{fingerprint}, {said} {pipeline_folder}" in out
    first, *_ = factors
    wide = Factor(torch.ones(1, factors[first].in_features + 1), factors[first].B)
    odd = {"mid_block.x": Factor(torch.ones(1, 2), torch.ones(2, 1)), first: wide}
    path = Adapter({**factors, **odd}).save(tmp_path / "bad.safetensors")
    result = run("inspect", path, "--base", pipeline_folder)
    result.is_one_error("2 do not fit")
    assert "mid_block.x: the base model has no such" in result.out
    assert f"{first}: it is {wide.in_features} -> " in result.out
    found = json.loads(run("inspect", path, "--base", pipeline_folder, "--json").out)
    assert len(found["misfits"]) == 2
    run("inspect", lora, "--base", tmp_path).is_one_error("model_index.json")


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_damaged_file_is_one_line(run: Run, tmp_path: Path, command: str) -> None:
    """Of each kind of damage one; adapter/test_formats_contract.py has all."""
    stem, path = "lora_unet_mid_block_attentions_0_proj_in", tmp_path / "bad.safetensors"
    down, up = f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"
    whole = {down: torch.ones(2, 4), up: torch.ones(3, 2)}
    out = tmp_path / "out.safetensors"
    more = () if command == "inspect" else (out, "--format", "diffusers")
    for change, said in (
        ({up: torch.full((3, 2), torch.inf)}, "infinite values"),
        ({up: torch.ones(3, 5)}, f"with r at least 1, but {stem}"),
        ({down.replace("unet", "transformer"): torch.ones(2, 4)}, "without its partner"),
        ({}, "complete safetensors"),
    ):
        save_file({**whole, **change}, path)
        path.write_bytes(path.read_bytes()[: None if change else -4])
        run(command, path, *more).is_one_error(said)
        assert not out.exists()
