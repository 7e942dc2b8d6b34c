"""Many small LAPACK problems at once: torch solves those of a batch one after the other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor


def solve_batch(
    solve: Callable[[Tensor], tuple[Tensor, ...]], matrices: Float[Tensor, "*n r r"]
) -> tuple[Tensor, ...]:
    """`solve` (such as `torch.linalg.eigh`) of each matrix, on all of the processor's threads."""
    threads = torch.get_num_threads() if matrices.device.type == "cpu" else 1
    parts = matrices.flatten(0, -3).chunk(threads)
    with ThreadPoolExecutor(len(parts)) as pool:
        solved = list(pool.map(solve, parts))
    batch = matrices.shape[:-2]
    return tuple(torch.cat(part).unflatten(0, batch) for part in zip(*solved, strict=True))
