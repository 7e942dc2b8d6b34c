"""The face encoder: any detector with any network, saved as a folder."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lorasynth import config as configs
from lorasynth.atomic import atomic_directory, write_json
from lorasynth.condition.contract import ENCODERS, saved_config
from lorasynth.condition.faces.alignment import align
from lorasynth.condition.faces.contract import DETECTORS, NETWORKS, Face, FaceConfig
from lorasynth.condition.faces.views import find_faces
from lorasynth.errors import BundleError, PictureError
from lorasynth.pictures.files import middle_square, to_image
from lorasynth.weights import CONFIG_FILE

#: Squares that a network sees at once.
BATCH = 64


class FaceEncoder:
    """Embeds the largest face of each picture, laid straight.

    Args:
        config: what it is made of.
        device: where it computes; what cannot do so there computes on the CPU.
        folder: where a relative path in the config starts from.

    Raises:
        ConfigError: a package is missing, or the config names what does not exist.
        BundleError: a file of weights is not what the config says.
    """

    def __init__(
        self, config: FaceConfig, device: torch.device | str = "cpu", folder: Path = Path()
    ) -> None:
        device = torch.device(device)
        self._detector = DETECTORS.get(_kind(config.detector))(_argument(config.detector), device)
        make = NETWORKS.get(_kind(config.network))
        network = self._network = make(_argument(config.network), config, folder, device)
        for what, stated, found in (
            ("picture_size", config.picture_size, network.size),
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
            picture_size=network.size,
            width=network.width,
            sha256=network.sha256,
            licence=network.licence,
        )
        self.name = config.name
        self.picture_size = network.size
        self.width = network.width
        self.licence = network.licence

    @property
    def fingerprint(self) -> str:
        """Identifies the weights, and what else an embedding depends on."""
        config = self.config
        parts = (config.detector, config.mean, config.std, config.sha256)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def faces(self, photo: UInt8[Tensor, "h w 3"]) -> list[Face]:
        """The faces of a photo, from left to right."""
        return find_faces(self._detector, to_image(photo))

    def prepare(
        self,
        photo: UInt8[Tensor, "h w 3"],
        *,
        name: str = "the picture",
        face: int | None = None,
    ) -> UInt8[Tensor, "side side 3"]:
        """The square in which a face of a photo lies as the network expects it.

        Args:
            photo: of any size.
            name: what to call it in an error.
            face: which one, counted from the left, from 1; None for the largest.

        Raises:
            PictureError: the photo shows no face, or not so many.
        """
        faces = self.faces(photo)
        if not faces:
            raise PictureError(
                f"a reference picture must show a face, but the encoder {self.name!r} finds none "
                f"in {name}, also padded, enlarged and turned: use one with both eyes in sight, "
                "or crop it to the head and shoulders"
            )
        if face is not None and not 1 <= face <= len(faces):
            raise PictureError(
                f"--face must be one of the faces of a picture, counted from the left, but is "
                f"{face} and {name} shows {len(faces)}: choose from 1 to {len(faces)}"
            )
        found = faces[face - 1] if face else max(faces, key=lambda face: face.area)
        return self._square(photo, found)

    def _square(self, photo: UInt8[Tensor, "h w 3"], face: Face) -> UInt8[Tensor, "side side 3"]:
        square = align(to_image(photo), face.points, self._network.template, self.picture_size)
        return torch.from_numpy(np.array(square))

    @torch.no_grad()
    def embed_prepared(self, squares: UInt8[Tensor, "b side side 3"]) -> Float[Tensor, "b m"]:
        """Embed squares that `prepare` gave as unit vectors on the CPU, in batches."""
        parts = [self._network(part) for part in squares.cpu().split(BATCH)]
        return functional.normalize(torch.cat(parts).float(), dim=1)

    def embed(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """Embed the largest face of each picture; of one without a face, its middle square."""
        return self.look(pictures)[0]

    def presence(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        """The probability that each picture shows a face; 0 where none is found."""
        return torch.tensor([self._largest(picture)[1] for picture in pictures])

    def look(
        self, pictures: UInt8[Tensor, "b h w 3"]
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
        """Both `embed` and `presence`, after looking for faces once."""
        squares, scores = zip(*map(self._largest, pictures), strict=True)
        return self.embed_prepared(torch.stack(squares)), torch.tensor(scores)

    def _largest(
        self, picture: UInt8[Tensor, "h w 3"]
    ) -> tuple[UInt8[Tensor, "side side 3"], float]:
        picture = picture.cpu()
        faces = self.faces(picture)
        if not faces:
            return middle_square(picture, self.picture_size), 0.0
        largest = max(faces, key=lambda face: face.area)
        return self._square(picture, largest), largest.score

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


def _kind(spec: str) -> str:
    return spec.partition(":")[0]


def _argument(spec: str) -> str:
    return spec.partition(":")[2]


ENCODERS.register("face")(FaceEncoder.load)
