"""Real photos, which are not in this repository: they come with packages that `dev` installs.

insightface brings a photo of six people, scikit-image (which insightface needs) NASA's portrait of
an astronaut.  Neither package is imported.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import Tensor

from lorasynth.pictures import read_photo


def photo(package: str, name: str) -> Tensor:
    found = find_spec(package)
    folder = Path(found.origin).parent if found and found.origin else Path("nowhere")
    if not (folder / name).is_file():
        pytest.skip(f"needs the photo {name} of the package {package}: lorasynth[dev]")
    return read_photo(folder / name)


def astronaut() -> Tensor:
    """512 x 512 pixels, a face of 100 above the middle."""
    return photo("skimage", "data/astronaut.png")


def six_people() -> Tensor:
    """1280 x 886 pixels, faces of 110; one is seen from the side."""
    return photo("insightface", "data/images/t1.jpg")
