"""What a face encoder is made of: a detector that finds faces, and a network that embeds them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from lorasynth.core.errors import BundleError, installing
from lorasynth.core.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face in an image, in pixels from the image's upper left corner.

    Attributes:
        box: left, top, right and bottom.
        score: the probability that it is one.
        points: x and y of the left eye, the right eye, the tip of the nose, and the left and the
            right corner of the mouth; left is what is left in an upright image.
    """

    box: tuple[float, float, float, float]
    score: float
    points: Float64[np.ndarray, "5 2"]

    @property
    def area(self) -> float:
        """In square pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


#: Finds the upright faces of an RGB image, in any order; none if it is smaller than a face can be.
#: What is turned, small or cut off is shown to it in other views.
FaceDetector: TypeAlias = Callable[[UInt8[np.ndarray, "h w 3"]], list[Face]]


class FaceNetwork(Protocol):
    """Embeds faces that were laid on its template.

    Attributes:
        size: side in pixels of the squares that it looks at.
        width: of an embedding.
        licence: of the weights.
        sha256: of what an embedding depends on: the weights, and constants beside them.
        stored_as: how a folder that `save` wrote names it, as `onnx:model.onnx`.
        template: where the five points of a face lie in a square of side 1.
    """

    size: int
    width: int
    licence: str
    sha256: str
    stored_as: str
    template: Float64[np.ndarray, "5 2"]

    def __call__(self, squares: UInt8[Tensor, "b side side 3"]) -> Float[Tensor, "b m"]:
        """Embed squares; the length of an embedding does not matter."""
        ...

    def save(self, folder: Path) -> None:
        """Write to a folder what loading from it needs; nothing where a package has the weights."""
        ...


def need(package: str, extra: str = "face") -> Any:
    """Import a package that only some encoders need.

    Args:
        package: what to import.
        extra: the extra of lorasynth that installs it.

    Raises:
        BundleError: it is not installed, or broken.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise BundleError(
            f"this encoder needs the package {package}, but it cannot be imported ({error}): "
            + installing(extra)
        ) from error


@dataclass(frozen=True, kw_only=True)
class FaceConfig:
    """What a face encoder is.

    Attributes:
        name: written into files that depend on it.
        detector: what finds faces, as `dlib`, `insightface:PACK`.
        network: what embeds them, as `dlib`, `insightface:PACK`, `onnx:FILE`.
        mean: what is subtracted from the pixels (0 to 255) of an ONNX file's input; None: what
            the graph says, as insightface reads it.
        std: what they are then divided by.
        licence: of an ONNX file, which cannot say it.
        image_size: side in pixels of the squares that the network looks at; None: its own.
        width: of an embedding; None: the network's own.
        sha256: of the network's weights; None: not yet known.
    """

    name: str
    detector: str = "dlib"
    network: str = "dlib"
    mean: float | None = None
    std: float | None = None
    licence: str = "unknown: ask whoever made the file"
    image_size: int | None = None
    width: int | None = None
    sha256: str | None = None


#: How to make each kind of detector, from what follows its name and a colon, for a device.
DETECTORS: Registry[Callable[[str, torch.device], FaceDetector]] = Registry(
    "face detector",
    "lorasynth.face_detectors",
    "lorasynth.condition.faces.dlib",
    "lorasynth.condition.faces.insightface",
)
#: How to make each kind of network, from what follows its name and a colon, the config that names
#: it, and the folder that a relative path starts from, for a device.
NETWORKS: Registry[Callable[[str, FaceConfig, Path, torch.device], FaceNetwork]] = Registry(
    "face network",
    "lorasynth.face_networks",
    "lorasynth.condition.faces.dlib",
    "lorasynth.condition.faces.insightface",
    "lorasynth.condition.faces.onnx",
)
