"""Faces: what finds them in a photo, what lays them straight, what embeds them."""

from lorasynth.condition.faces.alignment import ARCFACE, DLIB, align, similarity
from lorasynth.condition.faces.contract import (
    DETECTORS,
    NETWORKS,
    Face,
    FaceConfig,
    FaceDetector,
    FaceNetwork,
)
from lorasynth.condition.faces.dlib import DlibDetector, DlibNetwork
from lorasynth.condition.faces.encoder import FaceEncoder
from lorasynth.condition.faces.insightface import InsightFaceDetector
from lorasynth.condition.faces.onnx import OnnxNetwork
from lorasynth.condition.faces.views import ROUNDS, View, find_faces

__all__ = [
    "ARCFACE",
    "DETECTORS",
    "DLIB",
    "NETWORKS",
    "ROUNDS",
    "DlibDetector",
    "DlibNetwork",
    "Face",
    "FaceConfig",
    "FaceDetector",
    "FaceEncoder",
    "FaceNetwork",
    "InsightFaceDetector",
    "OnnxNetwork",
    "View",
    "align",
    "find_faces",
    "similarity",
]
