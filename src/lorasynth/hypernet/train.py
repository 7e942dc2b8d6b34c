"""Training of the diffusion hypernetwork, in one process or in several (`engine.processes`)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasynth.core.config import to_dict
from lorasynth.core.device import pick_device
from lorasynth.core.randomness import stream_seed, torch_stream
from lorasynth.core.weights import fingerprint
from lorasynth.engine.processes import Processes
from lorasynth.engine.trainer import Trainer
from lorasynth.hypernet.batches import Batch, TrainingSet, draw_batch
from lorasynth.hypernet.config import HypernetConfig as HypernetConfig
from lorasynth.hypernet.contract import Probe
from lorasynth.hypernet.latent_diffusion import LatentDiffusion
from lorasynth.hypernet.probes import CleanError
from lorasynth.hypernet.regression import LatentRegression


def train(
    data: TrainingSet,
    config: HypernetConfig | None = None,
    *,
    probes: Sequence[Probe] = (),
    anchor: LatentRegression | None = None,
    checkpoint: Path | str | None = None,
    device: torch.device | None = None,
) -> LatentDiffusion:
    """Train a hypernetwork, from its checkpoint if there is one, and return it ready to sample.

    Args:
        data: latents and conditions to learn from; held-out ones stop the training early.
        config: None for the defaults; its batch is that of all processes together.
        probes: measurements of the averaged weights, for the model's history.
        anchor: a regression in the data's latents that diffusion is the residual of, which stays
            as it is (`in_latents_of` makes one of a pretrained one); None for none.
        checkpoint: file to save to and to resume from; None for neither.
        device: where to compute; None for a GPU if there is one.

    Raises:
        ConfigError: the checkpoint belongs to another config or other data, or training diverged,
            or the batch is no multiple of the number of processes.
        BundleError: the checkpoint is damaged.
    """
    config, device = config or HypernetConfig(), device or pick_device()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = _build(config, data.to(device), anchor).to(device)
        trainer = Trainer(
            model,
            config.optimisation,
            None if checkpoint is None else Path(checkpoint),
            device,
            _settings(config, data, anchor),
        )
        trainer.autocast = False  # the network is small: bf16 would cost accuracy and save nothing
        trainer.processes.require_even(config.optimisation.batch)
        if data.held_out is not None:
            probes = [*probes, CleanError.of(data.held_out)]

        def figures(averaged: LatentDiffusion, step: int) -> Mapping[str, float]:
            return {
                name: value for probe in probes for name, value in probe(step, averaged).items()
            }

        trainer.record(
            config.record_every,
            figures,
            lowest=None if data.held_out is None else CleanError.mean,
            patience=config.patience,
        )
        loss = partial(_loss, config, data.to(device), trainer.processes)
        trainer.run("hypernetwork", loss)
    model.history = trainer.history
    return model.eval().requires_grad_(requires_grad=False)


def _loss(
    config: HypernetConfig, data: TrainingSet, processes: Processes, model: Any, step: int
) -> tuple[Tensor, str]:
    """The loss of a step, and a text for the progress."""
    seed, size = config.optimisation.seed, config.optimisation.batch
    torch.manual_seed(stream_seed(seed, "dropout", step, processes.index))
    stream = torch_stream(seed, "batch", step)
    batch = draw_batch(data, size, stream, dropout=config.condition_dropout)
    return denoising_loss(model, batch.map(processes.share)), ""


def denoising_loss(model: LatentDiffusion, batch: Batch) -> Tensor:
    """The mean squared error of what the denoiser predicts of a batch."""
    centre = model.centre(batch.condition, len(batch.t), batch.keep)
    condition = model.condition_normaliser(batch.condition)
    x0, t = model.latent_normaliser(batch.latents) - centre, model.schedule.times(batch.t)
    x_t = model.schedule.mix(x0, batch.eps, t)
    prediction = model.denoiser(x_t, t, condition, batch.keep)
    loss: Tensor = (prediction - model.parameterisation.target(x0, batch.eps, t)).square().mean()
    return loss


def _build(
    config: HypernetConfig, data: TrainingSet, anchor: LatentRegression | None
) -> LatentDiffusion:
    """A fresh model with its normalisers fitted."""
    torch.manual_seed(stream_seed(config.optimisation.seed, "weights"))
    options = replace(config.model, anchor=None if anchor is None else anchor.config)
    model = LatentDiffusion(options, data.latents.shape[1], data.conditions.shape[2])
    if model.anchor is not None and anchor is not None:
        model.anchor.load_state_dict(anchor.state_dict())
        model.anchor.requires_grad_(requires_grad=False)
    model.latent_normaliser.fit(data.latents)
    model.condition_normaliser.fit(data.conditions.flatten(0, 1), each=False)
    return model


def _settings(
    config: HypernetConfig, data: TrainingSet, anchor: LatentRegression | None
) -> dict[str, Any]:
    """All that a run depends on, apart from its optimisation and the machine."""
    digest = hashlib.sha256()
    held = data.held_out or data
    for tensor in (data.latents, data.conditions, held.latents, held.conditions):
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    stated = to_dict(config)
    del stated["optimisation"]
    return {
        "config": stated,
        "data": digest.hexdigest(),
        "anchor": None if anchor is None else fingerprint(anchor),
    }
