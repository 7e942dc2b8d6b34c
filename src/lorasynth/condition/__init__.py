"""Conditions: encoders that turn pictures of a subject into the embedding that steers synthesis."""

from lorasynth.condition.avatar import AvatarEncoder, AvatarEncoderConfig
from lorasynth.condition.contract import (
    ENCODERS,
    ConditionEncoder,
    load_encoder,
    sphere_mean,
    subject_embedding,
)

__all__ = [
    "ENCODERS",
    "AvatarEncoder",
    "AvatarEncoderConfig",
    "ConditionEncoder",
    "load_encoder",
    "sphere_mean",
    "subject_embedding",
]
