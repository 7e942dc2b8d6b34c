"""Which part of a pipeline a module belongs to, told by the beginning of its name.

Modules of the denoiser (U-Net or transformer) have bare names, since most adapters change nothing
else; those of a text encoder are named from the pipeline's part on.
"""

from lorasynth.adapter.factors import Factor, Factors

#: The denoiser's name for itself here.
DENOISER = ""
#: Text encoders by their names in a pipeline.
TEXT_ENCODERS = ("text_encoder", *(f"text_encoder_{n}" for n in (2, 3, 4)))


def component_of(module: str) -> str:
    """The text encoder that a module is in, or `DENOISER`."""
    part = module.split(".", 1)[0]
    return part if part in TEXT_ENCODERS else DENOISER


def split(factors: Factors) -> dict[str, Factors]:
    """Component -> its factors, under the names that its modules have inside it."""
    parts: dict[str, dict[str, Factor]] = {}
    for module, factor in factors.items():
        component = component_of(module)
        inside = module.removeprefix(f"{component}.") if component else module
        parts.setdefault(component, {})[inside] = factor
    return dict(parts)


def component_name(number: int) -> str:
    """Diffusers' name of a pipeline's text encoder, counted from 1."""
    return "text_encoder" if number == 1 else f"text_encoder_{number}"


def component_number(component: str) -> int:
    """The inverse of `component_name`."""
    return int(component.rpartition("_")[2]) if component[-1].isdigit() else 1
