"""Changes to adapters in a codec's latents: along attributes, and from one subject to another."""

from lorasynth.edit.directions import attribute_names, direction
from lorasynth.edit.interpolation import PATHS, interpolate, lerp, slerp
from lorasynth.edit.movement import moved

__all__ = ["PATHS", "attribute_names", "direction", "interpolate", "lerp", "moved", "slerp"]
