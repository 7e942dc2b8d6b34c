"""Fits PCA to an .npy file, in a process that can be killed or weighed.

python fitted.py VECTORS RUN MEMORY [METHOD OUT]
"""

import sys
from pathlib import Path

import torch

from lorasynth.codec import PCAConfig
from lorasynth.codec.out_of_core import OutOfCoreConfig, fit_out_of_core
from lorasynth.library.vectors import VectorFile

torch.set_num_threads(1)
vectors, run, memory, *rest = sys.argv[1:]
how = OutOfCoreConfig(
    memory=int(memory), method="krylov" if rest else "auto", checkpoint_seconds=0.0
)
codec = fit_out_of_core(VectorFile(vectors), PCAConfig(latents=64), how, run=Path(run))
if rest:
    codec.save(rest[1])
status = Path("/proc/self/status").read_text()
print(codec.report["computation"]["way"], 1024 * int(status.split("VmHWM:")[1].split()[0]))
