"""An encoder sees in training what it sees at use: the photo as it was taken, not its square."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorasynth.avatars.drawing import named_subjects
from lorasynth.condition import (
    ConditionEncoder,
    framed_subject,
    load_encoder,
    subject_condition,
    subject_conditions,
)
from lorasynth.images import Subject

from .models import write_clip, write_dino
from .photos import hopper

BUNDLE = Path(__file__).parents[2] / "bundle"


def avatar() -> Tensor:
    """A drawn head below an empty wall, 712 pixels high and 512 wide."""
    source = named_subjects("1,split=test,images=1", 512)
    head = source.load(source.ids[0]).photos[0]
    return torch.cat([head[:1, :1].expand(200, 512, 3), head])


def named(kind: str, folder: Path) -> tuple[ConditionEncoder, Tensor]:
    """An encoder of each kind that can run here, and a whole photo of what it knows."""
    if kind == "avatar":
        return load_encoder(str(BUNDLE / "encoders/avatar")), avatar()
    if kind == "dlib":
        if find_spec("dlib") is None:
            pytest.skip("needs lorasynth[face]")
        return load_encoder("dlib"), hopper()
    write = {"clip": write_clip, "dino": write_dino}[kind]
    return load_encoder(f"{kind}:{write(folder / kind)}"), hopper()


#: The cosine of what is seen in the square alone, of which no condition is made.
SQUARES = {"dlib": {64: 0.75, 256: 0.97, 512: 0.96}}


@pytest.mark.parametrize("kind", ["avatar", "dlib", "clip", "dino"])
def test_training_and_use_see_the_same_at_every_size(kind: str, tmp_path: Path) -> None:
    encoder, photo = named(kind, tmp_path)
    used = subject_condition(encoder, [photo], ["photo"])
    for size in (64, 256, 512):
        subject = Subject(id="one", photos=[photo], captions=["a portrait"])
        cut = framed_subject(subject, size, [encoder])
        assert cut.images.shape == (1, size, size, 3)
        assert used @ subject_conditions(encoder, cut)[0] >= 0.99
        alone = encoder.see(cut.photos).embeddings[0]
        assert used @ alone >= SQUARES.get(kind, {}).get(size, 0.99)
