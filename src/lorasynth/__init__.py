"""lorasynth: one reference picture in, a LoRA file for a text-to-image diffusion model out."""

__version__ = "0.1.0"
