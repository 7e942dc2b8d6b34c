"""An adapter handed on: to a pipeline in memory, and to people and the hub with a model card."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasynth.adapter.components import component_of
from lorasynth.core.card import REPOSITORY, Card, as_list, write_card

if TYPE_CHECKING:
    from lorasynth.adapter.adapter import Adapter

_EXTRA = "lorasynth.extra."
#: What architectures of the modelspec begin with, and the hub's tags of such LoRAs.
_TAGS = {"stable-diffusion-xl": "stable-diffusion-xl", "stable-diffusion": "stable-diffusion"}
_TAGS |= {"flux": "flux"}


def misfit(adapter: "Adapter", pipe: Any) -> str:
    """The first layer that a pipeline has not, or with other widths; empty if all fit."""
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    for module, factor in adapter.factors.items():
        component = component_of(module)
        part = getattr(pipe, component, None) if component else denoiser
        layers: dict[str, Any] = dict(part.named_modules()) if part else {}
        name = module.removeprefix(f"{component}.")
        layer = layers.get(name, layers.get(name.removeprefix("text_model.")))
        if layer is None:  # by the names of transformers 4 and 5
            return f"it has no {module}"
        weight = getattr(layer, "base_layer", layer).weight  # beneath other LoRAs
        found = (weight[0].numel(), len(weight))
        if found != (factor.in_features, factor.out_features):
            return f"{module} is {(factor.in_features, factor.out_features)}, but {found} in it"
    return ""


def loaded(pipe: Any) -> set[str]:
    """The names of the adapters that a pipeline has loaded."""
    return {name for names in pipe.get_list_adapters().values() for name in names}


def write_lora_card(adapter: "Adapter", written: Path, format: str, card: Card) -> Path:
    """Write the model card of a LoRA beside its file, or into its folder."""
    from lorasynth.adapter.files import FORMATS

    _, header = FORMATS.get(format).spell(adapter)  # without local paths
    extra = {key.removeprefix(_EXTRA): v for key, v in header.items() if key.startswith(_EXTRA)}
    base = extra.pop("base_name", "")
    on_hub = base.removeprefix("hub:") if base.startswith("hub:") else None
    folder, phrase = (written if written.is_dir() else written.parent), _phrase(adapter)
    architecture = header.get("modelspec.architecture", "").partition("/")[0]
    peft = written.is_dir()
    tags = ["text-to-image", "peft" if peft else "diffusers", "lora", "lorasynth"]
    tags += [] if peft else ["template:sd-lora"]
    tags += [tag for start, tag in _TAGS.items() if architecture.startswith(start)][:1]
    tags += ["synthetic"] if adapter.metadata.synthesised else []
    tags += [f"base_model:adapter:{on_hub}"] if peft and on_hub else []
    data = {
        "library_name": "peft" if peft else "diffusers",
        "base_model": on_hub,
        "instance_prompt": phrase or None,
        "tags": tags,
    }
    how = "made from reference images, not trained," if adapter.metadata.synthesised else "made"
    facts: dict[str, object] = {
        "base model": base.removeprefix("hub:"),
        "its fingerprint": adapter.metadata.base_fingerprint,
        "family": architecture,
        "rank": header["ss_network_dim"],
        "parameters": adapter.layout.size,
        **extra,
    }
    sections = [
        (f"LoRA of {phrase or 'one subject'}", f"A LoRA {how} by {adapter.metadata.created_by}."),
        ("Trigger words", f"Prompts call the subject `{phrase}`." if phrase else "It has none."),
        ("Use", _snippet(written, peft=peft)),
        ("How it was made", as_list(facts)),
        ("Consent", card.consent or _UNSTATED),
    ]
    return write_card(folder, card, data, sections)


_UNSTATED = (
    "Whom this LoRA shows, and whether they agreed, is not stated here. Images made with it may "
    "resemble a real person: use it only with that person's consent, and not to deceive."
)


def _phrase(adapter: "Adapter") -> str:
    return adapter.metadata.trigger_phrase.replace("`", "").replace("\n", " ")


def _snippet(written: Path, *, peft: bool) -> str:
    load = f'pipe.load_lora_weights("{REPOSITORY}", weight_name="{written.name}")'
    if peft:
        load = f'model = PeftModel.from_pretrained(model, "{REPOSITORY}")'
    return f"```python\n{load}  # of this repository, or a folder\n```"
