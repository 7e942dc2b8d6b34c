"""Trains a VAE on an .npy file, in a process that can be killed or weighed.

python trained.py VECTORS RUN MEMORY OUT
"""

import sys
from pathlib import Path

import torch

from lorasynth.codec import VAEConfig
from lorasynth.codec.streamed_vae import StreamingConfig, fit_streamed
from lorasynth.library.vectors import VectorFile

torch.set_num_threads(1)
vectors, run, memory, out = sys.argv[1:]
config = VAEConfig(latents=16, epochs=2, batch=64)
how = StreamingConfig(memory=int(memory), checkpoint_seconds=0.0)
codec = fit_streamed(VectorFile(vectors), config, how, run=Path(run))
codec.save(out)
status = Path("/proc/self/status").read_text()
print(codec.report["computation"]["way"], 1024 * int(status.split("VmHWM:")[1].split()[0]))
