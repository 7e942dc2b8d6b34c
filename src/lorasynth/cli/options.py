"""Options that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, mps or cuda[:N].")]
Workers = Annotated[int, typer.Option(help="Processes that draw pictures.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of every random stream.")]
Run = Annotated[Path, typer.Option(help="Folder for checkpoints; the same folder resumes.")]

#: One process per core.
CORES = os.cpu_count() or 1
