"""The face encoder: any detector with any network, saved as a folder."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from lorasynth.condition.contract import ENCODERS, ConditionEncoder, Seen, saved_config
from lorasynth.condition.faces.alignment import align
from lorasynth.condition.faces.contract import DETECTORS, NETWORKS, Face, FaceConfig
from lorasynth.condition.faces.views import find_faces
from lorasynth.core import config as configs
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.errors import BundleError, ImageError
from lorasynth.core.weights import CONFIG_FILE
from lorasynth.images.contract import Photos
from lorasynth.images.files import to_image
from lorasynth.images.framing import Box, framed

#: Squares that a network sees at once.
BATCH = 64


class FaceEncoder(ConditionEncoder):
    """Embeds the largest face of each image, laid straight.

    Args:
        config: what it is made of.
        device: where it computes; what cannot do so there computes on the CPU.
        folder: where a relative path in the config starts from.

    Raises:
        ConfigError: a package is missing, or the config names what does not exist.
        BundleError: a file of weights is not what the config says.
    """

    domain = "faces of people"
    advice = (
        "it looked again padded, enlarged and turned; use a photo with both eyes in sight, or crop "
        "it to the head and shoulders"
    )
    finds_faces = True

    def __init__(
        self, config: FaceConfig, device: torch.device | str = "cpu", folder: Path = Path()
    ) -> None:
        device = torch.device(device)
        kind, _, argument = config.detector.partition(":")
        self._detector = DETECTORS.get(kind)(argument, device)
        kind, _, argument = config.network.partition(":")
        network = self._network = NETWORKS.get(kind)(argument, config, folder, device)
        for what, stated, found in (
            ("image_size", config.image_size, network.size),
            ("width", config.width, network.width),
            ("sha256", config.sha256, network.sha256),
        ):
            if stated is not None and stated != found:
                raise BundleError(
                    f"the network {config.network!r} of the encoder {config.name!r} must have the "
                    f"{what} {stated}, but has {found}: it is another one; make the encoder again"
                )
        self.config = replace(
            config,
            image_size=network.size,
            width=network.width,
            sha256=network.sha256,
            licence=network.licence,
        )
        self.name = config.name
        self.image_size = network.size
        self.width = network.width
        self.licence = network.licence

    @override
    def _fingerprint(self) -> str:
        """Of the weights, and what else an embedding depends on."""
        config = self.config
        kind, colon, argument = config.detector.partition(":")
        detector = f"{kind}{colon}{Path(argument).name}"  # wherever a pack lies
        parts = (detector, config.mean, config.std, config.sha256)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def faces(self, photo: UInt8[Tensor, "h w 3"]) -> list[Face]:
        """The faces of a photo, from left to right."""
        return find_faces(self._detector, to_image(photo))

    @override
    def see(
        self, photos: Photos, *, names: Sequence[str] | None = None, face: int | None = None
    ) -> Seen:
        """Embed a face of each photo; of one without a face, the square that `framed` chooses."""
        names = names or [f"image {i + 1}" for i in range(len(photos))]
        found = [self._found(photo, name, face) for photo, name in zip(photos, names, strict=True)]
        squares = [
            self._square(photo, one) if one is not None else framed(photo, self.image_size)
            for photo, one in zip(photos, found, strict=True)
        ]
        return Seen(
            self.embed_aligned(torch.stack(squares)),
            torch.tensor([0.0 if one is None else one.score for one in found]),
            [None if one is None else Box(*one.box) for one in found],
        )

    def _found(self, photo: UInt8[Tensor, "h w 3"], name: str, face: int | None) -> Face | None:
        """The face of that number, else the largest; None where there is none."""
        faces = self.faces(photo.cpu())
        if face is not None and faces and not 1 <= face <= len(faces):
            raise ImageError(
                f"--face must be one of the faces of an image, counted from the left, but is "
                f"{face} and {name} shows {len(faces)}: choose from 1 to {len(faces)}"
            )
        if face is not None and faces:
            return faces[face - 1]
        return max(faces, key=lambda one: one.area, default=None)

    def aligned(
        self, photo: UInt8[Tensor, "h w 3"], face: int | None = None
    ) -> UInt8[Tensor, "side side 3"]:
        """The square in which a face of a photo lies as the network expects it.

        Raises:
            ImageError: there is no face, or not so many.
        """
        found = self._found(photo, "the image", face)
        if found is None:
            raise ImageError(self.missing("the image", 0.0))
        return self._square(photo, found)

    def _square(self, photo: UInt8[Tensor, "h w 3"], face: Face) -> UInt8[Tensor, "side side 3"]:
        square = align(to_image(photo), face.points, self._network.template, self.image_size)
        return torch.from_numpy(np.array(square))

    @torch.no_grad()
    def embed_aligned(self, squares: UInt8[Tensor, "b side side 3"]) -> Float[Tensor, "b m"]:
        """Embed squares that `aligned` gave as unit vectors on the CPU, in batches."""
        parts = [self._network(part) for part in squares.cpu().split(BATCH)]
        return functional.normalize(torch.cat(parts).float(), dim=1)

    @override
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        return self.see(images).embeddings

    @override
    def presence(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        """The probability that each image shows a face; 0 where none is found."""
        found = [self._found(image, "an image", None) for image in images]
        return torch.tensor([0.0 if one is None else one.score for one in found])

    @override
    def save(self, folder: Path) -> None:
        """Write the config, and the weights where no package has them."""
        with atomic_directory(folder) as temporary:
            self._network.save(temporary)
            stored = replace(self.config, network=self._network.stored_as)
            write_json(temporary / CONFIG_FILE, {"kind": "face", **configs.to_dict(stored)})

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "FaceEncoder":
        """Read an encoder from a folder, for a device.

        Raises:
            BundleError: the folder is not a whole face encoder.
            ConfigError: its config is not that of one, or a package that it needs is missing.
        """
        return cls(configs.from_dict(FaceConfig, saved_config(folder)), device, folder)


ENCODERS.register("face")(FaceEncoder.load)
