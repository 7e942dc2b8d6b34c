"""A module on disk: weights, whole or in half precision, and a description; their hash."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from lorasynth.core.atomic import atomic_directory, atomic_file, write_json
from lorasynth.core.errors import BundleError, LorasynthError

#: What describes the module in a folder that `save_module` wrote.
CONFIG_FILE = "config.json"

#: Modules that a description may have built; more would take for ever.
_MAX_MODULES = 50_000

#: Bytes of a header; that of a model of thousands of tensors has one megabyte.
_MAX_HEADER = 8 << 20

#: Numbers that are tested or widened at a time.
_PIECE = 1 << 22

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def write_weights(path: Path | str, tensors: Mapping[str, Tensor], *, half: bool = False) -> None:
    """Atomically write named tensors, without a copy of those that are stored as they are.

    Args:
        path: the file to write.
        tensors: what to write; a module's `state_dict()`.
        half: store matrices as fp16.  Vectors (means, scales, biases) keep their precision: they
            are small in size, and may be small in value, where fp16 has few digits.

    Raises:
        BundleError: a value does not fit into fp16, or is not finite.
    """

    def smaller(tensor: Tensor) -> Tensor:
        is_matrix = tensor.dtype == torch.float32 and tensor.dim() > 1
        return tensor.half() if half and is_matrix else tensor

    stored = {name: smaller(tensor) for name, tensor in tensors.items()}
    for name, value in stored.items():
        if value.is_floating_point() and not _is_finite(value):
            fits = " and below 65504 for fp16" if value.dtype == torch.float16 else ""
            raise BundleError(
                f"weights must be finite{fits}, but {name!r} is not: train with a smaller learning "
                "rate, or store whole precision"
            )
    with atomic_file(path) as temporary:
        save_file(as_stored(stored), temporary)


def as_stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors as a file takes them: in main memory, contiguous, and none in another's."""
    stored, places = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        stored[name] = value.clone() if place in places else value
        places.add(place)
    return stored


def read_weights(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read named tensors; fp16 becomes fp32, with no more than a piece of it in memory twice.

    Each lies in memory of its own, which torch aligns.  Tensors that share a mapped file begin at
    any address, and the last bits of products depend on that.

    Raises:
        BundleError: the file is missing or is not an intact safetensors file.
    """
    try:
        require_small_header(path)
        return _read(path, device)
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(
            f"{path} must be an intact safetensors file, but is not ({error}): fetch or make it "
            "again"
        ) from error


def require_small_header(path: Path | str) -> None:
    """Refuse a safetensors file whose header would take much time and memory to read.

    Raises:
        OSError: so it is, or there is no file.
    """
    path = Path(path)
    if not path.is_file():
        raise OSError("it is no file")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _MAX_HEADER:
        raise OSError(f"its header would have {size} bytes, and {_MAX_HEADER} are allowed")


def save_with_header(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """`save_file` with the entries of the header in order, so that equal runs give equal bytes."""
    save_file(dict(tensors), path, metadata=dict(header))
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
        entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))


def _read(path: Path | str, device: torch.device | str) -> dict[str, Tensor]:
    """All tensors.  The file is mapped anew for each group, so that no more stays in memory."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    tensors: dict[str, Tensor] = {}
    for group in _groups(shapes):
        with safetensors.safe_open(str(path), framework="pt") as file:
            for name, rows in group:
                piece = file.get_slice(name)[rows] if shapes[name] else file.get_tensor(name)
                if name not in tensors:
                    dtype = torch.float32 if piece.dtype == torch.float16 else piece.dtype
                    tensors[name] = torch.empty(shapes[name], dtype=dtype, device=device)
                (tensors[name][rows] if shapes[name] else tensors[name]).copy_(piece)
    return tensors


def _groups(shapes: Mapping[str, list[int]]) -> Iterator[list[tuple[str, slice]]]:
    """Rows of tensors, together no more than a piece wherever one row is not more already."""
    group, held = list[tuple[str, slice]](), 0
    for name, shape in shapes.items():
        count, width = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        step = max(1, _PIECE // max(width, 1))
        for start in range(0, max(count, 1), step):
            rows = slice(start, min(start + step, count))
            size = (rows.stop - rows.start) * width
            if group and held + size > _PIECE:
                yield group
                group, held = [], 0
            group.append((name, rows))
            held += size
    if group:
        yield group


def _is_finite(tensor: Tensor) -> bool:
    return all(bool(piece.isfinite().all()) for piece in tensor.reshape(-1).split(_PIECE))


def load_weights(module: nn.Module, path: Path | str, device: torch.device | str = "cpu") -> None:
    """Put a file's tensors in place of a module's (which may be on the meta device).

    Raises:
        BundleError: the file is damaged, or holds tensors of other names or shapes.
    """
    try:
        module.load_state_dict(read_weights(path, device), assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise BundleError(
            f"{path} must hold the weights of {type(module).__name__}, but does not ({reason}): "
            "its config and its weights come from different runs"
        ) from error


def save_module(
    folder: Path | str,
    module: nn.Module,
    weights_file: str,
    description: Mapping[str, Any],
    *,
    half: bool = False,
) -> None:
    """Atomically write a module as a folder: its weights, and JSON values to build it again from.

    Raises:
        LorasynthError: the folder cannot be written, or a value does not fit into fp16.
    """
    with atomic_directory(folder) as temporary:
        write_weights(temporary / weights_file, module.state_dict(), half=half)
        write_json(temporary / CONFIG_FILE, dict(description))


@contextmanager
def described(folder: Path | str, what: str) -> Iterator[None]:
    """Turn whatever a description of `what` raises that no `save` wrote, into one line.

    Raises:
        BundleError: in place of anything that is not a `LorasynthError` already.
    """
    modules = 0

    def count(*_: object) -> None:
        nonlocal modules
        modules += 1
        if modules > _MAX_MODULES:
            raise ValueError(f"it describes more than {_MAX_MODULES} modules")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    except LorasynthError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise BundleError(
            f"{folder} must describe {what} as it was saved, but does not "
            f"({type(error).__name__}: {first}): fetch or make it again"
        ) from error
    finally:
        hook.remove()


def load_module(
    build: Callable[[], ModuleT], path: Path | str, device: torch.device | str = "cpu"
) -> ModuleT:
    """Build a module without memory of its own, and put a file's tensors in it, ready for use.

    Raises:
        BundleError: see `load_weights`.
    """
    with torch.device("meta"):
        module = build()
    load_weights(module, path, device)
    return module.eval().requires_grad_(requires_grad=False)


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, named by the rest."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def fingerprint(module: nn.Module) -> str:
    """Identify a module's weights: see `fingerprint_of`."""
    return fingerprint_of(module.state_dict())


def fingerprint_of(tensors: Mapping[str, Tensor], values: int = 64) -> str:
    """Identify named tensors by hashing shapes and evenly spaced values of each.

    Values are rounded to fp16 first, so the fp32 and fp16 files of one model agree.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().flatten()
        picked = flat[:: max(len(flat) // values, 1)][:values].to("cpu", torch.float16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()
