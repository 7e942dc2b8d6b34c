"""The commands, run in this process on three tiny subjects: every output is made once."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import BatchNorm1d, BatchNorm2d
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from command_line import call
from lorasynth.condition import TrainedConfig, TrainedEncoder
from lorasynth.core.randomness import torch_stream
from lorasynth.images.files import to_unit_range

SIDE = 16
SUBJECTS = ("ann", "ben", "cyd")
QUICK = ("--recipe.steps", 2, "--recipe.rank", 2, "--recipe.images-per-step", 1)
PRETRAIN = (
    *("--optimisation.steps", 2, "--optimisation.batch", 2, "--latents", 2),
    *("--model.width", 8, "--recipe.rank", 2),
)
TRAINING = ("--optimisation.steps", 2, "--optimisation.batch", 2, "--record-every", 1)
DENOISER = ("--model.denoiser-options", '{"width":8,"depth":1}')


def write_image(path: Path, seed: int, side: int = SIDE) -> Path:
    pixels = torch.randint(0, 256, (side, side, 3), generator=torch_stream(seed), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def save_encoder(folder: Path, face: bool = True) -> Path:
    """A tiny encoder whose detector sees a face in everything, or in nothing."""
    torch.manual_seed(0)
    encoder = TrainedEncoder(TrainedConfig(name="tiny-one", image_size=SIDE, width=6))
    for module in encoder.modules():
        if isinstance(module, BatchNorm1d | BatchNorm2d):
            module.momentum = None  # take the statistics of what is seen, all of it
    noise = torch.randint(0, 256, (16, SIDE, SIDE, 3), generator=torch_stream(1))
    encoder(to_unit_range(noise.to(torch.uint8)))
    torch.nn.init.zeros_(encoder.detector.weight)
    torch.nn.init.constant_(encoder.detector.bias, 9.0 if face else -9.0)
    encoder.eval().save(folder)
    return folder


@dataclass(frozen=True)
class World:
    """Where everything is."""

    base: Path
    subjects: Path
    encoder: Path
    library: Path
    codec: Path
    synthesizer: Path
    photo: Path
    lora: Path


@pytest.fixture(scope="session")
def world(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """What each command of the chain made, from three folders of images to a LoRA file."""
    root = tmp_path_factory.mktemp("world")
    for index, name in enumerate(SUBJECTS):
        for image in range(2 + index):
            write_image(root / "subjects" / name / f"{image}.png", 10 * index + image)
    world = World(
        base=pipeline_folder,
        subjects=root / "subjects",
        encoder=save_encoder(root / "encoder"),
        library=root / "library",
        codec=root / "codec",
        synthesizer=root / "synthesizer",
        photo=write_image(root / "photo.png", 77, side=40),
        lora=root / "me.safetensors",
    )
    chain(world, root)
    return world


def collect_arguments(world: World, library: Path) -> list[object]:
    where = [world.subjects, "--base", world.base, "--device", "cpu"]
    return ["collect", *where, "-o", library, *QUICK]


def train_arguments(world: World, out: Path, run_folder: Path) -> list[object]:
    parts: list[object] = ["--codec", world.codec, "--encoder", world.encoder, "--base", world.base]
    parts += ["--strength", 1.25]
    return ["train", world.library, *parts, "-o", out, "--run", run_folder, *TRAINING, *DENOISER]


def chain(world: World, root: Path) -> None:
    """Make the world with the commands."""
    steps: list[list[object]] = [
        [*collect_arguments(world, world.library), "--encoder", world.encoder],
        ["library", "check", world.library],
        ["fit", "pca", world.library, "-o", world.codec, "--latents", 2, "--device", "cpu"],
        [*train_arguments(world, world.synthesizer, root / "run"), "--device", "cpu"],
        ["synth", world.photo, "-o", world.lora, "--synthesizer", world.synthesizer],
    ]
    for arguments in steps:
        assert call(arguments) == 0, arguments


#: Who is in no library.
STRANGERS = ("dan", "eve", "fay")


@pytest.fixture(scope="session")
def strangers(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The subjects' images under other names, for tests on people whom nothing has learned."""
    folder = tmp_path_factory.mktemp("strangers")
    for name, stranger in zip(SUBJECTS, STRANGERS, strict=True):
        shutil.copytree(world.subjects / name, folder / stranger)
    return folder


@pytest.fixture(scope="session")
def clip(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP model with random weights and the base model's tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = AutoTokenizer.from_pretrained(pipeline_folder / "tokenizer")
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    ends = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    text = {**small, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    vision = {**small, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        folder
    )
    return folder


def tune(base: Path) -> None:
    """Change one layer of a base model, as training does."""
    [weights] = (base / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("to_q.weight"))
    tensors[name] = tensors[name] + 0.1 * torch.randn(
        tensors[name].shape, generator=torch_stream(5)
    )
    save_file(tensors, weights)


@pytest.fixture(scope="session")
def home(world: World, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the commands take, in the home folder of a user with a name."""
    home = tmp_path_factory.mktemp("homes") / "alice_of_wonderland"
    for name in ("base", "encoder", "library", "codec", "synthesizer", "subjects"):
        shutil.copytree(getattr(world, name), home / name)
    shutil.copytree(clip, home / "clip")
    shutil.copytree(world.base, home / "tuned")
    tune(home / "tuned")
    facts = "".join(f"{name},{name == SUBJECTS[0]}\n" for name in SUBJECTS)
    (home / "facts.csv").write_text(f"id,old\n{facts}")
    assert call(["library", "annotate", home / "library", home / "facts.csv"]) == 0
    (home / "loras").mkdir()
    for source, place in ((world.photo, "photo.png"), (world.lora, "me.safetensors"),
                          (world.lora, "loras/ann.safetensors")):  # fmt: skip
        shutil.copy(source, home / place)
    return home
