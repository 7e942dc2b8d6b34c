"""Baselines that predict latents from conditions: strong, simple, and with our codec.

They learn from the same library of latents as the hypernetwork and decode with the same codec, so a
difference between them is one of prediction alone.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lorasynth.core.randomness import stream_seed, torch_stream
from lorasynth.edit.latent_library import LatentLibrary

#: Predicts latents from conditions.
Predictor: TypeAlias = Callable[[Float[Tensor, "n m"]], Float[Tensor, "n k"]]


def mean(library: LatentLibrary) -> Predictor:
    """The mean adapter, whoever is asked for."""
    centre = library.latents.mean(dim=0)
    return lambda conditions: centre.expand(len(conditions), -1)


def nearest(library: LatentLibrary) -> Predictor:
    """The adapter of the library's subject whose mean embedding is nearest."""
    centres = functional.normalize(library.conditions.mean(dim=1), dim=1)
    return lambda conditions: library.latents[(conditions @ centres.T).argmax(dim=1)]


#: Penalties that ridge regression chooses from, as multiples of the mean eigenvalue.
_PENALTIES = tuple(10.0**exponent for exponent in range(-4, 4))
_FOLDS = 5


class Ridge:
    """Linear regression with the penalty that predicts left-out subjects best (5 folds).

    Attributes:
        spread: root mean square error on left-out subjects, per latent.
    """

    def __init__(self, library: LatentLibrary) -> None:
        fold = torch.arange(len(library.latents)) % _FOLDS
        errors = torch.zeros(len(_PENALTIES), library.latents.shape[1])
        for k in range(_FOLDS):
            fitted = _ridge(library, fold != k)
            kept = library.conditions[fold == k]
            for i, penalty in enumerate(_PENALTIES):
                guess = fitted(penalty)(kept.flatten(0, 1)).unflatten(0, kept.shape[:2])
                error = (guess - library.latents[fold == k][:, None]).square()
                errors[i] += error.mean(dim=1).sum(dim=0) / len(fold)
        best = int(errors.sum(dim=1).argmin())
        self.spread: Float[Tensor, " k"] = errors[best].sqrt()
        everyone = torch.ones_like(fold, dtype=torch.bool)
        self._predict = _ridge(library, everyone)(_PENALTIES[best])

    def __call__(self, conditions: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
        """Predict latents."""
        return self._predict(conditions)


def _ridge(library: LatentLibrary, rows: Tensor) -> Callable[[float], Predictor]:
    """Ridge regression on some subjects with any penalty, from one eigendecomposition."""
    x = library.conditions[rows].double()
    y = library.latents[rows].double()
    x_mean, y_mean = x.mean(dim=(0, 1)), y.mean(dim=0)
    centred = (x - x_mean).flatten(0, 1)
    targets = (y - y_mean).repeat_interleave(x.shape[1], dim=0)
    values, axes = torch.linalg.eigh(centred.T @ centred)
    along = axes.T @ (centred.T @ targets)

    def fitted(penalty: float) -> Predictor:
        shrunk = axes / (values + penalty * values.mean())
        # in this order no (m, k) matrix is made: k may be a whole adapter's numbers
        return lambda conditions: (
            ((conditions.double() - x_mean) @ shrunk) @ along + y_mean
        ).float()

    return fitted


@torch.random.fork_rng(devices=[])
def mlp(library: LatentLibrary, seed: int = 0, steps: int = 2000) -> Predictor:
    """A two-layer MLP with dropout, stopped where left-out subjects are predicted best."""
    torch.manual_seed(stream_seed(seed, "mlp"))
    (count, per_subject, width), scale = library.conditions.shape, library.latents.std()
    y = library.latents / scale
    held = torch.arange(count) % 10 == 0
    chosen = (~held).nonzero().flatten()
    net = nn.Sequential(
        nn.Linear(width, 256), nn.SiLU(), nn.Dropout(0.2), nn.Linear(256, y.shape[1])
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    stream = torch_stream(seed, "mlp batches")
    best, kept = float("inf"), net.state_dict()
    for step in range(steps):
        rows = chosen[torch.randint(len(chosen), (64,), generator=stream)]
        image = torch.randint(per_subject, (64,), generator=stream)
        net.train()
        loss = functional.mse_loss(net(library.conditions[rows, image]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 25 == 24:
            with torch.no_grad():
                guess = net.eval()(library.conditions[held])
                error = (guess - y[held][:, None]).square().mean().item()
            if error < best:
                best, kept = error, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(kept)
    net.eval().requires_grad_(requires_grad=False)
    return lambda conditions: net(conditions) * scale


#: What makes a predictor of a library, with a seed.
BASELINES: dict[str, Callable[[LatentLibrary, int], Predictor]] = {
    "mean": lambda library, _: mean(library),
    "nearest": lambda library, _: nearest(library),
    "ridge": lambda library, _: Ridge(library),
    "mlp": mlp,
}
