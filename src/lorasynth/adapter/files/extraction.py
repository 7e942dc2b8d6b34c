"""A LoRA of the difference of two checkpoints, of which one layer at a time is in memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lorasynth.adapter.families import Family
from lorasynth.adapter.files.container import Content, refuse_pickle
from lorasynth.adapter.files.keys import Key
from lorasynth.adapter.files.reader import LoraFile, Pair, assemble
from lorasynth.adapter.lowrank import of_matrix, relative_error
from lorasynth.core.errors import FileFormatError

#: What published checkpoints in one file put before the denoiser's names.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
#: Where the denoiser lies in a pipeline's folder.
_DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Extracted:
    """A LoRA that was made of two checkpoints.

    Attributes:
        file: as if it had been read.
        rank: the highest of its modules.
        error: |ΔW - ΔW'| / |ΔW| over its modules.
        worst: the same of the worst module.
        left_out: changed tensors that are no matrices of layers: biases, norms.
    """

    file: LoraFile
    rank: int
    error: float
    worst: float
    left_out: tuple[str, ...]


@torch.no_grad()
def extracted(tuned: Path, base: Path, rank: int, family: Family | None = None) -> Extracted:
    """The LoRA of at most a rank that is nearest to what a fine-tune changed in the denoiser.

    Args:
        tuned: a pipeline's folder, a denoiser's, or a file with one.
        base: the same of what it was tuned from.
        rank: the highest.
        family: where names and shapes leave several.

    Raises:
        FileFormatError: a checkpoint is damaged, or they are not of one architecture, or equal.
    """
    pairs, parts, left_out = [], [], []
    with _opened(tuned) as first, _opened(base) as second:
        odd = sorted(first.keys() ^ second.keys())
        if odd:
            raise FileFormatError(
                f"both checkpoints must have the same tensors, but only one of {tuned} and {base} "
                f"has {odd[0][:200]}"
            )
        for name in sorted(first):
            one, other = (_tensor(files, name) for files in (first, second))
            if one.shape != other.shape:
                raise FileFormatError(
                    f"both checkpoints must have the same shapes, but {name[:200]} is "
                    f"{tuple(one.shape)} in {tuned} and {tuple(other.shape)} in {base}"
                )
            change = one.float() - other.float()
            if not change.any():
                continue
            if not name.endswith(".weight") or change.dim() not in (2, 4):
                left_out.append(name)
                continue
            nearest = of_matrix(change.flatten(1), rank)
            kernel = (change.shape[2], change.shape[3]) if change.dim() == 4 else None
            key = _key(name.removesuffix(".weight"))
            pairs.append(Pair(key, nearest.factor, kernel, float(nearest.factor.rank)))
            parts.append(nearest)
    if not pairs:
        raise FileFormatError(f"{tuned} must differ from {base} in a layer's matrix, but does not")
    content = Content(tuned, {pair.key.spelled: pair.factor.A for pair in pairs}, {})
    made = assemble(content, pairs, "diffusers", family, states_alpha=True)
    highest = max(part.factor.rank for part in parts)
    worst = max(relative_error([part]) for part in parts)
    return Extracted(made, highest, relative_error(parts), worst, tuple(left_out))


@contextmanager
def _opened(path: Path) -> Iterator[dict[str, tuple[Any, str]]]:
    """The denoiser's tensors by name: the file that each is in, and its name there."""
    with ExitStack() as stack:
        tensors: dict[str, tuple[Any, str]] = {}
        for file in _files(path):
            refuse_pickle(file)
            try:
                opened = stack.enter_context(safe_open(file, framework="pt"))
                names = list(opened.keys())
            except (SafetensorError, OSError) as error:
                raise FileFormatError(
                    f"a checkpoint must be complete safetensors, but {file} is not"
                ) from error
            prefix = next(p for p in _PREFIXES if any(name.startswith(p) for name in names))
            for name in names:
                if name.startswith(prefix):
                    tensors[name.removeprefix(prefix)] = (opened, name)
        yield tensors


def _files(path: Path) -> list[Path]:
    """A file, or the shards of a denoiser in a folder."""
    folders = [path, *(path / name for name in _DENOISERS)]
    found = [path] if path.is_file() else []
    for folder in folders:
        found = found or sorted(folder.glob("*.safetensors"))
    if not found:
        raise FileFormatError(
            f"a checkpoint must be a .safetensors file, or a folder with the denoiser's, but "
            f"{path} is none"
        )
    return found


def _tensor(files: dict[str, tuple[Any, str]], name: str) -> torch.Tensor:
    file, inside = files[name]
    tensor: torch.Tensor = file.get_tensor(inside)
    return tensor


def _key(name: str) -> Key:
    """The key that a LoRA of diffusers' has for a layer of that name."""
    return Key(
        spelled=f"transformer.{name}",
        format="diffusers",
        prefix="transformer.",
        tag="",
        name=name,
        dotted=True,
        part="down",
        kind="",
        adapter="",
        ending="AB",
        wrapped=False,
    )
