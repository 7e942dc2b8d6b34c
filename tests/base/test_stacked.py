"""Stacked adapters against the same adapters merged into the weights, and against PEFT."""

import copy
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from lorasynth.adapter import Factor
from lorasynth.base.stacked import StackedAdapters
from lorasynth.core.errors import LayoutError
from lorasynth.core.randomness import torch_stream

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in")
CONVOLUTIONS = ("conv_in", "conv1", "conv_shortcut", "downsamplers.0.conv")


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return (
        UNet2DConditionModel(
            sample_size=4,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=12,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            use_linear_projection=True,
        )
        .double()
        .requires_grad_(False)
    )


def adapted(network):
    return {
        name: module
        for name, module in sorted(network.named_modules())
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(TARGETS + CONVOLUTIONS)
    }


def random_factors(network, n, rank=2, dtype=torch.float64):
    stream = torch_stream(1, n, rank)

    def draw(*shape):
        return 0.3 * torch.randn(*shape, generator=stream, dtype=torch.float64).to(dtype)

    return {
        name: Factor(draw(n, rank, m.weight[0].numel()), draw(n, len(m.weight), rank))
        for name, m in adapted(network).items()
    }


def inputs(batch, dtype=torch.float64):
    stream = torch_stream(2)
    return (
        torch.randn(batch, 3, 4, 4, generator=stream, dtype=torch.float64).to(dtype),
        torch.randint(1000, (batch,), generator=stream),
        torch.randn(batch, 5, 12, generator=stream, dtype=torch.float64).to(dtype),
    )


def merged(network, factors, row, strength):
    network = copy.deepcopy(network)
    for name, module in adapted(network).items():
        update = strength * factors[name].B[row] @ factors[name].A[row]
        module.weight += update.view_as(module.weight)
    return network


@pytest.mark.parametrize("strength", [1.0, 0.5, torch.tensor([0.0, 1.0, -2.0])])
def test_equals_merging_each_adapter(unet, strength):
    factors, (x, t, text) = random_factors(unet, 3), inputs(6)
    with torch.no_grad():
        with StackedAdapters(unet, factors, strength):
            stacked = unet(x, t, text).sample
        each = strength if isinstance(strength, torch.Tensor) else torch.full((3,), strength)
        for row in range(3):
            mine = slice(2 * row, 2 * row + 2)
            alone = merged(unet, factors, row, each[row].double())(x[mine], t[mine], text[mine])
            torch.testing.assert_close(stacked[mine], alone.sample, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(stacked[:2], stacked[2:4])


def test_equals_peft(unet):
    factors, (x, t, text) = random_factors(unet, 1), inputs(2)
    peft = copy.deepcopy(unet)
    peft.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=list(factors)))
    for name, module in peft.named_modules():
        if name in factors:
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            A.data, B.data = factors[name].A[0].view_as(A), factors[name].B[0].view_as(B)
    with torch.no_grad(), StackedAdapters(unet, factors):
        stacked = unet(x, t, text).sample
        torch.testing.assert_close(stacked, peft(x, t, text).sample, rtol=1e-12, atol=1e-12)


def test_detached_leaves_no_trace(unet):
    factors, (x, t, text) = random_factors(unet, 2), inputs(2)
    keys = list(unet.state_dict())
    with torch.no_grad():
        before = unet(x, t, text).sample
        adapters = StackedAdapters(unet, factors)
        with adapters:
            assert not torch.equal(unet(x, t, text).sample, before)
        with pytest.raises(ZeroDivisionError), adapters:
            raise ZeroDivisionError
        assert torch.equal(unet(x, t, text).sample, before)
        adapters.detach()
    assert list(unet.state_dict()) == keys
    assert all(not module._forward_hooks for module in unet.modules())


def test_gradients_equal_those_of_merged_weights(unet):
    factors, (x, t, text) = random_factors(unet, 2), inputs(4)
    for factor in factors.values():
        factor.A.requires_grad_()
        factor.B.requires_grad_()
    with StackedAdapters(unet, factors):
        unet(x, t, text).sample.square().sum().backward()
    for row in range(2):
        mine = slice(2 * row, 2 * row + 2)
        detached = {k: Factor(f.A.detach(), f.B.detach()) for k, f in factors.items()}
        alone = merged(unet, detached, row, 1.0).requires_grad_()
        alone(x[mine], t[mine], text[mine]).sample.square().sum().backward()
        for name, module in adapted(alone).items():
            gradient = module.weight.grad.flatten(1)
            A, B = detached[name].A[row], detached[name].B[row]
            torch.testing.assert_close(factors[name].A.grad[row], B.T @ gradient)
            torch.testing.assert_close(factors[name].B.grad[row], gradient @ A.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_works_in_the_networks_dtype(unet, dtype):
    network, factors = copy.deepcopy(unet).to(dtype), random_factors(unet, 2, dtype=torch.float32)
    with torch.no_grad():
        with StackedAdapters(network, factors, torch.ones(2)):
            low = network(*inputs(2, dtype)).sample
        with StackedAdapters(unet, factors):
            exact = unet(*inputs(2)).sample
    assert low.dtype == dtype
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    assert (low.double() - exact).norm() < tolerance * exact.norm()


def test_autocast(unet):
    network, factors = copy.deepcopy(unet).float(), random_factors(unet, 2, dtype=torch.float32)
    for factor in factors.values():
        factor.B.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), StackedAdapters(network, factors, torch.ones(2)):
        network(*inputs(2, torch.float32)).sample.sum().backward()
    assert all(f.B.grad.dtype == torch.float32 and f.B.grad.any() for f in factors.values())


def test_compiles_without_a_graph_break():
    # In a process of its own, for what is compiled must not hold beartype's checks.
    script = """
import torch
from lorasynth.adapter import Factor
from lorasynth.base.stacked import StackedAdapters

network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))
factors = {"0": Factor(torch.randn(2, 1, 4), torch.randn(2, 6, 1))}
x = torch.randn(4, 4)
with StackedAdapters(network, factors):
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_batch_that_does_not_divide(unet):
    with (
        StackedAdapters(unet, random_factors(unet, 3)),
        pytest.raises(LayoutError, match="multiple of 3"),
    ):
        unet(*inputs(4))


def test_factors_that_do_not_fit(unet):
    def pair(A, B):
        return Factor(torch.zeros(*A), torch.zeros(*B))

    linears = {name: m for name, m in adapted(unet).items() if isinstance(m, nn.Linear)}
    name, *_, other = linears
    module, wide = linears[name], linears[other]
    fits = (2, 1, module.in_features), (2, module.out_features, 1)
    with pytest.raises(LayoutError, match=r"no 'not\.there'"):
        StackedAdapters(unet, {"not.there": pair(*fits)})
    with pytest.raises(LayoutError, match="is a GroupNorm"):
        StackedAdapters(unet, {"conv_norm_out": pair(*fits)})
    with pytest.raises(LayoutError, match="must have shapes"):
        StackedAdapters(unet, {name: pair((2, 1, module.in_features + 1), fits[1])})
    three = pair((3, 1, wide.in_features), (3, wide.out_features, 1))
    with pytest.raises(LayoutError, match=r"\[2, 3\]"):
        StackedAdapters(unet, {name: pair(*fits), other: three})
