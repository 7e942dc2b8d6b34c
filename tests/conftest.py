"""With LORASYNTH_SHAPES=1, as in CI, beartype checks the shapes in annotations while the tests run,
for an eighth of the time more.  All share a tiny base model.

The tests are of the CPU, also where there is a GPU: accelerate would choose that one, and keeps its
choice for the whole process.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "1")

if os.environ.get("LORASYNTH_SHAPES"):
    from jaxtyping import install_import_hook

    install_import_hook("lorasynth", "beartype.beartype")

from pathlib import Path
from typing import Protocol

import pytest
import torch

from command_line import Result, Run, call

# Tests run beside each other (pytest-xdist); more threads than cores only make them wait.
torch.set_num_threads(1)
# For what does use a GPU: convolutions as exact as those of the CPU.
torch.backends.cudnn.allow_tf32 = False


class MakePipeline(Protocol):
    def __call__(self, folder: Path, prediction_type: str = "v_prediction") -> Path: ...


@pytest.fixture(scope="session")
def make_pipeline() -> MakePipeline:
    """Save the embedded base model, tiny and untrained, with images of 16 pixels."""

    def make(folder: Path, prediction_type: str = "v_prediction") -> Path:
        from tiny_pipelines import build

        pipeline = build("StableDiffusionPipeline")
        pipeline.scheduler.register_to_config(prediction_type=prediction_type)
        pipeline.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def pipeline_folder(make_pipeline: MakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `lorasynth` with arguments."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        status = call(arguments)
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return run
