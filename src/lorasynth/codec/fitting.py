"""Fitting a codec to a library of any size, into a folder, with its curve of explained variance."""

from pathlib import Path

import torch

from lorasynth.codec import CODECS, PCA, Codec, PCAConfig, Scaled, ScaledConfig, VAEConfig
from lorasynth.codec.contract import require_several
from lorasynth.codec.explained_variance import draw_explained_variance
from lorasynth.codec.out_of_core import OutOfCoreConfig, Source, fit_out_of_core
from lorasynth.codec.streamed_vae import StreamingConfig, fit_streamed
from lorasynth.core.atomic import atomic_directory
from lorasynth.core.checkpoint import forget
from lorasynth.core.learned import learned_from
from lorasynth.library import Library
from lorasynth.library.statistics import streaming_statistics

#: What only PCA's folder has.
_CURVE = "explained_variance.png"
#: Names of the states that the fits keep on the way.
_STATES = ("plan", "gram", "moments", "pass", "krylov", "basis-*-*", "way", "training", "best")


def fit_into(
    out: Path,
    name: str,
    source: Source,
    config: object,
    *,
    memory: int,
    run: Path,
    tolerance: float = 1e-3,
    half: bool = False,
    device: torch.device | str = "cpu",
) -> Codec:
    """Fit a codec and save it; PCA, VAE and Scaled take any number of adapters.

    PCA and VAE resume; Scaled takes one pass.

    Args:
        out: folder to write; PCA's has explained_variance.png too.
        name: of the codec.
        source: vectors to fit to.
        config: of the codec's kind.
        memory: bytes that PCA and VAE may take; Scaled takes two blocks of vectors, codecs of
            other packages what they need.
        run: folder for what is kept on the way, until the codec is written.
        tolerance: what PCA may miss where it cannot be exact (`OutOfCoreConfig`).
        half: store the codec's matrices as fp16.
        device: where to compute.

    Raises:
        ConfigError: no such codec, or the memory is too little for it.
        LibraryError: there are too few vectors, one is not finite, or those of a library have
            changed since they were written.
    """
    if isinstance(source, Library):
        source.require_intact()
    kept = run / name
    if isinstance(config, PCAConfig):
        how = OutOfCoreConfig(memory=memory, tolerance=tolerance)
        codec: Codec = fit_out_of_core(source, config, how, run=kept, device=device)
    elif isinstance(config, VAEConfig):
        within = StreamingConfig(memory=memory)
        codec = fit_streamed(source, config, within, run=kept, device=device)
    elif isinstance(config, ScaledConfig):
        require_several(source)
        found = streaming_statistics(source).moments
        codec = Scaled.of(config, found.mean.float(), found.variance.sqrt().float()).to(device)
    else:
        codec = CODECS.get(name).fit(source, config, device=device)
    if isinstance(source, Library):
        codec.learned = learned_from(source.ids)
    with atomic_directory(out, also=[_CURVE]) as folder:
        codec.save(folder, half=half)
        if isinstance(codec, PCA):
            draw_explained_variance(codec, folder / _CURVE)
    forget(kept, *_STATES)
    return codec
