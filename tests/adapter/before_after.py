"""What became of 82 layouts of LoRA files: docs/formats.md, from layouts.txt and the real loaders.

    PYTHONPATH=tests/adapter python tests/adapter/before_after.py > docs/formats.md

asks diffusers, PEFT and, with LORASYNTH_COMFYUI (see test_comfyui.py), ComfyUI; without that one
its column says so.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from architectures import ROWS, adapter, text_modules
from comfyui_models import MODELS
from readers import by_diffusers, by_peft, distance, exact
from safetensors.torch import load_file, save_file
from test_comfyui import PYTHON, TEXT, read_exactly
from test_table import inside, outside_too, respelled

from lorasynth.adapter import Adapter, Factor
from lorasynth.adapter.components import component_number
from lorasynth.adapter.families import FAMILIES
from lorasynth.adapter.files import format_for, read, universal
from lorasynth.core.errors import FileFormatError

HERE = Path(__file__).parent


class Layout(NamedTuple):
    """A row of layouts.txt, whose head says what is in it."""

    family: str
    name: str
    prefix: str
    ending: str
    names: str
    alpha: str
    layers: str
    text: str
    read: str
    diffusers: str
    comfyui: str
    peft: str


def layouts() -> list[Layout]:
    lines = (HERE / "layouts.txt").read_text().splitlines()
    rows = ([cell.strip() for cell in line.split("|")] for line in lines if line[0] != "#")
    return [Layout(*row) for row in rows]


def denoiser(row: Layout) -> Adapter:
    def wanted(name: str) -> bool:
        convolution = any(part in name for part in ("resnets", "sampler", "conv_in", "conv_out"))
        return {
            "attention": inside(name) and ".attn" in name and "norm" not in name,
            "linear": inside(name) and not convolution,
            "convolutions": inside(name),
            "all": outside_too(name) and not convolution,
        }[row.layers]

    return adapter(row.family, wanted, rank=4)


def text(row: Layout) -> dict[str, Factor]:
    stream = torch.Generator().manual_seed(1)
    return {
        module: Factor(torch.randn(4, 8, generator=stream), torch.randn(8, 4, generator=stream))
        for component, kind in (TEXT[row.family].items() if row.text != "-" else ())
        for module in text_modules(component, kind)
    }


def write(row: Layout, path: Path) -> Adapter:
    """The file as its program writes it; returns what it should be read as."""
    part, words = denoiser(row), text(row)
    alpha = float(row.alpha) if row.alpha.isdigit() else None
    tensors = respelled(part, row.family, row.prefix, row.ending, row.names, alpha)
    for module, factor in words.items():
        stem, ends = module, ("lora_A.weight", "lora_B.weight")
        if row.text == "kohya":
            component, _, name = module.partition(".")
            stem = FAMILIES[row.family].kohya_prefix(component) + name.replace(".", "_")
            ends = ("lora_down.weight", "lora_up.weight")
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
        scale = 1.0 if alpha is None else factor.rank / alpha
        tensors |= {f"{stem}.{ends[0]}": factor.A, f"{stem}.{ends[1]}": factor.B * scale}
    header = {}
    if row.alpha == "header":
        targets = sorted({name.rpartition(".")[2] for name in part.factors})
        config = {"r": 4, "lora_alpha": 2, "target_modules": targets}
        tensors = {k: t * 2 if k.endswith("B.weight") else t for k, t in tensors.items()}
        header["lora_adapter_metadata"] = json.dumps({f"unet.{k}": v for k, v in config.items()})
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, header)
    return Adapter({**part.factors, **words}, kernels=part.kernels)


def counted(exactly: int, of: int) -> str:
    return "all" if exactly == of else f"{exactly} of {of}" if exactly else "none"


def read_here(whole: Adapter, path: Path, family: str) -> str:
    found = read(path, FAMILIES[family]).adapter.factors
    assert found.keys() == whole.factors.keys(), path
    near = [distance(factor, found[module]) < 1e-6 for module, factor in whole.factors.items()]
    return counted(sum(near), len(near))


def in_comfyui(files: dict[str, tuple[str, Adapter]], folder: Path) -> dict[str, str]:
    """What ComfyUI reads of each file of a folder, text encoders too."""
    out = folder.with_name("read")
    out.mkdir()
    subprocess.run([PYTHON, HERE / "comfyui_probe.py", folder, out], check=True, timeout=1200)
    found = {}
    for name, (family, whole) in files.items():
        path = out / f"{name}.safetensors"
        parts = {m: f for m, f in whole.factors.items() if not m.startswith("text_")}
        count = len(read_exactly(family, Adapter(parts), path))
        tensors = load_file(path)
        for module, factor in whole.factors.items():
            if module.startswith("text_"):
                component, _, name_in_it = module.partition(".")
                encoder = FAMILIES[family].text[component_number(component) - 1]
                stem = f"{encoder}.transformer.{name_in_it}"
                if f"{stem}.A" in tensors:
                    got = Factor(tensors[f"{stem}.A"], tensors[f"{stem}.B"])
                    count += distance(factor, got) < 1e-3
        found[name] = counted(count, len(whole.factors))
    return found


def table(folder: Path) -> list[list[str]]:
    """Family, layout; read before and now; written before and now, for each loader."""
    files: dict[str, tuple[str, Adapter]] = {}
    made: list[tuple[Layout, list[str]]] = []
    (folder / "comfyui").mkdir()
    for number, row in enumerate(layouts()):
        path = folder / "in.safetensors"
        whole = write(row, path)
        now = [read_here(whole, path, row.family)]
        found = read(path, FAMILIES[row.family]).adapter
        inner = {m: f for m, f in whole.factors.items() if not m.startswith("text_")}
        if ROWS[row.family][2]:
            out = format_for("diffusers", found).write(found, folder / "out.safetensors")
            got = exact(inner, by_diffusers(row.family, out))
            now.append(counted(len(got), len(inner)))
        else:
            now.append("no loader")
        name = f"{row.family}--{number}"
        if row.family in MODELS:
            target = folder / "comfyui" / f"{name}.safetensors"
            format_for("comfyui", found).write(found, target)
            files[name] = row.family, whole
            now.append(name)
        else:
            now.append("no model")
        try:
            out = format_for("peft", found).write(found, folder / "peft")
            got = exact(inner, by_peft(row.family, out))
            now.append(counted(len(got), len(inner)))
        except FileFormatError:
            now.append("refused")
        now.append(universal(found).name)
        made.append((row, now))
    read_by = in_comfyui(files, folder / "comfyui") if PYTHON else {}
    return [
        [FAMILIES[row.family].name, row.name,
         *(f"{before} → {read_by.get(one, one if '--' not in one else 'not run')}"
           for before, one in zip(row[-4:], now, strict=False)), now[-1]]
        for row, now in made
    ]  # fmt: skip


HEAD = """# 82 layouts of LoRA files, before and now

Made by `tests/adapter/before_after.py` with the real loaders: diffusers 0.42, PEFT 0.21 and ComfyUI
0.3.75. Each layout is spelled as the program that is named writes it, on the layers of the true
classes at their true widths, rank 4. Before is 30 November 2026, measured in the same way; `-` is
what was refused then.

*Read* is what lorasynth reads exactly. The other columns are what each loader reads exactly of the
file that lorasynth then writes for it: `--for diffusers`, `comfyui` and `peft`, before `--format
diffusers`, `kohya` and `peft`. Text encoders count where they are named, but for diffusers' column
of today: it drops T5 of any file. A PEFT folder cannot hold them and is refused. `auto` is the
format that is written where none is asked for.

| family | layout | read | diffusers | ComfyUI | PEFT | `auto` |
|---|---|---|---|---|---|---|
"""


def page(rows: list[list[str]]) -> str:
    return HEAD + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = table(Path(folder))
    print(page(rows))


if __name__ == "__main__":
    main()
