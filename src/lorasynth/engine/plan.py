"""What training and sampling with a base model will need, told by its configurations alone.

The very code that will run is run on fake tensors, which have shapes and no numbers; each tensor
that an operator makes is counted while it lives, and each product by its operations.  On a CPU the
peak is that of the allocator, byte for byte (`tests/engine/test_plan.py`); a GPU adds what its
libraries work in and what fragmentation costs, for which `HEADROOM` stands.
"""

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lorasynth.adapter import Factor, Factors, map_factors
from lorasynth.base import BaseModel
from lorasynth.base.memory import Quantised, replace_linears
from lorasynth.base.outline import with_tokenizers
from lorasynth.core.errors import BaseModelError

aten = torch.ops.aten

#: Bytes of a GPU that are not for tensors: its context, workspaces and fragmentation.
HEADROOM = 1 << 30

#: Bytes of one number that is trained in fp32: itself, its gradient, two moments and its average.
TRAINED = 20


@dataclass(frozen=True)
class Need:
    """What one step takes.

    Attributes:
        weights: bytes of the networks that must be there.
        peak: bytes at the step's height beyond those.
        operations: of products, forward and backward.
    """

    weights: int
    peak: int
    operations: int

    @property
    def memory(self) -> int:
        """Bytes in all, without a GPU's headroom."""
        return self.weights + self.peak


class Tally(TorchDispatchMode):
    """Counts bytes that live and operations while it is entered.

    Attributes:
        peak: most bytes that lived at once, of tensors that were made inside.
        operations: of products; an addition counts as one, too.
    """

    def __init__(self, *networks: nn.Module) -> None:
        """Begin.

        Args:
            networks: whose weights are there before.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.operations = self._now = 0
        self._bytes: dict[int, int] = {}
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                self._bytes[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count what an operator makes."""
        made = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.operations += count(*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._bytes:
            return
        self._bytes[storage._cdata] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, place: int) -> None:
        self._now -= self._bytes.pop(place)


class _Whole(TorchDispatchMode):
    """Answers what depends on numbers, which fake tensors lack: all of every mask is true.

    So prompts are as long as they can be.
    """

    _sums = (aten.sum.default, aten.sum.dim_IntList)
    _indexed = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._summed = 1  # entries of each sum of a mask, of the one that was taken last

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else self._summed
        if function in self._indexed:
            places = [part for one in args[1] for part in _places(one)]
            args = (args[0], places, *args[2:])
        made = function(*args, **(kwargs or {}))
        if function in self._sums and not made.is_floating_point():
            self._summed = args[0].numel() // max(made.numel(), 1)
        return made


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A mask as the places where it is true."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [index.new_zeros(index.numel(), dtype=torch.long)] * index.dim()


@contextmanager
def fake(
    base: BaseModel, name: str, dtype: torch.dtype, quantize: Quantised | None = None
) -> Iterator[BaseModel]:
    """A base model that was loaded on the meta device, of fake tensors inside; it is used up.

    Args:
        base: the model.
        name: that it was loaded by, for its tokenizers.
        dtype: of its weights.
        quantize: how its blocks are stored (`Memory`).

    Raises:
        BaseModelError: it has no tokenizers, or what it computes depends on its numbers.
    """
    if base.experts:
        raise BaseModelError(
            f"what a planned model computes must not depend on its numbers, but {base.name} has "
            "experts: its weights alone take 2 bytes a parameter in bfloat16"
        )
    with_tokenizers(base.pipeline, name)
    with FakeTensorMode(allow_non_fake_inputs=True), _Whole():
        for network in base._networks():
            _materialise(network, dtype)
        if quantize is not None:
            replace_linears(base.denoiser, lambda layer: _Packed(layer, quantize))
        yield base


class _Packed(nn.Linear):
    """A linear layer as large as bitsandbytes' in its place, which unpacks its weight for each use.

    Args:
        like: the layer.
        how: it is stored.
    """

    def __init__(self, like: nn.Linear, how: Quantised) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = like.in_features, like.out_features
        numbers = like.weight.numel()
        scales = 4 * like.out_features if how == "int8" else 4 * -(-numbers // 64)
        size = (numbers if how == "int8" else -(-numbers // 2)) + scales
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
        self.bias, self.rounds = like.bias, how == "int8"

    def forward(self, input: Tensor) -> Tensor:
        """Shapes and memory as of the product."""
        product: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, (self.out_features, self.in_features), self.rounds
        )
        return product


class _Product(torch.autograd.Function):
    """What bitsandbytes makes and keeps: of 8 bits rounded inputs' products, and the inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        packed: Tensor,
        bias: Tensor | None,
        sizes: tuple[int, int],
        rounds: bool,
    ) -> Tensor:
        ctx.sizes, ctx.kept = sizes, input if rounds else None
        ctx.save_for_backward(packed)
        if not rounds:
            return nn.functional.linear(input, input.new_empty(sizes), bias)
        whole = input.new_empty(*input.shape[:-1], sizes[0], dtype=torch.int32)
        product = nn.functional.linear(input, input.new_empty(1).expand(sizes), bias)
        del whole
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        [gradient] = gradients
        return gradient @ gradient.new_empty(ctx.sizes), None, None, None, None


def _materialise(network: nn.Module, dtype: torch.dtype) -> None:
    """Put fake tensors, on the CPU, in place of a network's tensors on the meta device."""
    made: dict[int, Any] = {}
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                new = torch.empty(value.shape, dtype=dtype)
                new = made.setdefault(id(value), nn.Parameter(new, requires_grad=False))
                module._parameters[name] = new
        for name, buffer in module._buffers.items():
            if buffer is not None:
                kind = dtype if buffer.is_floating_point() else buffer.dtype
                module._buffers[name] = torch.zeros(buffer.shape, dtype=kind)


def encoding(base: BaseModel, batch: int) -> Callable[[], None]:
    """Images and prompts to latents and embeddings, after which their encoders may leave."""

    def step() -> None:
        base.encode_prompts(["a portrait"] * batch)
        base.encode_images(torch.zeros(batch, *2 * [base.image_size], 3, dtype=torch.uint8))

    return step


def training(base: BaseModel, factors: Factors, batch: int) -> Callable[[], None]:
    """A step of training B of n stacked adapters: forward and backward of `batch` samples."""
    texts, on = base.encode_prompts(["a portrait"] * batch), base.device

    def step() -> None:
        clean = torch.zeros(batch, *base.latent_shape, dtype=base.dtype, device=on)
        times = base.draw_times((batch,), torch.Generator(on))
        noisy, target = base.add_noise(clean, torch.randn_like(clean), times)
        moving = {k: Factor(f.A, f.B.clone().requires_grad_()) for k, f in factors.items()}
        with base.attached(moving):
            error = base.denoise(noisy, times, texts).float() - target.float()
            error.square().mean().backward()

    return step


def sampling(base: BaseModel, batch: int) -> Callable[[], None]:
    """A solver step of `batch` images, with as many samples without prompts for guidance."""
    texts = base.encode_prompts(["a portrait"] * 2 * batch)

    @torch.no_grad()
    def step() -> None:
        latents = torch.zeros(2 * batch, *base.latent_shape, dtype=base.dtype)
        base.denoise(latents, base.draw_times((2 * batch,), torch.Generator()), texts)

    return step


def decoding(base: BaseModel, batch: int) -> Callable[[], None]:
    """Latents to images."""
    latents = torch.zeros(batch, *base.latent_shape, dtype=base.dtype)

    def step() -> None:
        base.decode_latents(latents)

    return step


def need_of(
    step: Callable[[], None],
    networks: Sequence[nn.Module],
    trained: int = 0,
    *,
    alone: bool = False,
) -> Need:
    """What a step takes.

    Args:
        step: on fake tensors.
        networks: that must be there.
        trained: numbers that are trained in fp32.
        alone: one network is there at a time, so that the largest decides.
    """
    tally = Tally(*networks)
    with tally:
        step()
    sizes = [sum(p.nbytes for p in network.parameters()) for network in networks]
    return Need(
        max(sizes) if alone else sum(sizes), tally.peak + TRAINED * trained, tally.operations
    )


def zero_factors(base: BaseModel, targets: tuple[str, ...], rank: int, count: int) -> Factors:
    """Stacked adapters of zeros."""
    found = base.target_linears(targets)
    shaped = {
        name: Factor(
            torch.zeros(count, rank, layer.in_features),
            torch.zeros(count, layer.out_features, rank),
        )
        for name, layer in found.items()
    }
    return map_factors(lambda part: part.to(base.device, base.dtype), shaped)


def largest_batch(one: Need, two: Need, memory: int, most: int) -> tuple[int, int]:
    """The largest batch that fits, and the bytes that it takes with a GPU's headroom.

    Args:
        one: what a batch of one takes.
        two: what a batch of two takes; memory grows by equal steps.
        memory: bytes that there are.
        most: the largest batch that is wanted.
    """
    each = max(two.peak - one.peak, 1)
    first = one.memory + HEADROOM
    fits = max(min(1 + (memory - first) // each, most), 0) if first <= memory else 0
    return fits, first + max(fits - 1, 0) * each


def hours(operations: int, steps: int, tflops: float) -> float:
    """Hours of so many steps at a rate in TFLOP/s."""
    return operations * steps / (tflops * 1e12) / 3600


def measured_rate(
    base: BaseModel, targets: tuple[str, ...], rank: int, batch: int, seconds: float
) -> float:
    """TFLOP/s that this device reaches in training, over some seconds after a first step."""
    step = training(base, zero_factors(base, targets, rank, batch), batch)
    with Tally(base.denoiser) as tally:
        step()
    begun, steps = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        step()
        if base.device.type == "cuda":
            torch.cuda.synchronize()
        steps += 1
    return float(tally.operations * steps / (time.monotonic() - begun) / 1e12)
