"""Splits by the hash of a group key: subjects that share a key never straddle two splits."""

from collections.abc import Mapping, Sequence

from lorasynth.core.errors import ConfigError
from lorasynth.core.randomness import stream_seed

#: Shares of the splits unless told otherwise.
DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}


def split_of(key: str, seed: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> str:
    """The split that a group belongs to; the same on any machine and in any order.

    Args:
        key: What must not straddle splits: a person's identity, a combination of attributes.
        seed: Another seed gives another partition.
        fractions: Split -> its share of all keys, in an order that is part of the partition.

    Raises:
        ConfigError: the shares are negative or do not add up to 1.
    """
    if min(fractions.values(), default=-1) < 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ConfigError(
            f"shares of splits must not be negative and must add up to 1, but got {dict(fractions)}"
        )
    position = stream_seed(seed, "split", key) / 2**63
    *others, last = (split for split, share in fractions.items() if share > 0)
    for split in others:
        if position < fractions[split]:
            return split
        position -= fractions[split]
    return last


def held_out(ids: Sequence[str], share: float, most: int) -> list[str]:
    """A share of four or more subjects by the hashes of their ids: 2 to `most`, not the last 2."""
    drawn = sorted(ids, key=lambda name: stream_seed(0, "held out", name))
    chosen = set(drawn[: min(max(2, round(share * len(ids))), len(ids) - 2, most)])
    return [name for name in ids if name in chosen]
