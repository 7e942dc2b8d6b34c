"""InsightFace's model packs by name; its weights are for non-commercial research only."""

import math
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from lorasynth.condition.faces.contract import DETECTORS, NETWORKS, Face, FaceConfig, need
from lorasynth.condition.faces.onnx import OnnxNetwork, providers
from lorasynth.core.errors import BundleError, ConfigError, reason_of

_LICENCE = "non-commercial research only (InsightFace)"
#: The side of the square that an image is fitted into for detection: the packs' own for usual
#: views, and at most this for larger ones.
_USUAL, _LARGEST = 640, 1920


@cache
def _pack(name: str, device: torch.device) -> Any:
    """A pack's detector and recogniser on a device; fetched to ~/.insightface on first use."""
    if not name:
        raise ConfigError(
            "insightface has several packs: say which, as in insightface:buffalo_l, or give a "
            "folder with a pack's files"
        )
    app = need("insightface.app", "insightface")
    try:
        with redirect_stdout(sys.stderr):  # what it says while it fetches a pack
            pack = app.FaceAnalysis(
                str(Path(name).expanduser()),
                allowed_modules=["detection", "recognition"],
                providers=providers(device),
            )
        pack.prepare(ctx_id=(device.index or 0) if device.type == "cuda" else -1)
        assert "recognition" in pack.models, "it has no recognition file"
    except Exception as error:  # of requests, zipfile, onnxruntime, and assertions
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise BundleError(
            f"an insightface pack must be in ~/.insightface/models, a folder, or a name that can "
            f"be fetched, but {name!r} is none ({reason}): fetch its zip where there is a network "
            "and unpack it there"
        ) from error
    return pack


class InsightFaceDetector:
    """The SCRFD detector of a pack (Guo et al. 2021), which gives the five points itself."""

    def __init__(self, pack: str, device: torch.device) -> None:
        self._model: Any = _pack(pack, device).det_model

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> list[Face]:
        """See `FaceDetector`."""
        longer = max(image.shape)
        side = min(32 * math.ceil(longer / 32), _LARGEST)
        size = None if longer <= _USUAL else (side, side)
        boxes, points = self._model.detect(np.ascontiguousarray(image[..., ::-1]), size)
        return [
            Face(
                box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                score=float(box[4]),
                points=five.astype(np.float64),
            )
            for box, five in zip(boxes, points, strict=True)
        ]


class InsightFaceNetwork(OnnxNetwork):
    """The recognition file of a pack, which stays where insightface put it."""

    def __init__(self, pack: str, device: torch.device) -> None:
        model = _pack(pack, device).models["recognition"]
        super().__init__(
            Path(model.model_file),
            mean=float(model.input_mean),
            std=float(model.input_std),
            licence=_LICENCE,
            session=model.session,
        )
        self.stored_as = f"insightface:{pack}"

    def save(self, folder: Path) -> None:
        """See `FaceNetwork`: the weights may not be passed on, so only the pack's name is kept."""


DETECTORS.register("insightface")(InsightFaceDetector)


@NETWORKS.register("insightface")
def _network(pack: str, _: FaceConfig, __: Path, device: torch.device) -> InsightFaceNetwork:
    return InsightFaceNetwork(pack, device)
