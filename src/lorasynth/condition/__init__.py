"""Conditions: encoders that turn pictures of a subject into the embedding that steers synthesis."""

from lorasynth.condition.avatar import AvatarEncoder, AvatarEncoderConfig
from lorasynth.condition.contract import ConditionEncoder, sphere_mean, subject_embedding

__all__ = [
    "AvatarEncoder",
    "AvatarEncoderConfig",
    "ConditionEncoder",
    "sphere_mean",
    "subject_embedding",
]
