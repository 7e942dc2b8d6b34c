"""Conditions: encoders that turn pictures of a subject into the embedding that steers synthesis."""

import lorasynth.condition.catalogue  # noqa: F401  its encoders become known by name
from lorasynth.condition.attributes import AttributeEncoder, AttributesConfig
from lorasynth.condition.avatar import AvatarEncoder, AvatarEncoderConfig
from lorasynth.condition.contract import (
    ENCODERS,
    SHOWN,
    ConditionEncoder,
    Seen,
    seen_in,
    sphere_mean,
    subject_condition,
    subject_conditions,
)
from lorasynth.condition.faces import FaceConfig, FaceEncoder
from lorasynth.condition.joined import JoinedEncoder
from lorasynth.condition.judge import AttributeJudge, JudgeConfig
from lorasynth.condition.looking import framed_subject
from lorasynth.condition.named import NAMED, NamedEncoder, load_encoder
from lorasynth.condition.reader import AttributeReader
from lorasynth.condition.vision import VisionConfig, VisionEncoder

__all__ = [
    "ENCODERS",
    "NAMED",
    "SHOWN",
    "AttributeEncoder",
    "AttributeJudge",
    "AttributeReader",
    "AttributesConfig",
    "AvatarEncoder",
    "AvatarEncoderConfig",
    "ConditionEncoder",
    "FaceConfig",
    "FaceEncoder",
    "JoinedEncoder",
    "JudgeConfig",
    "NamedEncoder",
    "Seen",
    "VisionConfig",
    "VisionEncoder",
    "framed_subject",
    "load_encoder",
    "seen_in",
    "sphere_mean",
    "subject_condition",
    "subject_conditions",
]
