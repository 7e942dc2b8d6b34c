"""What libraries say while a command runs."""

import os


def quiet() -> None:
    """Let the libraries of models report errors only; call before they are imported."""
    for library in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
