from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasynth.core.errors import ConfigError
from lorasynth.core.splits import DEFAULT_FRACTIONS, split_of


def test_shares_are_kept() -> None:
    found = Counter(split_of(f"person {n}", seed=1) for n in range(5000))
    for split, share in DEFAULT_FRACTIONS.items():
        assert found[split] / 5000 == pytest.approx(share, abs=0.02)


def test_the_partition_is_fixed_for_all_time() -> None:
    found = [split_of(f"person {n}", seed=0)[:2] for n in range(12)]
    assert " ".join(found) == "te tr tr tr tr tr va tr va tr tr tr"


def test_another_seed_gives_another_partition() -> None:
    keys = [f"person {n}" for n in range(200)]
    assert [split_of(key, 1) for key in keys] != [split_of(key, 2) for key in keys]


@settings(deadline=None)
@given(st.text(), st.integers())
def test_an_empty_split_gets_nothing(key: str, seed: int) -> None:
    assert split_of(key, seed, {"none": 0.0, "all": 1.0, "never": 0.0}) == "all"


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_shares_must_add_up(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must add up to 1"):
        split_of("x", 0, fractions)
