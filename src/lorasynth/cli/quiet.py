"""What libraries say while a command runs."""

import os


def quiet() -> None:
    """Let diffusers and transformers report errors only; call before they are imported."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
