"""Tensors of which each process holds a part (FSDP2), and the same tensors whole."""

from collections.abc import Mapping

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Tensor) -> Tensor:
    """The tensor itself; one in parts is gathered, for which every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def all_whole(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors, each of them whole."""
    return {name: whole(value) for name, value in values.items()}


def placed_like(values: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the form in which those of the same names are `held`."""
    return {name: _placed(value, held.get(name)) for name, value in values.items()}


def _placed(value: Tensor, held: Tensor | None) -> Tensor:
    if not isinstance(held, DTensor):
        return value
    placed = value.to(held.device, held.dtype)
    return distribute_tensor(placed, held.device_mesh, held.placements)
