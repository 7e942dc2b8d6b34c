"""Writes families/: a page for each row of `lorasynth.base.families`, and the table of all."""

from pathlib import Path
from typing import NamedTuple

from lorasynth.adapter.families import FAMILIES
from lorasynth.base.families import BASE_MODELS, BaseFamily


class Fact(NamedTuple):
    """What the code does not know of a family.

    Attributes:
        base: what to train on, on the hub.
        sister: a distilled model of the same layers, on the hub; empty: none.
        licence: of both, as far as it is known here.
        unit: pixels of which sides must be a multiple.
        file: what `--family` calls its LoRA files.
        checkpoint: what one file holds; empty: none can be read.
        billions: of parameters in the base's denoiser.
        note: what else one must know.
    """

    base: str
    sister: str
    licence: str
    unit: int
    file: str
    checkpoint: str
    billions: float
    note: str = ""


_DENOISER, _ALL = "the denoiser, beside the other parts' folder", "all networks"
_DDIM = "Images are made by DDIM, whatever sampler came with the model. "
FACTS = {
    "StableDiffusionPipeline": Fact(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "SimianLuo/LCM_Dreamshaper_v7",
        "CreativeML OpenRAIL-M",
        8,
        "sd1",
        _ALL,
        0.86,
        note=f"{_DDIM}LoRA files of Stable Diffusion 2 are of `--family sd2`.",
    ),
    "StableDiffusionXLPipeline": Fact(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "stabilityai/sdxl-turbo",
        "CreativeML OpenRAIL++-M; Turbo: Stability AI's own",
        8,
        "sdxl",
        _ALL,
        2.567,
        note=f"{_DDIM}Turbo is for 512 pixels: give `--size 512`.",
    ),
    "StableDiffusion3Pipeline": Fact(
        "stabilityai/stable-diffusion-3.5-large",
        "stabilityai/stable-diffusion-3.5-large-turbo",
        "Stability AI Community",
        16,
        "sd3",
        _ALL,
        8.057,
        note="T5 may be missing. Nothing in Turbo's files says that it is distilled: give "
        "`--steps 4 --guidance 1`.",
    ),
    "FluxPipeline": Fact(
        "black-forest-labs/FLUX.1-dev",
        "black-forest-labs/FLUX.1-schnell",
        "dev, Krea and Kontext: FLUX.1 non-commercial; schnell: Apache-2.0",
        16,
        "flux1",
        _DENOISER,
        11.901,
        note="Guidance is told to the model, 1 in training; there is no negative prompt.",
    ),
    "Flux2Pipeline": Fact(
        "black-forest-labs/FLUX.2-dev",
        "",
        "FLUX non-commercial",
        16,
        "flux2",
        _DENOISER,
        32.223,
        note="Guidance is told to the model, 1 in training; there is no negative prompt.",
    ),
    "Flux2KleinPipeline": Fact(
        "black-forest-labs/FLUX.2-klein-base-4B",
        "black-forest-labs/FLUX.2-klein-4B",
        "4B: Apache-2.0; 9B: FLUX non-commercial",
        16,
        "flux2",
        _DENOISER,
        3.876,
        note="4B and 9B have other widths: a file of one is refused by the other.",
    ),
    "ChromaPipeline": Fact(
        "lodestones/Chroma1-HD",
        "",
        "Apache-2.0",
        16,
        "chroma",
        _DENOISER,
        8.9,
        note="Of Chroma1-Flash nothing says that it is distilled: give `--guidance 1`.",
    ),
    "ZImagePipeline": Fact(
        "Tongyi-MAI/Z-Image",
        "Tongyi-MAI/Z-Image-Turbo",
        "Apache-2.0",
        16,
        "z-image",
        _DENOISER,
        6.155,
        note="Guidance is counted as diffusers does here: 0 is off.",
    ),
    "QwenImagePipeline": Fact(
        "Qwen/Qwen-Image",
        "",
        "Apache-2.0",
        16,
        "qwen-image",
        _DENOISER,
        20.43,
        note="Guided predictions are given the norm of the unguided ones.",
    ),
    "Lumina2Pipeline": Fact(
        "Alpha-VLLM/Lumina-Image-2.0",
        "",
        "Apache-2.0",
        16,
        "lumina2",
        _DENOISER,
        2.61,
        note="Guided predictions are given the norm of the unguided ones.",
    ),
    "PixArtAlphaPipeline": Fact(
        "PixArt-alpha/PixArt-XL-2-1024-MS",
        "PixArt-alpha/PixArt-LCM-XL-2-1024-MS",
        "OpenRAIL++",
        16,
        "pixart",
        "",
        0.611,
        note="The model of 1024 pixels is told the size of the image. diffusers' pipeline loads no "
        "LoRA files: `PeftModel.from_pretrained(pipe.transformer, folder)` does, with "
        "`--format peft`.",
    ),
    "PixArtSigmaPipeline": Fact(
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "",
        "OpenRAIL++",
        16,
        "pixart",
        "",
        0.611,
        note="diffusers' pipeline loads no LoRA files: "
        "`PeftModel.from_pretrained(pipe.transformer, folder)` does, with `--format peft`.",
    ),
    "SanaPipeline": Fact(
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        "",
        "NVIDIA's own",
        32,
        "sana",
        _DENOISER,
        1.604,
        note="Sana Sprint is another pipeline, without a row.",
    ),
    "WanPipeline": Fact(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "",
        "Apache-2.0",
        16,
        "wan",
        _DENOISER,
        1.419,
        note="Images are videos of one frame. Of Wan 2.2 the 5B is carried (sides are multiples of "
        "32), A14B with its two denoisers is not.",
    ),
    "AuraFlowPipeline": Fact(
        "fal/AuraFlow-v0.3", "", "Apache-2.0", 16, "auraflow", _DENOISER, 6.833
    ),
    "HiDreamImagePipeline": Fact(
        "HiDream-ai/HiDream-I1-Full",
        "HiDream-ai/HiDream-I1-Dev",
        "MIT; Llama 3.1 its own",
        16,
        "hidream",
        _DENOISER,
        17.106,
        note="Its repository lacks the fourth text encoder: load the pipeline once in diffusers "
        "with `text_encoder_4` and `tokenizer_4` of meta-llama/Llama-3.1-8B-Instruct, "
        "`save_pretrained` it into the folder `hidream`. `plan` counts no experts. A prompt's "
        "embedding is that of all layers of Llama, 32 MB in bf16. Dev and Fast are sampled by "
        "Euler's method, since their own sampler draws noise that no seed of an image decides; of "
        "Fast give `--steps 16`.",
    ),
}


def texts() -> dict[str, str]:
    """Each page by its name."""
    rows = {name: BASE_MODELS.get(name) for name in FACTS}
    assert rows.keys() == BASE_MODELS.own.keys(), "a family without facts, or facts without a row"
    pages = {_file(row): _page(row, FACTS[name]) for name, row in rows.items()}
    links = [
        f"| [{row.title}]({_file(row)}) | `hub:{FACTS[name].base}` | {FACTS[name].licence} "
        f"| {FACTS[name].unit} | {_guidance(row)} |"
        for name, row in rows.items()
    ]
    names = "\n".join(page.removesuffix(".md") for page in pages)
    head = (
        "# Families\n\n| family | for example | licence | sides | guidance |\n|---|---|---|---|---|"
    )
    toctree = f"```{{toctree}}\n:hidden:\n\n{names}\n```"
    return {**pages, "index.md": "\n".join([head, *links, "", toctree, ""])}


def write(folder: Path) -> None:
    """Write the pages."""
    folder.mkdir(exist_ok=True)
    for name, text in texts().items():
        (folder / name).write_text(text, encoding="utf-8")


def _file(row: BaseFamily) -> str:
    return f"{row.pipeline.removesuffix('Pipeline').lower()}.md"


def _guidance(row: BaseFamily) -> str:
    if row.guidance == "told":
        return "told to the model"
    norm = ", renormalised" if row.rescaled else ""
    return f"CFG{norm}, {row.off:g} is off"


def _page(row: BaseFamily, fact: Fact) -> str:
    whole = row.pipeline != "HiDreamImagePipeline"  # on the hub; and can be planned
    base = f"--base hub:{fact.base}" if whole else "--base hidream"
    options, gpu = f"{base} --dtype bfloat16", _gpu(fact)
    train = f"{options} --gradient-checkpointing --encoder dlib"
    own = [
        f"lorasynth plan {options} --gradient-checkpointing --gpu {gpu}GB",
        f"lorasynth recipe domain people {base} --encoder dlib --gpu {gpu}GB -o runs/people",
    ]
    steps = [
        f"lorasynth pretrain people {train} -o pretrained",
        f"lorasynth collect people {train} --init-from pretrained -o library",
        "lorasynth fit pca library -o codec",
        f"lorasynth train library --codec codec {base} --encoder dlib -o synthesizer",
    ]
    prompt = f'--prompt "{row.prompt.format(row.trigger)}"'
    use = [
        "lorasynth synth photo.png --synthesizer synthesizer -o me.safetensors",
        f"lorasynth images {options} --lora me.safetensors {prompt} -o me.png",
    ]
    if FAMILIES[fact.file].comfyui_reads is not None:
        use.append(
            f"lorasynth convert me.safetensors comfyui.safetensors --for comfyui "
            f"--family {fact.file}"
        )
    parts = [
        f"# {row.title}",
        f"`{row.pipeline}`" + (f"; also {', '.join(f'`{n}`' for n in row.also)}" * bool(row.also)),
        f"Download: `hf download {fact.base}`. Licence: {fact.licence}; read the card. Sides of "
        f"images are multiples of {fact.unit} pixels. {fact.note}".strip(),
        "## Train",
        _memory(fact),
        f"What it takes, and then all at once:\n\n{_shell(own)}\n\nOr step by step:" * whole,
        _shell(steps),
        "## Use",
        _shell(use),
        _distilled(row, fact),
        "## Relatives",
        "Adapters of this model fit all models of the same layers: fine-tunes, and distilled ones. "
        "What they do there is measured on subjects that nothing has learned from:",
        _shell(
            [
                "lorasynth evaluate aside --base other --allow-other-base --encoder dlib "
                "--synthesizer synthesizer -o other.json"
            ]
        ),
        _run(row, fact),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shell(lines: list[str]) -> str:
    return "\n".join(["```sh", *lines, "```"])


def _gpu(fact: Fact) -> int:
    """GB of a GPU that holds the denoiser."""
    return 24 if 2 * fact.billions < 23 else 80


def _memory(fact: Fact) -> str:
    beyond = "" if _gpu(fact) == 24 else ", more than a GPU of 24 GB has for it"
    return (
        f"The denoiser has {fact.billions:.2f} billion parameters: {2 * fact.billions:.1f} GB in "
        f"bfloat16{beyond}. Training needs more, by the batch."
    )


def _distilled(row: BaseFamily, fact: Fact) -> str:
    if not fact.sister:
        return ""
    told = "; or ".join(
        " and ".join(f"`{name}` is `{value}`" for name, value in facts.items())
        for facts in row.distilled
    )
    said = (
        f"A model is taken for a distilled one where {told}: without `--steps` and `--guidance`, "
        f"`images` then takes {row.few} steps and no guidance, `evaluate` no guidance."
        if told
        else ""
    )
    options = f"--base hub:{fact.sister} --dtype bfloat16 --allow-other-base"
    return "\n\n".join(
        part
        for part in (
            "## The distilled sister",
            f"Train on the base, use the files with `hub:{fact.sister}`. {said}".strip(),
            _shell(
                [
                    f"lorasynth images {options} --lora me.safetensors "
                    f'--prompt "{row.prompt.format(row.trigger)}" -o me.png',
                    f"lorasynth evaluate aside {options} --encoder dlib --synthesizer synthesizer "
                    "--tune 48 -o sister.json",
                ]
            ),
            "`--tune 48` chooses the strength on the first 48 subjects, measures the others; give "
            "it to `images --strength`. Where guidance is on, `images --guidance-side prompt` lets "
            "the adapter act on the prompt's side alone.",
        )
        if part
    )


def _run(row: BaseFamily, fact: Fact) -> str:
    diffusers = (
        "reads no file of it"
        if row.pipeline.startswith("PixArt")
        else "loads the file with an equal update"
    )
    comfyui = (
        "its key maps read the converted file with an equal update"
        if FAMILIES[fact.file].comfyui_reads is not None
        else "has no such model"
    )
    return (
        "## What was run\n\nOn a tiny pipeline of the true classes with random weights: the "
        "denoiser's predictions, gradients and images against diffusers' own "
        "(`tests/base/test_families.py`), and all commands from images to a LoRA file "
        "(`tests/adapter/test_every_family.py`): "
        f"diffusers {diffusers}; ComfyUI: {comfyui}. One file: "
        f"{fact.checkpoint or 'diffusers reads none'}. **Not run: its published weights**, which "
        "cannot be had on the machine that this was written on; so neither likeness nor speed nor "
        "the memory of a real run is known."
    )
