from pathlib import Path

import pytest
import torch

from lorasynth.base import BaseModel


@pytest.fixture(scope="session")
def base(pipeline_folder: Path) -> BaseModel:
    """The tiny base model, precise enough that only an image's rounding is left."""
    return BaseModel.load(pipeline_folder, dtype=torch.float64)
