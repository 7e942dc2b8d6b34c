from .contract import DETECTORS as DETECTORS
from .contract import NETWORKS as NETWORKS
from .contract import Face as Face
from .contract import FaceConfig as FaceConfig
from .contract import FaceDetector as FaceDetector
from .contract import FaceNetwork as FaceNetwork
from .encoder import FaceEncoder as FaceEncoder
