"""Fits a codec to an .npy file, in a process that can be killed or weighed.

python fitted.py VECTORS RUN MEMORY KIND [OUT], where KIND is pca or vae.
"""

import sys
from pathlib import Path

import torch

from lorasynth.codec import PCA, VAE, Budget, PCAConfig, VAEConfig
from lorasynth.library.vectors import VectorFile

torch.set_num_threads(1)
vectors, run, memory, kind, *out = sys.argv[1:]
budget = Budget(memory=int(memory), run=Path(run), checkpoint_seconds=0.0)
codec: PCA | VAE = (
    VAE.fit(VectorFile(vectors), VAEConfig(latents=16, epochs=2, batch=64), budget)
    if kind == "vae"
    else PCA.fit(VectorFile(vectors), PCAConfig(latents=64), budget)
)
if out:
    codec.save(out[0])
status = Path("/proc/self/status").read_text()
print(codec.report["computation"]["way"], 1024 * int(status.split("VmHWM:")[1].split()[0]))
