"""What libraries say while a command runs."""

import os
import warnings


def quiet() -> None:
    """Let the libraries of models report errors only; call before they are imported."""
    for library in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    # Of torch, where bf16 meets float32 weights of a normalisation: slower, and as it should be.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
