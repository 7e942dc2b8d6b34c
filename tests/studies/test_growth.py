import numpy as np
import pytest

from lorasynth.studies.growth import doubled, extrapolate


def test_sizes_double_up_to_the_whole() -> None:
    assert doubled(1994) == [125, 250, 500, 1000, 1994]
    assert doubled(1100) == [125, 250, 500, 1100]
    assert doubled(100) == [100]


def test_the_curve_is_recovered() -> None:
    sizes = [125, 250, 500, 1000, 2000]
    a, b, c = extrapolate(sizes, [0.8 - 2 * n**-0.5 for n in sizes])
    assert (a, b, c) == pytest.approx((0.8, 2.0, 0.5), rel=0.02)
    assert np.isfinite([a, b, c]).all()
