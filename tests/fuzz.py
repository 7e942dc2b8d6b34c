"""Damaged files for every reader: each is read or refused in one line, in time and memory.

    python tests/fuzz.py images 10000 0      # a reader, how many files, a seed

Files are changed by their structure: what checks them (lengths, checksums) is made right again, so
that the change is what is read.  Nothing may connect or start a program.  Prints figures as JSON;
the first files that are treated wrongly are kept in the folder ./fuzz-READER.
"""

import io
import json
import math
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

from lorasynth.adapter import Adapter, AdapterMetadata, Factor, Layout, Slot
from lorasynth.adapter.families import FAMILIES, Family
from lorasynth.adapter.files import FORMATS
from lorasynth.adapter.files.container import PEFT_CONFIG, PEFT_WEIGHTS, to_bytes
from lorasynth.adapter.files.conversion import read_any
from lorasynth.adapter.inspection import inspect_file, module_sizes
from lorasynth.adapter.lowrank import narrowed
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
    *(0, 1, 2, 127, 255, 256, 65535, 1 << 31),
    *((1 << 31) - 1, (1 << 32) - 1, 1 << 63, (1 << 64) - 1),
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


TYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I8": 1}
TYPES |= {"BOOL": 1, "C64": 8, "U16": 2, "F8_E8M0": 1}
#: Parts of keys, each of which may stand for another.
PREFIXES = (
    *("", "unet.", "transformer.", "diffusion_model.", "model.diffusion_model.", "lora_unet_"),
    *("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lycoris_", "lora_transformer_"),
    *("base_model.model.", "text_encoder.", "text_encoder_2.", "text_encoders.clip_l.transformer."),
    *("module.", "_orig_mod.", "text_encoders.qwen3_4b.transformer.", "lora_unet__orig_mod_"),
)
ENDINGS = (
    *(".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".alpha"),
    *(".lora.down.weight", ".lora.up.weight", ".lora_A.default.weight", ".lora_A.other.weight"),
    *(".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".lokr_w1", ".lokr_w2"),
    *(".lokr_w2_a", ".lokr_w2_b", ".lokr_t2", ".lora_mid.weight", ".diff", ".diff_b"),
    ".dora_scale",
    *(".lora_magnitude_vector", ".oft_blocks", ".w_norm", ".lora_B.bias", ".set_weight", ".weight"),
)
ENTRIES = (
    *("lora_adapter_metadata", "lorasynth.modules", "ss_tag_frequency", "modelspec.architecture"),
    *("ss_base_model_version", "ss_network_alpha", "lorasynth.base_fingerprint", "modelspec.date"),
    *("modelspec.trigger_phrase", "lorasynth.extra.file", "format", "lorasynth.synthesised"),
)


class Entry(NamedTuple):
    """A tensor of a safetensors file, in bytes."""

    dtype: str
    shape: list[int]
    data: bytes


def unpacked(data: bytes) -> tuple[dict[str, str], dict[str, Entry]]:
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    meta = header.pop("__metadata__", {})
    places = {key: slice(*(end + at for at in e["data_offsets"])) for key, e in header.items()}
    tensors = {k: Entry(e["dtype"], e["shape"], data[places[k]]) for k, e in header.items()}
    return meta, tensors


def packed(meta: dict[str, str], tensors: dict[str, Entry]) -> bytes:
    header, place = dict[str, Any]({"__metadata__": meta}), 0
    for key, (dtype, shape, data) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(data)]}
        place += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(t.data for t in tensors.values())


def respelled(key: str, chance: Chance) -> str:
    """A key with another prefix, ending, number, part or separator."""
    prefix = max((p for p in PREFIXES if key.startswith(p)), key=len)
    ending = max((e for e in ENDINGS if key.endswith(e)), key=len, default="")
    name = key[len(prefix) : len(key) - len(ending)]
    how = chance.randrange(6)
    if how == 0:
        prefix = chance.choice(PREFIXES) + chance.choice(("", "", chance.choice(PREFIXES)))
    elif how == 1:
        ending = chance.choice(ENDINGS)
    elif how == 2:
        name = name.replace("0", chance.choice(("1", "7", "99999", "00", "-1", "x", "\u0660")))
    elif how == 3:
        name = name.replace(*chance.choice(((".", "_"), ("_", "."), ("to_", "too_"), ("q", "k"))))
    elif how == 4:
        parts = name.split(".")
        del parts[chance.randrange(len(parts))]
        name = ".".join(parts)
    else:
        name += chance.choice(("", ".", "_", ".base_layer", name * 40, "\x1b[2J", "\n"))
    return prefix + name + ending


def resized(entry: Entry, chance: Chance) -> Entry:
    """Another type, shape or other numbers, with as many bytes as these take."""
    dtype, shape = entry.dtype, list(entry.shape)
    how, place = chance.randrange(6), chance.randrange(len(shape) + 1)
    if how == 0:
        dtype = chance.choice(list(TYPES))
    elif how == 1 and shape:
        shape[place % len(shape)] = chance.choice((0, 1, 2, 3, 8, 9, 72, 1000))
    elif how == 2:
        shape[place:place] = chance.choice(((1,), (1, 1), (3, 3), (1, 1, 1), (0,)))
    elif how == 3:
        shape.reverse()
    elif how == 4:
        shape = shape[:place]
    count = TYPES[dtype]
    for size in shape:
        count *= size
    if count > 1 << 20:
        return entry
    if how == 5:
        numbers = np.frombuffer(chance.randbytes(count // 4 * 4), np.float32).copy()
        odd = (0.0, 1e-45, 1e30, 65504.0, -0.0, float("nan"), float("inf"), 1.0)
        numbers[:: chance.choice((1, 3))] = chance.choice(odd)
        return Entry(dtype, shape, numbers.tobytes().ljust(count, b"\0"))
    whole = entry.data or b"\0"
    return Entry(dtype, shape, (whole * (count // len(whole) + 1))[:count])


def lora(data: bytes, chance: Chance) -> bytes:
    """Keys, shapes, types, numbers and entries of a LoRA file changed; its parts fit together."""
    if chance.random() < 0.2:
        return safetensors(data, chance)
    meta, tensors = unpacked(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        key, how = chance.choice(list(tensors)), chance.randrange(9)
        if how < 2:
            tensors[respelled(key, chance)] = tensors.pop(key)
        elif how == 2:
            prefix = chance.choice([p for p in PREFIXES if key.startswith(p)])
            other = chance.choice(PREFIXES)
            tensors = {k.replace(prefix, other, 1): t for k, t in tensors.items()}
        elif how == 3 and len(tensors) > 1:
            del tensors[key]
        elif how == 4:
            tensors[respelled(key, chance)] = tensors[key]
        elif how < 7:
            tensors[key] = resized(tensors[key], chance)
        elif how == 7:
            other = chance.choice(list(tensors))
            tensors[key], tensors[other] = tensors[other], tensors[key]
        else:
            name = chance.choice([*meta, *ENTRIES])
            try:
                found = json.loads(meta.get(name, "{}"))
            except ValueError:
                found = chance.choice([*FAMILIES, "", {}])
            meta[name] = json.dumps(tree(found, chance)) if chance.random() < 0.7 else str(found)
    return packed(meta, tensors)


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


def of_family(family: Family) -> Adapter:
    """Some layers of a family, 8 wide; a fused one and a kernel are among them."""
    factors: dict[str, Factor] = {}
    kernels: dict[str, tuple[int, ...]] = {}
    layers = sorted(family.table.layers, key=lambda layer: -len(layer.modules))
    for layer in [*layers[:1], *layers[len(layers) // 2 :][:2], *layers[-2:]]:
        whole = layer.filled(["0"] * layer.name.count("#"))
        for module, share in zip(whole.modules, layer.shares, strict=True):
            if f".{module}".endswith((*family.pointwise, *family.spatial)):
                kernels[module] = (3, 3) if f".{module}".endswith(family.spatial) else (1, 1)
            width = 8 * (9 if kernels.get(module) == (3, 3) else 1)
            factors[module] = Factor(torch.randn(2, width), torch.randn(8 * share, 2))
    if family.kinds[:1] == ("clip",):
        name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
        factors[name] = Factor(torch.randn(2, 8), torch.randn(8, 2))
    header = {"ss_base_model_version": family.base_version, "ss_tag_frequency": '{"a": {"b": 1}}'}
    header["modelspec.architecture"] = family.architecture
    return Adapter(factors, AdapterMetadata(header=header), kernels)


#: Endings and shapes of what is no plain LoRA, of a layer of 8 to 8.
KINDS = {
    "loha": {f"hada_w{n}_{x}": (8, 2) if x == "a" else (2, 8) for n in (1, 2) for x in "ab"},
    "lokr": {"lokr_w1": (2, 2), "lokr_w2": (4, 4), "alpha": ()},
    "lokr of parts": {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4), "alpha": ()},
    "whole": {"diff": (8, 8)},
    "dora": {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2), "dora_scale": (8, 1), "alpha": ()},
    "magnitude": {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2), "lora_magnitude_vector": (8,)},
    "tucker": {"lora_down.weight": (2, 8, 1, 1), "lora_mid.weight": (2, 2, 3, 3),
               "lora_up.weight": (8, 2, 1, 1), "alpha": ()},
    "loha of a kernel": {f"hada_{x}": s for n in (1, 2) for x, s in (
        (f"w{n}_a", (2, 8)), (f"w{n}_b", (2, 8)), (f"t{n}", (2, 2, 3, 3)))},
    "lokr of a kernel": {"lokr_w1": (2, 2), "lokr_w2": (4, 4, 3, 3)},
    "boft": {"oft_blocks": (2, 4, 4), "alpha": ()},
}  # fmt: skip
#: Layers of which these are, in three spellings; the last one is a convolution.
PLACES = (
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
    "diffusion_model.double_blocks.0.img_attn.proj",
    "transformer.transformer_blocks.0.attn.to_out.0",
    "lora_unet_mid_block_resnets_0_conv1",
)


def made_of(place: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {f"{place}.{part}": torch.rand(shape) + 0.1 for part, shape in shapes.items()}


def base_model(folder: Path) -> Path:
    """The weights of the layers of `PLACES`."""
    names = (
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "double_blocks.0.img_attn.proj",
    )
    names += ("transformer_blocks.0.attn.to_out.0", "mid_block.resnets.0.conv1")
    sizes = [(8, 8, 3, 3) if name.endswith("conv1") else (8, 8) for name in names]
    path = folder / "base.safetensors"
    save_file({f"{n}.weight": torch.randn(s) for n, s in zip(names, sizes, strict=True)}, path)
    return path


def handled(path: Path, base: Path) -> None:
    """Read, describe and write a LoRA; what is written must come back."""
    made = read_any(path, 4, base=base)
    adapter = made.file.adapter
    if not made.kinds:
        inspect_file(path)
    for form in ("kohya", "diffusers", "comfyui", "peft"):
        with suppress(LorasynthError):
            FORMATS.get(form).spell(adapter)
    with suppress(LorasynthError):
        narrowed(adapter.factors, torch.float16)
    written = base.with_name("written.safetensors")
    written.write_bytes(to_bytes(*FORMATS.get("auto").spell(adapter)))
    again = Adapter.load(written)
    before, after = (math.hypot(*module_sizes(one).values()) for one in (adapter, again))
    if before != after and not abs(before - after) <= 1e-3 * before:
        raise AssertionError(f"a norm of {before} became {after}")


def loras(folder: Path) -> Reader:
    base, whole = base_model(folder), list[tuple[str, bytes, Mutate]]()
    for family in FAMILIES.values():
        for form in ("kohya", "diffusers", "comfyui"):
            with suppress(LorasynthError):
                data = to_bytes(*FORMATS.get(form).spell(of_family(family)))
                whole.append(("a.safetensors", data, lora))
    for kind, shapes in KINDS.items():
        for place in PLACES[3:] if "kernel" in kind or kind == "tucker" else PLACES[:3]:
            save_file(made_of(place, shapes), folder / "kind.safetensors", {"format": "pt"})
            whole.append(("a.safetensors", (folder / "kind.safetensors").read_bytes(), lora))
    return Reader(whole, lambda path: handled(path, base))


def peft(folder: Path) -> Reader:
    """Folders of PEFT: plain, with patterns, DoRA, LoHa and LoKr; either of their files changes."""
    base, whole = base_model(folder), list[tuple[str, bytes, Mutate]]()
    place = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    patterns: dict[str, Any] = {
        "rank_pattern": {"attn2.to_k": 2},
        "alpha_pattern": {
            "^mid_block.attentions.0.transformer_blocks.0.attn2.to_k": 3,
            r".*\.x": 1,
        },
        "use_rslora": True,
    }
    rows = {
        "plain": (None, {}),
        "patterns": (None, patterns),
        "dora": ("magnitude", {"use_dora": True}),
        "loha": ("loha", {"peft_type": "LOHA", "alpha": 2}),
        "lokr": ("lokr of parts", {"peft_type": "LOKR", "alpha": 2}),
    }
    for name, (kind, options) in rows.items():
        written = of_family(FAMILIES["sd1" if name != "patterns" else "flux1"])
        inside = {m: f for m, f in written.factors.items() if not m.startswith("text_")}
        Adapter(inside, written.metadata).save(folder / name, "peft")
        config, weights = (folder / name / end for end in (PEFT_CONFIG, PEFT_WEIGHTS))
        if kind:
            shapes = {part: shape for part, shape in KINDS[kind].items() if part != "alpha"}
            save_file(made_of(place, shapes), weights)
        config.write_text(json.dumps(json.loads(config.read_text()) | options))
        whole.append((f"{name}/{config.name}", config.read_bytes(), as_json))
        whole.append((f"{name}/{weights.name}", weights.read_bytes(), lora))
    return Reader(whole, lambda path: handled(path.parent, base))


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
