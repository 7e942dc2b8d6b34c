"""Every command that writes, on the tiny world, and what is written."""

from pathlib import Path

from .conftest import PRETRAIN, QUICK, World, train_arguments

CPU = ("--device", "cpu")
FEW = ("--steps", 2, *CPU)


def every_command(world: World, root: Path, home: Path) -> list[list[object]]:
    """Commands that write, each into `root`, of what lies in `home`."""
    base, photo, subjects = home / "base", home / "photo.png", home / "subjects"
    encoder, lora, synthesizer = home / "encoder", home / "me.safetensors", home / "synthesizer"
    library, codec = home / "library", home / "codec"
    places = ("--synthesizer", synthesizer, "--library", library, "--base", base)
    train = train_arguments(world, root / "synthesizer", root / "work/train")
    own = {world.base: base, world.library: library, world.codec: codec, world.encoder: encoder}
    return [
        ["collect", subjects, "-o", root / "library", "--base", base, *CPU, *QUICK,
         "--encoder", encoder],
        ["import", "loras", home / "loras", "-o", root / "imported"],
        ["fit", "pca", library, "-o", root / "codec", "--latents", 2, *CPU, "--run",
         root / "work/fit"],
        ["fit", "scaled", library, "-o", root / "scaled", *CPU, "--run", root / "work/fit"],
        [own.get(word, word) if isinstance(word, Path) else word for word in train],
        ["pretrain", subjects, "--base", base, "--encoder", encoder, "-o",
         root / "pretrained", "--run", root / "work/pretrain", *PRETRAIN, *CPU],
        ["synth", photo, "-o", root / "me.safetensors", "--synthesizer", synthesizer],
        ["synth", subjects, "-o", root / "all", "--synthesizer", synthesizer],
        ["synth", photo, "-o", root / "peft", "--format", "peft", "--synthesizer", synthesizer],
        ["convert", lora, root / "converted.safetensors", "--format", "diffusers"],
        ["merge", lora, home / "loras/ann.safetensors", "-o", root / "merged.safetensors"],
        ["extract", home / "tuned", base, root / "extracted.safetensors", "--rank", 2],
        ["resize", lora, root / "resized.safetensors", "--rank", 1],
        ["edit", lora, "--attribute", "old=+1", "-o", root / "edited.safetensors", *places[:4],
         *CPU],
        ["refine", lora, photo, "-o", root / "refined.safetensors", "--base", base, *FEW],
        ["optimise", "blend", photo, "-o", root / "blended.safetensors", *places, *FEW],
        ["optimise", "invert", photo, "-o", root / "inverted.safetensors", *places, *FEW],
        ["sample", "-o", root / "sampled", "-n", 1, *places, *CPU],
        ["images", "--prompt", "sks", "-n", 1, "--steps", 1, "--base", base, "--lora", lora, "-o",
         root / "sheet.png", *CPU],
        ["evaluate", subjects, "-o", root / "report.json", "--base", base, "--encoder", encoder,
         "--style", f"{lora}=0.5", "--images", 2, "--sampling-steps", 1, "--cache",
         root / "work/cache", "--sheets", root / "sheets", *CPU],
        ["encoders", "make", f"clip:{home / 'clip'}", "-o", root / "vision"],
        ["encoders", "join", encoder, f"clip:{home / 'clip'}", "-o", root / "joined"],
    ]  # fmt: skip


def files_of(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "work" not in path.relative_to(root).parts
    }
