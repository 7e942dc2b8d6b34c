"""Throughput of fleet training beside the frozen base model and diffusers + PEFT, in one run.

    python bench/collect.py --fleet 32 --images-per-step 1 4
    python bench/collect.py --network sd15 --dtype bfloat16 --fleet 1 2 4 8 16 32

The frozen base model (a forward and a backward pass down to its input, which every training of
adapters needs) bounds what a larger batch can gain.  `share` is the fleet's gain over that bound.
The random embedded model is measured unless --base names another, or --network the full U-Net of
Stable Diffusion 1.5 (random too): speed does not depend on weights.
All rows take turns, and each reports its median, so that other load on the machine hits them alike.
"""

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from lorasynth.avatars.model import AvatarModelConfig, build_pipeline
from lorasynth.base import BaseModel, Memory, Texts
from lorasynth.core.device import is_out_of_memory, pick_device
from lorasynth.engine import PRESETS, Recipe, train_fleet
from lorasynth.images import Subject

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
    side = base.image_size
    subjects = [
        Subject(
            id=f"{index}",
            photos=torch.randint(256, (4, side, side, 3), dtype=torch.uint8),
            captions=["a portrait of sks"] * 4,
        )
        for index in range(fleet)
    ]

    count = recipe.prior.images if recipe.prior.prompt else 1
    classes = torch.randn(count, *base.latent_shape).to(base.device, base.dtype)

    def run() -> list[float]:
        ends: list[float] = []
        train_fleet(
            base,
            replace(recipe, steps=steps + 1),
            subjects,
            classes=classes,
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
    latents, timesteps, text = inputs(base, recipe.images_per_step)

    def step() -> None:
        noisy, target = base.add_noise(latents, torch.randn_like(latents), timesteps)
        loss = (unet(noisy, timesteps, **text.parts).sample - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip or 1.0)
        optimiser.step()

    return lambda: timed(step, base, steps)


@dataclass
class Timed:
    """Something that is timed: what one step processes, and the seconds of its steps."""

    samples: int
    run: Run
    seconds: list[float] = field(default_factory=list)
    fits: bool = True

    def take(self, *, warm: bool) -> None:
        """Take some steps; they count unless they warm up."""
        if not self.fits:
            return
        try:
            found = self.run()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.fits = False
            torch.cuda.empty_cache()
            return
        self.seconds.extend([] if warm else found)

    @property
    def milliseconds(self) -> float:
        """Median of a sample; not a number where memory did not suffice."""
        if not self.fits:
            return float("nan")
        return 1000 * statistics.median(self.seconds) / self.samples


def samples_of(recipe: Recipe, fleet: int) -> int:
    """What one step of a fleet processes: as many images of the class as of its subjects."""
    return recipe.images_per_step * fleet * (1 if recipe.prior is None else 2)


def operations(base: BaseModel, recipe: Recipe) -> float:
    """Of one sample of a fleet's step, a multiplication and an addition counted as two."""
    one = replace(recipe, images_per_step=1)
    with FlopCounterMode(display=False) as counter:
        fleet_run(base, one, 1, 1)()
    with FlopCounterMode(display=False) as twice:
        fleet_run(base, one, 1, 2)()
    total = twice.get_total_flops() - counter.get_total_flops()
    return total / samples_of(one, 1)


def measure(
    base: BaseModel, recipe: Recipe, fleets: Sequence[int], steps: int, repeats: int
) -> tuple[Timed, dict[int, tuple[Timed, Timed]]]:
    """Time PEFT, and for each fleet, one of 1 among them, both the frozen model and the fleet."""
    m = recipe.images_per_step
    peft = Timed(m, peft_run(base, recipe, steps))
    pairs = {
        n: (
            Timed(m * n, frozen_run(base, m * n, steps)),
            Timed(samples_of(recipe, n), fleet_run(base, recipe, n, steps)),
        )
        for n in sorted({1, *fleets})
    }
    for repeat in range(repeats + 1):
        for timed_one in (peft, *itertools.chain(*pairs.values())):
            timed_one.take(warm=repeat == 0)
    return peft, pairs


def embedded(device: torch.device, dtype: torch.dtype) -> BaseModel:
    return BaseModel(build_pipeline(AvatarModelConfig()).to(device, dtype), "random")


def stable_diffusion(device: torch.device, dtype: torch.dtype) -> BaseModel:
    """The U-Net of Stable Diffusion 1.5 with a small autoencoder and text encoder."""
    small = AvatarModelConfig(
        image_size=512,
        latent_channels=4,
        vae_channels=(32, 64, 64, 64),
        vae_groups=8,
        text_width=768,
        tokens=77,
        heads=12,
    )
    pipeline = build_pipeline(small)
    with device:
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    pipeline.register_modules(unet=unet)
    return BaseModel(pipeline.to(device, dtype), "random, of Stable Diffusion 1.5")


NETWORKS = {"embedded": embedded, "sd15": stable_diffusion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="pipeline folder (default: --network)")
    parser.add_argument("--network", choices=NETWORKS, default="embedded", help="random weights")
    parser.add_argument("--recipe", choices=PRESETS, default="ours")
    parser.add_argument("--fleet", type=int, nargs="+", default=[32])
    parser.add_argument("--images-per-step", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    options = parser.parse_args()
    device, dtype = pick_device(options.device), getattr(torch, options.dtype)
    if options.base:
        base = BaseModel.load(options.base, device, dtype)
    else:
        base = NETWORKS[options.network](device, dtype)
    Memory(gradient_checkpointing=options.gradient_checkpointing).apply(base.denoiser, base.name)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    table = Table(title=f"{where}, {options.dtype}, {base.name}; ms per sample")
    columns = ("images/step", "fleet", "frozen x1", "frozen", "gain", "fleet of 1", "in fleet")
    for name in (*columns, "gain", "share", "TFLOP/s", "PEFT alone", "fleet is faster"):
        table.add_column(name, justify="right")
    for images in options.images_per_step:
        recipe = replace(PRESETS[options.recipe], images_per_step=images)
        work = operations(base, recipe)
        peft, pairs = measure(base, recipe, options.fleet, options.steps, options.repeats)
        alone, single = (one.milliseconds for one in pairs[1])
        for size in options.fleet:
            frozen, fleet = (one.milliseconds for one in pairs[size])
            bound, gain = alone / frozen, single / fleet
            cells = (f"{alone:.1f}", f"{frozen:.1f}", f"{bound:.2f}x")
            cells += (f"{single:.1f}", f"{fleet:.1f}", f"{gain:.2f}x", f"{gain / bound:.0%}")
            cells += (f"{work / fleet / 1e9:.3g}", f"{peft.milliseconds:.1f}")
            table.add_row(str(images), str(size), *cells, f"{peft.milliseconds / fleet:.2f}x")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
