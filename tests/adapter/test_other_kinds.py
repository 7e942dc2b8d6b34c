"""What is no plain LoRA becomes one where it adds a matrix, as dense products made here say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from lorasynth.adapter import Adapter, Factor, norm
from lorasynth.adapter.addition import merged
from lorasynth.adapter.files.conversion import read_any
from lorasynth.adapter.lowrank import of_kronecker, of_matrix, truncated
from lorasynth.core.errors import ConfigError, FileFormatError, LayoutError

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
MODULE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "lora_unet_mid_block_resnets_0_conv1"
stream = torch.Generator()


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    stream.manual_seed(0)


Case = tuple[str, dict[str, Tensor], Tensor]


def loha() -> Case:
    b1, a1, b2, a2 = numbers(12, 2), numbers(2, 10), numbers(12, 2), numbers(2, 10)
    parts = {"hada_w1_a": b1, "hada_w1_b": a1, "hada_w2_a": b2, "hada_w2_b": a2}
    return LINEAR, {**parts, "alpha": torch.tensor(1.0)}, (b1 @ a1) * (b2 @ a2) / 2


def names(n: int) -> tuple[str, str, str]:
    return f"t{n}", f"w{n}_b", f"w{n}_a"


def loha_with_core() -> Case:
    parts = {f"hada_w{n}_{x}": numbers(2, 8 if x == "a" else 6) for n in (1, 2) for x in "ab"}
    parts |= {f"hada_t{n}": numbers(2, 2, 3, 3) for n in (1, 2)}
    one, other = (
        torch.einsum("ijkl,jr,ip->prkl", *(parts[f"hada_{x}"] for x in names(n)))
        for n in (1, 2)
    )  # fmt: skip
    return CONV, parts, (one * other).flatten(1)


def lokr_full() -> Case:
    w1, w2 = numbers(3, 2), numbers(4, 5)
    return LINEAR, {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(9.0)}, torch.kron(w1, w2)


def lokr_decomposed() -> Case:
    w1, a, b = numbers(3, 2), numbers(4, 2), numbers(2, 5)
    parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(1.0)}
    return LINEAR, parts, torch.kron(w1, a @ b) / 2


def lokr_of_a_convolution() -> Case:
    w1, w2 = numbers(2, 3), numbers(4, 2, 3, 3)
    dense = torch.stack([
        torch.stack([torch.kron(w1, w2[:, :, i, j]) for j in range(3)], -1) for i in range(3)
    ], -2)  # fmt: skip
    return CONV, {"lokr_w1": w1, "lokr_w2": w2}, dense.flatten(1)


def tucker() -> Case:
    down, core, up = numbers(2, 6, 1, 1), numbers(3, 2, 3, 3), numbers(8, 3, 1, 1)
    dense = torch.einsum("op,pqhw,qi->oihw", up[:, :, 0, 0], core, down[:, :, 0, 0]) / 3
    parts = {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up}
    return CONV, {**parts, "alpha": torch.tensor(1.0)}, dense.flatten(1)


def difference() -> Case:
    weight = numbers(12, 3) @ numbers(3, 10)
    return LINEAR, {"diff": weight}, weight


CASES: list[Callable[[], Case]] = [
    loha, loha_with_core, lokr_full, lokr_decomposed, lokr_of_a_convolution, tucker, difference
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_added_becomes_a_lora_exactly(case, tmp_path: Path) -> None:
    name, parts, dense = case()
    save_file(
        {f"{name}.{part}": t.contiguous() for part, t in parts.items()}, tmp_path / "x.safetensors"
    )
    made = read_any(tmp_path / "x.safetensors", rank=64)
    [factor] = made.file.adapter.factors.values()
    torch.testing.assert_close(factor.B @ factor.A, dense, rtol=1e-4, atol=1e-4)
    assert made.error < 1e-5
    assert made.rank == torch.linalg.matrix_rank(dense)
    assert dict(made.file.adapter.kernels) == (
        {"mid_block.resnets.0.conv1": (3, 3)} if name == CONV else {}
    )
    with pytest.raises(FileFormatError, match="only plain LoRA"):
        Adapter.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("case", [loha, lokr_full, difference])
def test_a_lower_rank_is_the_nearest_and_its_error_is_said(case, tmp_path: Path) -> None:
    name, parts, dense = case()
    save_file({f"{name}.{part}": t for part, t in parts.items()}, tmp_path / "x.safetensors")
    made = read_any(tmp_path / "x.safetensors", rank=2)
    [factor] = made.file.adapter.factors.values()
    s = torch.linalg.svdvals(dense)
    best = float((s[2:].square().sum() / s.square().sum()).sqrt())
    assert made.rank == 2
    assert made.error == pytest.approx(best, rel=1e-3)
    found = float((factor.B @ factor.A - dense).norm() / dense.norm())
    assert found == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", [LINEAR, CONV])
def test_dora_with_its_base_model(name: str, axis: int, tmp_path: Path) -> None:
    kernel = (3, 3) if name == CONV else ()
    base, down, up = numbers(12, 10, *kernel), numbers(2, 10, *kernel), numbers(12, 2)
    merged = base + (up @ down.flatten(1)).view_as(base) * 1.5  # alpha 3, rank 2
    others = [dim for dim in range(base.dim()) if dim != axis]
    norms = merged.square().sum(others, keepdim=True).sqrt()
    magnitude = norms * (1 + 0.1 * numbers(*norms.shape))
    change = (merged * magnitude / norms - base).flatten(1)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(3.0)}
    tensors |= {f"{name}.lora_up.weight": up.view(12, 2, *[1] * len(kernel))}
    save_file({**tensors, f"{name}.dora_scale": magnitude}, tmp_path / "x.safetensors")
    module = MODULE if name == LINEAR else "mid_block.resnets.0.conv1"
    (tmp_path / "unet").mkdir()
    save_file({f"{module}.weight": base}, tmp_path / "unet" / "model.safetensors")
    made = read_any(tmp_path / "x.safetensors", 64, base=tmp_path)
    factor = made.file.adapter.factors[module]
    torch.testing.assert_close(factor.B @ factor.A, change, rtol=1e-4, atol=1e-4)
    assert made.error < 1e-5
    save_file({f"{module}.weight": base[:, :5].clone()}, tmp_path / "unet" / "model.safetensors")
    with pytest.raises(FileFormatError, match="must have the adapter's shapes"):
        read_any(tmp_path / "x.safetensors", 64, base=tmp_path)
    with pytest.raises(FileFormatError, match=r"is DoRA .*--base"):
        read_any(tmp_path / "x.safetensors", 64)


class Block(nn.Module):
    """Two layers whose names those of a U-Net may have."""

    def __init__(self) -> None:
        super().__init__()
        self.to_k, self.to_v = nn.Linear(10, 12, bias=False), nn.Linear(10, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_k(x) + self.to_v(x)


SOME = {"target_modules": ["to_k", "to_v"]}


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, lora_alpha=3, use_dora=True, **SOME),
        LoraConfig(
            r=2, rank_pattern={"to_v": 3}, alpha_pattern={"to_k": 5}, use_rslora=True, **SOME
        ),
        LoHaConfig(r=2, alpha=3, alpha_pattern={"attn.to_v": 7}, **SOME),
        LoKrConfig(r=2, alpha=3, rank_pattern={"to_k": 1}, **SOME),
        LoKrConfig(r=1, alpha=3, decompose_both=True, decompose_factor=2, **SOME),
    ],
    ids=["DoRA", "patterns", "LoHa", "LoKr", "LoKr of parts"],
)
def test_folders_of_peft_are_what_peft_computes(config, tmp_path: Path) -> None:
    network = nn.ModuleDict({"attn": Block()})
    base = {key: value.clone() for key, value in network.state_dict().items()}
    model = get_peft_model(network, config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter) * parameter.requires_grad
    model.save_pretrained(tmp_path / "peft")
    save_file(base, tmp_path / "base.safetensors")
    made = read_any(tmp_path / "peft", 64, base=tmp_path / "base.safetensors")
    merged = model.merge_and_unload().state_dict()
    assert {f"{module}.weight" for module in made.file.adapter.factors} == base.keys()
    for module, factor in made.file.adapter.factors.items():
        change = merged[f"{module}.weight"] - base[f"{module}.weight"]
        torch.testing.assert_close(factor.B @ factor.A, change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"bias": "lora_only"}, "biases"), ({"modules_to_save": ["to_v"]}, "whole modules")],
)
def test_what_peft_saves_beside_a_lora_is_refused_by_name(options, name, tmp_path: Path) -> None:
    block = Block()
    block.to_k.bias = nn.Parameter(torch.zeros(12))
    config = LoraConfig(r=2, target_modules=["to_k"], **options)
    get_peft_model(nn.ModuleDict({"attn": block}), config).save_pretrained(tmp_path / "peft")
    with pytest.raises(FileFormatError, match=f"is a LoRA with {name}"):
        Adapter.load(tmp_path / "peft")


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("oft_blocks", "OFT"),
        ("boft_R", "BOFT"),
        ("on_input", "IA3"),
        ("a1.weight", "GLoRA"),
        ("diff_b", "a difference of biases"),
        ("w_norm", "a LoRA with trained norms"),
    ],
)
def test_what_depends_on_the_weights_is_refused_by_name(part, kind, tmp_path: Path) -> None:
    tensors = {f"{LINEAR}.lora_down.weight": numbers(2, 10)}
    tensors |= {f"{LINEAR}.lora_up.weight": numbers(12, 2), f"{LINEAR}.{part}": numbers(12)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match=rf"is {kind} .*lorasynth extract"):
        read_any(tmp_path / "x.safetensors", rank=4)
    tensors[f"{LINEAR}.{part}"] = torch.tensor(True)  # LyCORIS' `on_input` is one
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match=rf"is {kind} "):
        Adapter.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"diff": numbers(7)}, "of a norm or a bias"),
        ({"lokr_w1": numbers(1 << 10, 1), "lokr_w2": numbers(1 << 10, 1)}, "make 1048576 x 1"),
        ({"lokr_w1": numbers(300, 300), "lokr_w2": numbers(100, 100)}, "make 30000 x 30000"),
        ({"lokr_w1": torch.full((2, 2), 1e30), "lokr_w2": torch.full((2, 2), torch.nan)}, "finite"),
        ({"diff": torch.full((2, 2), torch.inf)}, "finite"),
        ({"lokr_w1": numbers(2, 2), "lokr_w2_a": numbers(2, 0), "lokr_w2_b": numbers(0, 2),
          "alpha": torch.tensor(1.0)}, "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_layer_is_refused_in_one_line(parts, words, tmp_path: Path) -> None:
    save_file({f"{LINEAR}.{part}": t for part, t in parts.items()}, tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match=f"attn2_to_k in .*{words}"):
        read_any(tmp_path / "x.safetensors", rank=4)


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    name, parts, _ = loha()
    parts["hada_w2_b"] = numbers(2, 9)
    save_file({f"{name}.{part}": t for part, t in parts.items()}, tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match=r"must fit each other, but those of .*attn2_to_k"):
        read_any(tmp_path / "x.safetensors", rank=4)


def test_truncation_keeps_what_matters() -> None:
    factor = Factor(numbers(6, 40), numbers(30, 6))
    dense = factor.B @ factor.A
    s = torch.linalg.svdvals(dense.double())
    near = truncated(factor, 3)
    assert near.factor.rank == 3
    assert near.lost == pytest.approx(float(s[3:].square().sum()), rel=1e-6)
    found = (near.factor.B @ near.factor.A - dense).double().square().sum()
    assert float(found) == pytest.approx(near.lost, rel=1e-4)
    share = float(s[:2].square().sum() / s.square().sum())
    assert truncated(factor, 6, energy=share - 1e-6).factor.rank == 2
    assert of_matrix(dense, 100).factor.rank == 6
    left, right = numbers(5, 4), numbers(6, 7)
    whole = of_kronecker(left, right, -0.5, 100)
    torch.testing.assert_close(
        whole.factor.B @ whole.factor.A, -0.5 * torch.kron(left, right), rtol=1e-4, atol=1e-5
    )


def test_merging(tmp_path: Path) -> None:
    one, two = (Adapter({MODULE: Factor(numbers(2, 10), numbers(12, 2))}) for _ in range(2))
    dense = [a.factors[MODULE].B @ a.factors[MODULE].A for a in (one, two)]
    summed, error = merged([one, two], [0.5, 2.0], "sum", 0.5, 64)
    factor = summed.factors[MODULE]
    torch.testing.assert_close(factor.B @ factor.A, 0.5 * dense[0] + 2 * dense[1])
    assert error == 0
    pruned, error = merged([one, two], [1.0, 1.0], "ties", 1.0, 64)
    elected = torch.sign(dense[0] + dense[1])
    agreeing = [d.where(torch.sign(d) == elected, torch.zeros(())) for d in dense]
    count = sum((d != 0).int() for d in agreeing).clamp_min(1)
    factor = pruned.factors[MODULE]
    torch.testing.assert_close(factor.B @ factor.A, sum(agreeing) / count, rtol=1e-4, atol=1e-4)
    assert error < 1e-5
    same, _ = merged([one, two], [1.0, 1.0], "dare", 0.5, 64)
    again, _ = merged([one, two], [1.0, 1.0], "dare", 0.5, 64)
    assert float(norm(same.factors)) == float(norm(again.factors))
    with pytest.raises(ConfigError, match="--method must be one of sum, ties, dare"):
        merged([one], [1.0], "mean", 0.5, 4)
    wide = Adapter({MODULE: Factor(numbers(2, 11), numbers(12, 2))})
    with pytest.raises(LayoutError, match="same widths"):
        merged([one, wide], [1.0, 1.0], "sum", 0.5, 4)
