"""Which subjects something has learned from, so that no evaluation takes them as test subjects.

Only hashes of ids are kept: a file that is handed on names nobody.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from lorasynth.core.errors import ConfigError

#: Hashes of subject ids.
Learned: TypeAlias = frozenset[str]


def learned_from(ids: Iterable[str]) -> Learned:
    """The hashes of subject ids."""
    return frozenset(hashlib.blake2b(name.encode(), digest_size=8).hexdigest() for name in ids)


def require_unseen(learned: Learned, ids: Sequence[str], what: str) -> None:
    """Refuse to test on subjects that were learned from.

    Raises:
        ConfigError: says how many there are, and names the first.
    """
    seen = [name for name in ids if learned_from([name]) <= learned]
    if seen:
        raise ConfigError(
            f"test subjects must be new to what is tested, but {what} has learned from "
            f"{len(seen)} of these {len(ids)}, the first {seen[0]!r}: give held-out subjects"
        )
