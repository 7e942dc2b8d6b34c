from .directions import attribute_names as attribute_names
from .directions import direction as direction
from .interpolation import PATHS as PATHS
from .interpolation import lerp as lerp
from .interpolation import slerp as slerp
from .latent_library import LatentLibrary as LatentLibrary
from .movement import moved as moved
from .space import LatentSpace as LatentSpace
