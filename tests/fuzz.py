"""Damaged files for every reader: each is read or refused in one line, in time and memory.

    python tests/fuzz.py images 10000 0      # a reader, how many files, a seed

Files are changed by their structure: what checks them (lengths, checksums) is made right again, so
that the change is what is read.  Nothing may connect or start a program.  Prints figures as JSON;
the first files that are treated wrongly are kept in the folder ./fuzz-READER.
"""

import io
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from lorasynth.adapter import Adapter, Factor, Layout, Slot
from lorasynth.codec import Scaled, ScaledConfig, load_codec
from lorasynth.condition import TrainedConfig, TrainedEncoder, load_encoder
from lorasynth.core.checkpoint import read_state, write_state
from lorasynth.core.errors import LorasynthError
from lorasynth.core.weights import read_weights
from lorasynth.images.files import read_photo
from lorasynth.images.parquet import ParquetSubjects
from lorasynth.images.tars import TarSubjects
from lorasynth.library import Library
from lorasynth.library.torch_files import SavedMatrix, load_small
from lorasynth.library.vectors import VectorFile

#: What one file may cost.
SECONDS, MEGABYTES = 5.0, 800  # an image of 40 megapixels, the most that is read, takes 760
#: Beyond which the system refuses memory, so that a fault does not end the run.
GIGABYTES = 4
#: Files between two looks at memory.
EVERY = 50

Chance = random.Random
Mutate = Callable[[bytes, Chance], bytes]
ODD_NUMBERS = (
    0,
    1,
    2,
    127,
    255,
    256,
    65535,
    1 << 31,
    (1 << 31) - 1,
    (1 << 32) - 1,
    (1 << 63),
    (1 << 64) - 1,
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, -0.5, float("nan"), float("inf")),
    *("", "x", "..", "/etc/passwd", "\x1b[2J", "\0", "é" * 50, [], {}, [[[[]]]], {"a": {"b": 1}}),
    *([1] * 1000, "9" * 5000, ["F32"], {"dtype": "F32"}),
)


# Changes


def any_bytes(data: bytes, chance: Chance) -> bytes:
    """A few bytes changed, cut out, repeated or put in, or a number made extreme."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place, size = chance.randrange(len(found) + 1), chance.choice((1, 2, 4, 8, 30))
        how = chance.randrange(6)
        if how == 0 and place < len(found):
            found[place] ^= 1 << chance.randrange(8)
        elif how == 1:
            del found[place : place + size]
        elif how == 2:
            found[place:place] = found[place : place + size] * chance.choice((1, 2, 50))
        elif how == 3:
            found[place : place + size] = chance.randbytes(size)
        elif how == 4:
            number = chance.choice(ODD_NUMBERS) & ((1 << 8 * min(size, 8)) - 1)
            order = chance.choice(("little", "big"))
            found[place : place + min(size, 8)] = number.to_bytes(min(size, 8), order)
        else:
            del found[place:]
    return bytes(found)


def png(data: bytes, chance: Chance) -> bytes:
    """Chunks changed, repeated, left out or moved, with right checksums."""
    chunks, place = list[tuple[bytes, bytes]](), 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    index = chance.randrange(len(chunks))
    kind, body = chunks[index]
    how = chance.randrange(4)
    if how == 0:
        chunks[index] = (kind, any_bytes(body, chance))
    elif how == 1:
        chunks.insert(chance.randrange(len(chunks)), (kind, body))
    elif how == 2:
        extra = chance.choice(
            (b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL")
        )
        packed = b"x\0\0" + zlib.compress(chance.choice((b"", b"x", bytes(200_000))))
        chunks.insert(index + 1, (extra, chance.choice((packed, chance.randbytes(26)))))
    else:
        del chunks[index]
    made = b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )
    return data[:8] + made


def tree(value: Any, chance: Chance) -> Any:
    """A JSON value with one part replaced, left out, renamed or nested."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, made = chance.choice(keys), value.copy()
        how = chance.randrange(8)
        if how == 0:
            del made[key]
        elif how == 1 and isinstance(made, dict):
            made[chance.choice(("", "..", key * 2, "\x1b", "__metadata__"))] = made.pop(key)
        elif how == 2 and isinstance(made, list):
            made += made[:50]
        else:
            made[key] = tree(value[key], chance)
        return made
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, 7, -value, 2**40))
    return chance.choice(ODD_VALUES)


def as_json(data: bytes, chance: Chance) -> bytes:
    if chance.random() < 0.15:
        return any_bytes(data, chance)
    return json.dumps(tree(json.loads(data), chance)).encode()


def safetensors(data: bytes, chance: Chance) -> bytes:
    """Its header changed as JSON, with the right length; or bytes of it."""
    if chance.random() < 0.15:
        return any_bytes(data, chance)
    size = int.from_bytes(data[:8], "little")
    text = as_json(data[8 : 8 + size], chance)
    length = len(text) if chance.random() < 0.95 else chance.choice(ODD_NUMBERS)
    return length.to_bytes(8, "little") + text + data[8 + size :]


def tar(data: bytes, chance: Chance) -> bytes:
    """Headers changed, with right checksums; or blocks of it moved."""
    blocks = [bytearray(data[i : i + 512]) for i in range(0, len(data), 512)]
    heads = [i for i, block in enumerate(blocks) if block[257:262] == b"ustar"]
    index = chance.choice(heads)
    block, how = blocks[index], chance.randrange(5)
    if how == 0:
        block[124:136] = chance.choice(
            (b"\x80" + chance.randbytes(11), b"\xff" * 12, b"77777777777\0")
        )
    elif how == 1:
        block[156:157] = chance.choice(
            (b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"5", b"7", b"\0")
        )
    elif how == 2:
        block[:] = any_bytes(bytes(block), chance)[:512].ljust(512, b"\0")
    elif how == 3:
        blocks.insert(chance.randrange(len(blocks)), blocks[index])
    else:
        del blocks[chance.randrange(len(blocks)) :]
    if len(block) == 512 and chance.random() < 0.9:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def zipped(data: bytes, chance: Chance) -> bytes:
    """Members of a zip file changed, as torch.save packs them."""
    if chance.random() < 0.2:
        return any_bytes(data, chance)
    made, packing = io.BytesIO(), chance.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", packing) as new:
        members = [(entry.filename, old.read(entry)) for entry in old.infolist()]
        index = chance.randrange(len(members))
        for number, (name, content) in enumerate(members):
            if number == index and chance.random() < 0.2:
                continue
            change = number == index or name.endswith(".pkl")
            new.writestr(name, any_bytes(content, chance) if change else content)
    return made.getvalue()


# Readers


class Reader(NamedTuple):
    """Whole files, how they are changed, and what reads them from a path."""

    whole: list[tuple[str, bytes, Mutate]]
    read: Callable[[Path], object]


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    return Image.fromarray(pixels)


def images(_: Path) -> Reader:
    whole: list[tuple[str, bytes, Mutate]] = []
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"):
        for frames in (1, 2) if format in ("PNG", "GIF", "WEBP", "TIFF") else (1,):
            data, more = io.BytesIO(), {"append_images": [photo()], "save_all": True}
            options: dict[str, Any] = more if frames > 1 else {}
            if format not in ("GIF", "BMP"):
                options["exif"] = exif
            photo().save(data, format, **options)
            whole.append(("a.png", data.getvalue(), png if format == "PNG" else any_bytes))
            whole.append(("a.png", data.getvalue(), any_bytes))
    return Reader(whole, read_photo)


def factors() -> dict[str, Factor]:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_"
    return {f"{name}{x}": Factor(torch.randn(2, 8), torch.randn(8, 2)) for x in "qk"}


def loras(folder: Path) -> Reader:
    whole: list[tuple[str, bytes, Mutate]] = []
    for format in ("kohya", "diffusers"):
        path = Adapter(factors()).save(folder / f"{format}.safetensors", format)
        whole.append(("a.safetensors", path.read_bytes(), safetensors))
    return Reader(whole, Adapter.load)


def peft(folder: Path) -> Reader:
    Adapter(factors()).save(folder / "peft", "peft")
    config = (folder / "peft/adapter_config.json").read_bytes()
    return Reader([("peft/adapter_config.json", config, as_json)], lambda p: Adapter.load(p.parent))


def weights(folder: Path) -> Reader:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5)}
    save_file(tensors, folder / "w.safetensors")
    write_state(folder / "s.safetensors", {"x": 1}, tensors, step=1)
    whole: list[tuple[str, bytes, Mutate]] = [
        (f"{name}.safetensors", (folder / f"{name}.safetensors").read_bytes(), safetensors)
        for name in "ws"
    ]

    def read(path: Path) -> None:
        if path.name[0] == "s":
            read_state(path, {"x": 1})
        else:
            read_weights(path)

    return Reader(whole, read)


def configs(folder: Path) -> Reader:
    TrainedEncoder(TrainedConfig(name="x", image_size=16, width=4)).save(folder / "encoder")
    Scaled.of(ScaledConfig(), torch.zeros(6), torch.ones(6)).save(folder / "codec")
    library = Library.create(folder / "library", Layout((Slot("a", 3, 4, 2),)), recipe={"x": 1})
    library.append(
        {"a": Factor(torch.randn(2, 2, 3), torch.randn(2, 4, 2))}, [{"id": "a"}, {"id": "b"}]
    )
    places = ("encoder/config.json", "codec/config.json", "library/library.json",
              "library/shards/000000/checksums.json")  # fmt: skip

    def read(path: Path) -> None:
        if "encoder" in path.parts:
            load_encoder(path.parent)
        elif "codec" in path.parts:
            load_codec(path.parent)
        else:
            root = next(parent for parent in path.parents if parent.name == "library")
            opened = Library.open(root)
            opened.check()
            opened.require_intact()

    return Reader([(name, (folder / name).read_bytes(), as_json) for name in places], read)


def read_source(source: TarSubjects | ParquetSubjects) -> None:
    for name in source.ids:
        with suppress(LorasynthError):
            source.load(name)


def tars(_: Path) -> Reader:
    data, image = io.BytesIO(), io.BytesIO()
    photo().save(image, "PNG")
    for name, content in (("ann.0.png", image.getvalue()), ("ann.0.txt", b"a caption"),
                          (f"{'long/' * 40}ben.0.png", image.getvalue())):  # fmt: skip
        for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            part = io.BytesIO()
            with tarfile.open(fileobj=part, mode="w", format=format) as file:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
            data.write(
                part.getvalue().rstrip(b"\0") + bytes(-len(part.getvalue().rstrip(b"\0")) % 512)
            )
    data.write(bytes(1024))
    return Reader([("a.tar", data.getvalue(), tar)], lambda p: read_source(TarSubjects(p, 8)))


def parquet(_: Path) -> Reader:
    data, image = io.BytesIO(), io.BytesIO()
    photo().save(image, "PNG")
    table = pa.table({"id": ["a", "b"], "image": [image.getvalue()] * 2, "caption": ["x", None]})
    pq.write_table(table, data)
    return Reader(
        [("a.parquet", data.getvalue(), any_bytes)], lambda p: read_source(ParquetSubjects(p, 8))
    )


def torch_files(_: Path) -> Reader:
    whole: list[tuple[str, bytes, Mutate]] = []
    for value in (torch.randn(6, 5), {"key": ((20,), torch.Size((4, 5)))}, {"x": torch.zeros(2)}):
        data = io.BytesIO()
        torch.save(value, data)
        whole.append(("a.pt", data.getvalue(), zipped))

    def read(path: Path) -> None:
        with suppress(LorasynthError):
            load_small(path)
        found = SavedMatrix.find(path)
        found.rows(0, min(found.shape[0], 3))

    return Reader(whole, read)


def vectors(_: Path) -> Reader:
    data = io.BytesIO()
    np.save(data, np.zeros((3, 4), np.float32))
    return Reader([("a.npy", data.getvalue(), any_bytes)], lambda p: VectorFile(p).all_vectors())


READERS = {
    "images": images,
    "loras": loras,
    "peft": peft,
    "weights": weights,
    "configs": configs,
    "tars": tars,
    "parquet": parquet,
    "torch_files": torch_files,
    "vectors": vectors,
}


# The run


def peak() -> int:
    """The most memory since the last call, in bytes."""
    found = 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    Path("/proc/self/clear_refs").write_text("5")
    return found


@contextmanager
def nothing_leaves() -> Iterator[None]:
    """Connections and processes are faults."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file made something connect or start")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    subprocess.Popen.__init__ = refuse  # type: ignore[method-assign]
    os.system = refuse  # type: ignore[assignment]
    yield


def run(name: str, count: int, seed: int) -> dict[str, Any]:
    """Try a reader on many files."""
    chance, refused, wrong = Chance(f"{name}-{seed}"), 0, list[str]()
    longest, most = 0.0, 0
    folder = Path(tempfile.mkdtemp())
    reader = READERS[name](folder)
    kept = Path(f"fuzz-{name}")
    with nothing_leaves():
        for place, data, _ in reader.whole:  # what is whole is read, and imports what it needs
            (folder / place).write_bytes(data)
            with suppress(LorasynthError):
                reader.read(folder / place)
        peak()
        before = peak()
        size = 1024 * int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (size + (GIGABYTES << 30),) * 2)
        for number in range(count):
            place, data, mutate = chance.choice(reader.whole)
            changed, path = mutate(data, chance), folder / place
            path.write_bytes(changed)
            began, fault = time.process_time(), None  # of a machine that others use
            try:
                reader.read(path)
            except LorasynthError as error:
                refused += 1
                fault = "more than a line" if "\n" in str(error) else None
            except BaseException:
                fault = traceback.format_exc()
            path.write_bytes(data)
            took = time.process_time() - began
            longest = max(longest, took)
            if took > SECONDS:
                fault = f"it took {took:.1f} s"
            if number % EVERY == EVERY - 1:
                most = max(most, now := peak() - before)
                fault = fault or (f"{now >> 20} MB" if now > MEGABYTES << 20 else None)
            if fault:
                wrong.append(fault)
                if len(wrong) <= 10:
                    kept.mkdir(exist_ok=True)
                    (kept / f"{len(wrong)}-{path.name}").write_bytes(changed)
    shutil.rmtree(folder)
    return {
        "files": count,
        "refused": refused,
        "wrong": len(wrong),
        "first": wrong[:5],
        "seconds": round(longest, 2),
        "megabytes": most >> 20,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
