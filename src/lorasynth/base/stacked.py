"""Many adapters in one batch of a base model: two batched matrix products per adapted layer.

A batch of n x m samples, n adapters with m samples each (batch index = adapter * m + sample), goes
through the frozen network once; each target layer adds its adapter's (x Aᵀ) Bᵀ to the samples of
that adapter.  The cost of the frozen network is therefore that of one large batch, and the sum of
the adapters' losses has, for each adapter, the gradient of its own run.
"""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from lorasynth.adapter import Factor, Factors, count
from lorasynth.core.errors import LayoutError


class StackedAdapters:
    """Adds n adapters to a network while attached; leaves no trace of itself when detached.

    Use it as a context manager, or call `attach` and `detach`.  `factors` and `strength` may be
    replaced while attached.  Gradients flow to A, B, the strength and the input.  `torch.compile`
    the network after attaching: compiled code does not look for hooks that come later.

    Attributes:
        factors: module name -> stacked factors; A (n, rank, in) may be an expanded view of one A
            that all adapters share.
        strength: multiplies every adapter's ΔW: one number, or a tensor of n.
    """

    def __init__(
        self,
        network: nn.Module,
        factors: Factors,
        strength: float | Float[Tensor, " n"] = 1.0,
    ) -> None:
        """Check that every factor fits the module that it names.

        Raises:
            LayoutError: a module is absent, cannot be adapted, or has other widths; the factors
                disagree on the number of adapters.
        """
        self.factors = factors
        self.strength = strength
        self._modules = {name: _find(network, name) for name in factors}
        self._handles: list[RemovableHandle] = []
        for name, module in self._modules.items():
            _check_fit(name, module, factors[name])
        counts = {len(part) for factor in factors.values() for part in factor}
        if len(counts) != 1:
            raise LayoutError(
                "the factors of all modules must be stacked over the same adapters, but got "
                f"{sorted(counts)} adapters: stack them again"
            )

    def __len__(self) -> int:
        """The number n of adapters."""
        return count(self.factors)

    def attach(self) -> "StackedAdapters":
        """Start adding the adapters to their modules' outputs."""
        assert not self._handles, "attached already"
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(partial(self._add, name)))
        return self

    def detach(self) -> None:
        """Stop adding the adapters; harmless when not attached."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _add(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            return _add_to_convolution(output, args[0], module, self.factors[name], self.strength)
        return _add_to_linear(output, args[0], self.factors[name], self.strength)

    def __enter__(self) -> "StackedAdapters":
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()


def _find(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise LayoutError(
            f"every adapted module must exist in the base model, but it has no {name!r}: is the "
            "adapter made for another base model?"
        ) from error


def _check_fit(name: str, module: nn.Module, factor: Factor) -> None:
    n, rank = factor.A.shape[0], factor.A.shape[-2]
    width, out = _widths(name, module)
    expected = (n, rank, width), (n, out, rank)
    received = tuple(factor.A.shape), tuple(factor.B.shape)
    if received != expected:
        raise LayoutError(
            f"stacked A and B of {name} must have shapes {expected[0]} and {expected[1]}, but got "
            f"{received[0]} and {received[1]}: it is made for another size of this model (as "
            "FLUX.2 klein has 4B and 9B), or for another base model"
        )


def _widths(name: str, module: nn.Module) -> tuple[int, int]:
    """Width of the input (of a convolution: of a flattened patch) and of the output."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return module.in_channels * math.prod(module.kernel_size), module.out_channels
    raise LayoutError(
        f"an adapted module must be a linear layer or a convolution without groups, but {name} is "
        f"a {type(module).__name__}: leave it out of the targets"
    )


def _add_to_linear(
    output: Float[Tensor, "batch *axes out"],
    x: Float[Tensor, "batch *axes in"],
    factor: Factor,
    strength: float | Float[Tensor, " n"],
) -> Float[Tensor, "batch *axes out"]:
    """Return `output` + strength · (x Aᵀ) Bᵀ, in the output's dtype."""
    A, B = (part.to(output.dtype) for part in factor)
    n = _require_multiple(len(output), len(B))
    # (n, samples * tokens, width): the samples of an adapter are neighbours, so this is a view.
    hidden = torch.bmm(x.to(output.dtype).reshape(n, -1, x.shape[-1]), A.mT)
    if isinstance(strength, Tensor):
        strength = strength.to(output.dtype)[:, None, None]
    hidden = hidden * strength
    delta = torch.bmm(hidden.to(B.dtype), B.mT)
    return output + delta.reshape(output.shape)


def _add_to_convolution(
    output: Float[Tensor, "batch out h w"],
    x: Float[Tensor, "batch in y x"],
    module: nn.Conv2d,
    factor: Factor,
    strength: float | Float[Tensor, " n"],
) -> Float[Tensor, "batch out h w"]:
    """Return `output` + strength · B·(A * x), one group of channels for each adapter."""
    A, B = (part.to(output.dtype) for part in factor)
    n = _require_multiple(len(output), len(B))
    beside = x.to(output.dtype).unflatten(0, (n, -1)).transpose(0, 1).flatten(1, 2)
    hidden = functional.conv2d(
        beside,
        A.reshape(-1, module.in_channels, *module.kernel_size),
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=n,
    )
    if isinstance(strength, Tensor):
        strength = strength.to(output.dtype).repeat_interleave(A.shape[1])[:, None, None]
    delta = functional.conv2d(hidden * strength, B.flatten(0, 1)[..., None, None], groups=n)
    by_adapter: Tensor = delta.unflatten(1, (n, -1)).transpose(0, 1)
    return output + by_adapter.reshape(output.shape)


def _require_multiple(batch: int, n: int) -> int:
    if batch % n:
        raise LayoutError(
            f"a batch for {n} adapters must hold the same number of samples of each, but it has "
            f"{batch} samples: make it a multiple of {n}, ordered by adapter"
        )
    return n
