import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasynth.core.randomness import numpy_stream, stream_seed, torch_stream

names = st.lists(st.from_regex(r"[a-z0-9-]{0,12}", fullmatch=True) | st.integers(), max_size=4)


def test_streams_are_the_same_for_all_time() -> None:
    """Whatever was drawn with them, libraries and splits among it, can only so be drawn again."""
    assert stream_seed(0) == 4761921975702974394
    assert stream_seed(7, "a", 3) == 2229070430966048794
    drawn = torch.randint(1000, (4,), generator=torch_stream(0, "x"))
    assert drawn.tolist() == [528, 738, 118, 145]
    assert numpy_stream(0, "x").integers(1000, size=4).tolist() == [837, 79, 735, 812]


@given(st.integers(), names, st.integers(), names)
def test_another_name_is_another_stream(
    seed: int, path: list[str | int], other_seed: int, other: list[str | int]
) -> None:
    same = seed == other_seed and [str(p) for p in path] == [str(p) for p in other]
    assert (stream_seed(seed, *path) == stream_seed(other_seed, *other)) == same
    assert 0 <= stream_seed(seed, *path) < 2**63


def test_a_stream_depends_on_no_other() -> None:
    alone = torch.randn(5, generator=torch_stream(1, "b"))
    torch.manual_seed(3)
    torch.randn(9, generator=torch_stream(1, "a"))
    assert torch.randn(5, generator=torch_stream(1, "b")).equal(alone)


def test_streams_of_one_seed_are_uncorrelated() -> None:
    drawn = np.stack([numpy_stream(0, "subject", i).normal(size=2000) for i in range(20)])
    off = np.corrcoef(drawn)[~np.eye(20, dtype=bool)]
    assert np.abs(off).max() < 5 / np.sqrt(2000)
