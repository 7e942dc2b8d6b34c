"""A script or module, run in two processes on this machine's CPUs, as accelerate launches them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(
    *arguments: object, how: tuple[str, ...] = ("--multi_gpu",)
) -> subprocess.CompletedProcess[str]:
    """Run it, after `-m` for a module.

    `--multi_gpu` is the launcher's word for several processes; with `--cpu` it starts one alone.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", *how]
    command += ["--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    command += ["--dynamo_backend=no", f"--main_process_port={port}", *map(str, arguments)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=200, env=environment
    )
