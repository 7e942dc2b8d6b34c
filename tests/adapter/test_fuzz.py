"""10,000 damaged LoRA files: each is read or refused in one line, soon, and within memory."""

import json
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorasynth.adapter import Adapter
from lorasynth.adapter.files import FORMATS
from lorasynth.core.errors import LorasynthError

MUTATIONS_PER_FORMAT = 10_000 // 5
#: Seconds that one file may take; reading one takes about a thousandth of it.
PATIENCE = 5.0
#: Bytes by which the process may grow over all files of one format, which have 2 kB each.
GROWTH = 200 * 2**20

Mutation = Callable[[random.Random, bytes], bytes]


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_header_bits(rng: random.Random, data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    return flip_bits(rng, data[:end]) + data[end:]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def splice(rng: random.Random, data: bytes) -> bytes:
    start, stop = sorted(rng.randrange(len(data)) for _ in range(2))
    place = rng.randrange(len(data))
    return data[:place] + data[start:stop] + data[place:]


def claim_length(rng: random.Random, data: bytes) -> bytes:
    return rng.choice([0, 1, 7, 2**20, 2**33, 2**63, 2**64 - 1]).to_bytes(8, "little") + data[8:]


def edit_header(rng: random.Random, data: bytes) -> bytes:
    """A header that is JSON, but says something else than before."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    key = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[key]
    change = rng.choice(["dtype", "shape", "data_offsets", "name", "drop", "type"])
    if change == "dtype":
        entry["dtype"] = rng.choice(["F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", 3])
    elif change == "shape":
        entry["shape"] = rng.choice([[], [0, 0], [2**62, 2**62], [1] * 40, [-1, 6], ["2"], None])
    elif change == "data_offsets":
        entry["data_offsets"] = rng.choice([[0, 0], [4, 0], [0, 2**63], [-1, 4], [], None])
    elif change == "name":
        header[key[: rng.randrange(len(key))] + rng.choice(["", ".", "é", "\n", "x" * 999])] = entry
        del header[key]
    elif change == "drop":
        del header[key]
    else:
        header[key] = rng.choice([None, 1, "x", [], {}])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


MUTATIONS: list[Mutation] = [flip_bits, flip_header_bits, cut, splice, claim_length, edit_header]


def attempt(path: Path) -> str:
    """Read a file: nothing, or why it is refused; any other exception is a crash."""
    try:
        read = Adapter.load(path)
    except LorasynthError as error:
        return str(error)
    finite = (torch.isfinite(part).all() for factor in read.factors.values() for part in factor)
    return "" if all(finite) else "what was read\nis not finite"


@pytest.mark.parametrize("name", FORMATS.names())
def test_no_crash_no_hang_no_blow_up(name: str, make_factors, tmp_path: Path) -> None:
    shapes = {"mid_block.attentions.0.proj_in": (6, 8), "up_blocks.0.resnets.0.conv1": (5, 4)}
    adapter = Adapter(make_factors(None, shapes=shapes))
    path = adapter.save(tmp_path / (name if name == "peft" else "x.safetensors"), format=name)
    file = path / "adapter_model.safetensors" if name == "peft" else path
    whole = file.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcomes = {"read": 0, "refused": 0}
    for number in range(MUTATIONS_PER_FORMAT):
        rng = random.Random(f"{name} {number}")
        file.write_bytes(rng.choice(MUTATIONS)(rng, whole))
        start = time.monotonic()
        outcome = attempt(path)
        assert time.monotonic() - start < PATIENCE, number
        assert "\n" not in outcome, (number, outcome)
        outcomes["refused" if outcome else "read"] += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < GROWTH
    assert outcomes["refused"] > MUTATIONS_PER_FORMAT / 2
    assert outcomes["read"] > 0, "bits of numbers may flip without a trace"
