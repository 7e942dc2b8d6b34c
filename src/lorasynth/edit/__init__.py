"""Changes to adapters in a codec's latents: along attributes, and from one subject to another."""

from lorasynth.edit.directions import attribute_names, direction
from lorasynth.edit.interpolation import PATHS, lerp, slerp
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.edit.movement import moved
from lorasynth.edit.space import LatentSpace

__all__ = [
    "PATHS",
    "LatentLibrary",
    "LatentSpace",
    "attribute_names",
    "direction",
    "lerp",
    "moved",
    "slerp",
]
