"""Trains the toy problem as one of several processes; run by its test under accelerate or torchrun.

Usage: processes.py KIND OUT CHECKPOINT.  KIND is `ddp` or `fsdp2`.  The main process writes the
curve to OUT/curve.json and the weights to OUT/weights.safetensors.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import toy
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file

from lorasynth.hypernet import CleanError
from lorasynth.hypernet.probes import GradientNorms
from lorasynth.hypernet.train import HypernetConfig, train

HELD_OUT = toy.conditions(20, seed=60)


def config(steps: int) -> HypernetConfig:
    """Everything that draws random numbers is on."""
    plain = toy.config(30, denoiser_options={"dropout": 0.2, "modulation": "low_rank"})
    return replace(
        plain,
        mixing=0.3,
        condition_noise=0.1,
        record_every=7,
        keep_lowest="x0_error",
        optimisation=replace(plain.optimisation, checkpoint_seconds=0.0, warmup=5),
    )


def fit(accelerator: Accelerator, out: Path, checkpoint: Path | None) -> None:
    probes = [CleanError(toy.truth(HELD_OUT), HELD_OUT), GradientNorms()]
    model = train(
        toy.data(50), config(30), probes=probes, checkpoint=checkpoint, accelerator=accelerator
    )
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "curve.json").write_text(json.dumps(model.history))
        save_file(model.state_dict(), out / "weights.safetensors")


def main() -> None:
    torch.set_num_threads(1)
    kind, out, checkpoint = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == (1 if kind == "one" else 2)
    if kind == "fsdp2":  # which accelerate itself chooses on GPUs alone
        accelerator.state._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2, cpu_ram_efficient_loading=False
        )
        accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
    fit(accelerator, out, checkpoint)
    accelerator.end_training()


if __name__ == "__main__":
    main()
