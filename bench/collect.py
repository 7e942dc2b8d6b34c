"""Throughput of fleet training beside the frozen base model and diffusers + PEFT, in one run.

    python bench/collect.py --fleet 32 --pictures-per-step 1 4

The frozen base model (a forward and a backward pass down to its input, which every training of
adapters needs) bounds what a larger batch can gain.  `share` is the fleet's gain over that bound.
The random embedded model is measured unless --base names another: speed does not depend on weights.
All rows take turns, and each reports its median, so that other load on the machine hits them alike.
"""

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table

from lorasynth.base import BaseModel, StableDiffusion, Texts
from lorasynth.base.avatar_model import AvatarModelConfig, build_pipeline
from lorasynth.collect import PRESETS, Recipe, train_fleet
from lorasynth.device import pick_device
from lorasynth.pictures import Subject

#: Runs some steps and returns the seconds of each.
Run = Callable[[], list[float]]


def timed(step: Callable[[], object], base: BaseModel, steps: int) -> list[float]:
    seconds = []
    for _ in range(steps):
        start = now(base)
        step()
        seconds.append(now(base) - start)
    return seconds


def now(base: BaseModel) -> float:
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def inputs(base: BaseModel, batch: int) -> tuple[torch.Tensor, torch.Tensor, Texts]:
    latents = torch.randn(batch, *base.latent_shape).to(base.device, base.dtype)
    timesteps = torch.randint(1000, (batch,), device=base.device)
    return latents, timesteps, base.encode_prompts(["a portrait of sks"] * batch)


def frozen_run(base: BaseModel, batch: int, steps: int) -> Run:
    latents, timesteps, text = inputs(base, batch)
    latents.requires_grad_()
    return lambda: timed(
        lambda: base.denoise(latents, timesteps, text).square().mean().backward(), base, steps
    )


def fleet_run(base: BaseModel, recipe: Recipe, fleet: int, steps: int) -> Run:
    side = base.picture_size
    subjects = [
        Subject(
            id=f"{index}",
            pictures=torch.randint(256, (4, side, side, 3), dtype=torch.uint8),
            captions=["a portrait of sks"] * 4,
        )
        for index in range(fleet)
    ]

    def run() -> list[float]:
        ends: list[float] = []
        train_fleet(
            base,
            replace(recipe, steps=steps + 1),
            subjects,
            on_step=lambda *_: ends.append(now(base)),
        )
        return [after - before for before, after in itertools.pairwise(ends)]

    return run


def peft_run(base: BaseModel, recipe: Recipe, steps: int) -> Run:
    unet = copy.deepcopy(base.denoiser)
    names = list(base.target_linears(recipe.targets))
    unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=names))
    for name, parameter in unet.named_parameters():
        if "lora_A" in name and recipe.trained == "B":
            parameter.requires_grad_(False)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=recipe.learning_rate)
    latents, timesteps, text = inputs(base, recipe.pictures_per_step)

    def step() -> None:
        noisy, target = base.add_noise(latents, torch.randn_like(latents), timesteps)
        loss = (unet(noisy, timesteps, **text.parts).sample - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip or 1.0)
        optimiser.step()

    return lambda: timed(step, base, steps)


def measure(base: BaseModel, recipe: Recipe, fleet: int, steps: int, repeats: int) -> list[float]:
    """Median milliseconds per sample: frozen x 1, frozen x fleet, fleet of 1, fleet, PEFT."""
    m = recipe.pictures_per_step
    runs = [
        (m, frozen_run(base, m, steps)),
        (m * fleet, frozen_run(base, m * fleet, steps)),
        (m, fleet_run(base, recipe, 1, steps)),
        (m * fleet, fleet_run(base, recipe, fleet, steps)),
        (m, peft_run(base, recipe, steps)),
    ]
    seconds: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for taken, (_, run) in zip(seconds, runs, strict=True):
            steps_taken = run()
            taken.extend(steps_taken if repeat else [])  # the first round warms up
    return [
        1000 * statistics.median(taken) / batch
        for taken, (batch, _) in zip(seconds, runs, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="pipeline folder (default: random embedded one)")
    parser.add_argument("--recipe", choices=PRESETS, default="ours")
    parser.add_argument("--fleet", type=int, default=32)
    parser.add_argument("--pictures-per-step", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    device, dtype = pick_device(options.device), getattr(torch, options.dtype)
    if options.base:
        base = BaseModel.load(options.base, device, dtype)
    else:
        base = StableDiffusion(build_pipeline(AvatarModelConfig()).to(device, dtype), "random")
    table = Table(title=f"{device}, {torch.get_num_threads()} threads, ms per sample")
    fleet = options.fleet
    for name in ("pictures/step", "frozen x1", f"frozen x{fleet}", "gain", "fleet of 1"):
        table.add_column(name, justify="right")
    for name in (f"fleet of {fleet}", "gain", "share", "PEFT alone", "fleet is faster"):
        table.add_column(name, justify="right")
    for pictures in options.pictures_per_step:
        recipe = replace(PRESETS[options.recipe], pictures_per_step=pictures)
        one, many, fleet_one, fleet_many, peft = measure(
            base, recipe, fleet, options.steps, options.repeats
        )
        table.add_row(
            str(pictures),
            f"{one:.1f}",
            f"{many:.1f}",
            f"{one / many:.2f}x",
            f"{fleet_one:.1f}",
            f"{fleet_many:.1f}",
            f"{fleet_one / fleet_many:.2f}x",
            f"{fleet_one / fleet_many / (one / many):.0%}",
            f"{peft:.1f}",
            f"{peft / fleet_many:.2f}x",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
