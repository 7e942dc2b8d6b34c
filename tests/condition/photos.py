"""Real photos, which are not in this repository: they come with packages.

matplotlib brings the US Navy's portrait of Grace Hopper, which is in the public domain.
insightface brings a photo of six people; it is heavy, so `dev` leaves it out, and what needs it is
skipped.  Neither package is imported.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import Tensor

from lorasynth.images import read_photo


def photo(package: str, name: str) -> Tensor:
    found = find_spec(package)
    folder = Path(found.origin).parent if found and found.origin else Path("nowhere")
    if not (folder / name).is_file():
        pytest.skip(f"needs the photo {name} of the package {package}")
    return read_photo(folder / name)


def hopper() -> Tensor:
    """600 pixels high and 512 wide, a face of 200 in the middle."""
    return photo("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")


def six_people() -> Tensor:
    """1280 x 886 pixels, faces of 110; one is seen from the side."""
    return photo("insightface", "data/images/t1.jpg")
