"""Conditions: encoders that turn pictures of a subject into the embedding that steers synthesis."""

import lorasynth.condition.catalogue  # noqa: F401  its encoders become known by name
from lorasynth.condition.attributes import AttributeEncoder, AttributesConfig
from lorasynth.condition.avatar import AvatarEncoder, AvatarEncoderConfig
from lorasynth.condition.contract import (
    ENCODERS,
    CompositeEncoder,
    ConditionEncoder,
    PhotoEncoder,
    embed_made,
    embed_subject,
    look,
    require_shown,
    size_to_embed,
    sphere_mean,
    subject_embedding,
)
from lorasynth.condition.faces import FaceConfig, FaceEncoder
from lorasynth.condition.joined import JoinedEncoder
from lorasynth.condition.judge import AttributeJudge, JudgeConfig
from lorasynth.condition.named import NAMED, NamedEncoder, load_encoder
from lorasynth.condition.reader import AttributeReader
from lorasynth.condition.vision import VisionConfig, VisionEncoder

__all__ = [
    "ENCODERS",
    "NAMED",
    "AttributeEncoder",
    "AttributeJudge",
    "AttributeReader",
    "AttributesConfig",
    "AvatarEncoder",
    "AvatarEncoderConfig",
    "CompositeEncoder",
    "ConditionEncoder",
    "FaceConfig",
    "FaceEncoder",
    "JoinedEncoder",
    "JudgeConfig",
    "NamedEncoder",
    "PhotoEncoder",
    "VisionConfig",
    "VisionEncoder",
    "embed_made",
    "embed_subject",
    "load_encoder",
    "look",
    "require_shown",
    "size_to_embed",
    "sphere_mean",
    "subject_embedding",
]
