"""Encoders of drawn avatars, which play ArcFace's part for the embedded domain."""

from pathlib import Path

import torch

from lorasynth.condition import TrainedConfig, TrainedEncoder

#: What the shipped encoders have in common, which their configs do not say.
AVATARS = TrainedConfig(name="avatar", domain="drawn avatars", licence="Apache-2.0")


def load_avatar_encoder(folder: Path, device: torch.device) -> TrainedEncoder:
    """Read an encoder of the kind `avatar`, which bundles of before 0.2 have.

    Raises:
        LorasynthError: see `TrainedEncoder.load`.
    """
    return TrainedEncoder.load(folder, device, AVATARS)
