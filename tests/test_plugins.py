"""A package of others, in a folder outside the repository, adds a kind of everything.

It is installed as pip would: a module, and beside it a .dist-info folder with entry points.  Real
commands then use it in a process of their own, by name alone.
"""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

#: A domain (squares of one colour each), an encoder of colours, a metric, a command, and a base
#: model, a codec and a denoiser that do what ours do, under names of their own.
MODULE = '''
"""Pets."""
import torch
from pydantic.dataclasses import dataclass
from dataclasses import replace
from lorasynth.base import BASE_MODELS
from lorasynth.codec.pca import PCA
from lorasynth.condition import ConditionEncoder, NamedEncoder
from lorasynth.core.command import Command
from lorasynth.core.weights import save_module
from lorasynth.evaluation.metrics import Metric
from lorasynth.hypernet import MLPDenoiser
from lorasynth.images import Subject

class Pets:
    def __init__(self, count, size):
        self.ids, self.size = [f"pet-{i}" for i in range(count)], size

    def load(self, name):
        generator = torch.Generator().manual_seed(int(name.removeprefix("pet-")))
        colour = torch.randint(0, 256, (3,), generator=generator)
        noise = torch.randint(-20, 21, (3, self.size, self.size, 3), generator=generator)
        photos = (colour + noise).clamp(0, 255).to(torch.uint8)
        return Subject(id=name, photos=photos, captions=["a photo of sks"] * 3)

class Colours(ConditionEncoder, torch.nn.Module):
    name, image_size, width, licence, domain = "colours", 16, 3, "MIT", "pets"

    def _fingerprint(self):
        return "colours"

    def embed(self, images):
        return torch.nn.functional.normalize(images.float().mean(dim=(1, 2)) - 127.3, dim=1)

    def save(self, folder):
        save_module(folder, torch.nn.Linear(1, 1), "w.safetensors", {"kind": "colours"})

NAMED = NamedEncoder(
    configure=lambda argument: argument, build=lambda config, device: Colours(),
    spelling="colours", licence="MIT", packages=(), needs="pets",
)

#: Another kind of pipeline.
PetBase = replace(BASE_MODELS.get("StableDiffusionPipeline"), title="Pets")

class PetCodec(PCA):
    """Another codec."""

class PetDenoiser(MLPDenoiser):
    """Another denoiser."""

class Brightness(Metric):
    identity = "brightness"

    def __call__(self, made):
        return {"brightness": float(made.images.float().mean())}

@dataclass(frozen=True, kw_only=True)
class Count(Command):
    """Count pets.

    Attributes:
        most: Up to so many.
    """

    most: int = 3

    def run(self):
        """Print them."""
        print(*range(1, self.most + 1))

def pets(argument, size):
    return Pets(int(argument), size)

def brightness(judges, subjects):
    return Brightness()

def load_colours(folder, device):
    return Colours()
'''
ENTRY_POINTS = """
[lorasynth.sources]
pets = pets:pets
[lorasynth.encoders]
colours = pets:load_colours
[lorasynth.named_encoders]
colours = pets:NAMED
[lorasynth.base_models]
PetPipeline = pets:PetBase
[lorasynth.codecs]
pet-pca = pets:PetCodec
[lorasynth.denoisers]
pet-mlp = pets:PetDenoiser
[lorasynth.metrics]
brightness = pets:brightness
[lorasynth.commands]
pets.count = pets:Count
"""

#: Makes a synthesizer of untrained parts, each by the name of its plug-in.
SYNTHESIZER = """
import sys, torch
from lorasynth.adapter import Layout
from lorasynth.base import BaseModel
from lorasynth.codec import CODECS
from lorasynth.condition import load_encoder
from lorasynth.hypernet import LatentDiffusion, LatentDiffusionConfig
from lorasynth.synthesizer import Synthesizer

base, out = BaseModel.load(sys.argv[1]), sys.argv[2]
layout = Layout.from_linears(base.target_linears(["attn2.to_k"]), 2)
torch.manual_seed(0)
kind = CODECS.get("pet-pca")
codec = kind(kind.config_class(), layout.size, 4)
codec.components.normal_()
denoiser = {"denoiser": "pet-mlp", "denoiser_options": {"width": 8, "depth": 1}}
hypernet = LatentDiffusion(LatentDiffusionConfig(**denoiser), 4, 3)
torch.nn.init.normal_(hypernet.denoiser.leave.weight)
Synthesizer.of(base, layout, load_encoder("colours"), hypernet, codec).save(out)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip installs to."""
    site = tmp_path_factory.mktemp("site")
    (site / "pets.py").write_text(MODULE)
    info = site / "pets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(ENTRY_POINTS))
    return site


@pytest.fixture(scope="module")
def base(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of the package's kind."""
    folder = shutil.copytree(pipeline_folder, tmp_path_factory.mktemp("models") / "base")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "PetPipeline"}))
    return folder


#: Runs commands one after another, up to the first that fails.
COMMANDS = """
import json, sys
from lorasynth.commands.main import run
for words in json.loads(sys.argv[1]):
    if run(words):
        sys.exit(f"{words} failed")
"""


def run(site: Path, folder: Path, *words: object) -> str:
    """What Python prints, with the package installed."""
    path = [str(site), *(entry for entry in sys.path if entry)]
    environment = {"PYTHONPATH": ":".join(path), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=environment | {"HOME": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(site: Path, folder: Path, *commands: list[object]) -> str:
    """What commands print, with the package installed."""
    words = [[str(word) for word in command] for command in commands]
    return run(site, folder, "-c", COMMANDS, json.dumps(words))


def test_a_command_an_encoder_and_a_source_of_others(site: Path, tmp_path: Path) -> None:
    brief = ["--optimisation.steps", 2, "--optimisation.batch", 8, "--negatives", 4]
    small = ["--image-size", 16, "--features", 8, "--width", 4, "--workers", 1, "--device", "cpu"]
    printed = commands(
        site,
        tmp_path,
        ["pets", "count", "--most", 4],
        ["encoders", "list"],
        ["encoders", "train", "pets:10", "-o", "mine", *brief, *small],
    )
    assert printed.startswith("1 2 3 4\n")
    assert "colours:..." in printed
    assert "trained on 8 subjects; of 2 held out" in printed


def test_a_codec_a_denoiser_a_base_and_a_metric_of_others(
    site: Path, base: Path, tmp_path: Path
) -> None:
    run(site, tmp_path, "-c", SYNTHESIZER, base, "synthesizer")
    written = {
        part: json.loads((tmp_path / "synthesizer" / part / "config.json").read_text())
        for part in ("codec", "hypernet", "encoder")
    }
    assert written["codec"]["codec"] == "pet-pca"
    assert written["hypernet"]["config"]["denoiser"] == "pet-mlp"
    assert written["encoder"]["kind"] == "colours"
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "photo.png")
    options = ["--base", base, "--steps", 1, "-n", 1, "--device", "cpu"]
    measured = ["--images", 2, "--sampling-steps", 1, "--base", base, "--device", "cpu"]
    commands(
        site,
        tmp_path,
        ["synth", "photo.png", "-o", "me.safetensors", "--synthesizer", "synthesizer"],
        ["images", "--prompt", "sks", "--lora", "me.safetensors", "-o", "me.png", *options],
        ["evaluate", "pets:3", "--synthesizer", "synthesizer", "--encoder", "colours", "-o",
         "report.json", *measured],
    )  # fmt: skip
    assert (tmp_path / "me.png").is_file()
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert len(rows) >= 2
    assert all("brightness" in row for row in rows)
