"""What the nodes do, beside their schemas: synthesizers, LoRAs as ComfyUI passes them, MODELs."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import comfy.lora
import comfy.sd
import folder_paths
import safetensors.torch
import torch
from torch import Tensor

from lorasynth import Adapter, Synthesizer
from lorasynth.adapter import map_factors
from lorasynth.base import BaseModel
from lorasynth.base.compatibility import require_made_for
from lorasynth.condition import ConditionEncoder
from lorasynth.core.errors import ConfigError, LayoutError
from lorasynth.edit import LatentLibrary, LatentSpace
from lorasynth.images import PORTRAIT, Subject
from lorasynth.optimise import refined
from lorasynth.optimise.config import REFINE

Tensors: TypeAlias = Mapping[str, Tensor]
SHIPPED = "drawn avatars (shipped)"
FOLDER = "synthesizers"
folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


@dataclass(frozen=True)
class Loaded:
    """What SYNTHESIZER passes: a synthesizer, and where the library beside it would be."""

    synth: Synthesizer
    library: Path

    @cached_property
    def space(self) -> LatentSpace:
        """The latents to edit in."""
        if self.library.parts[:1] != ("bundle",) and not self.library.is_dir():
            raise ConfigError(
                "edits need the latents of a library, but this synthesizer has none: put them into "
                f"models/{FOLDER}/NAME/library, beside models/{FOLDER}/NAME/synthesizer"
            )
        library = LatentLibrary.open(self.library, self.synth.codec)
        return LatentSpace(self.synth.layout, self.synth.codec, library)


class Lora(dict[str, Tensor]):
    """What LORA_MODEL passes: tensors by names that ComfyUI maps, and the adapter they spell."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(adapter.state_dict("auto"))
        self.adapter = adapter


def adapter_of(lora: Tensors) -> Adapter:
    """The adapter of a LORA_MODEL, also of one that other nodes made."""
    if isinstance(lora, Lora):
        return lora.adapter
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        safetensors.torch.save_file({k: v.detach().contiguous() for k, v in lora.items()}, path)
        return Adapter.load(path)


def strengthened(adapter: Adapter, strength: float) -> Adapter:
    """The adapter with ΔW multiplied by a number, of which its metadata takes account."""
    extra = dict(adapter.metadata.extra)
    extra["strength"] = f"{float(extra.get('strength', 1)) * strength:g}"
    return replace(adapter.scaled(strength), metadata=replace(adapter.metadata, extra=extra))


def photos_of(images: Tensor) -> list[Tensor]:
    """The photos of an IMAGE batch (b, height, width, channels)."""
    return list((images[..., :3].float().clamp(0, 1) * 255).round().byte())


def synthesizers() -> list[str]:
    """The shipped one, and the names of folders in models/synthesizers that hold one."""
    places = map(Path, folder_paths.get_folder_paths(FOLDER))
    names = {path.name for place in places for path in place.glob("*")}
    return [SHIPPED, *sorted(name for name in names if _place(name).exists())]


def _place(name: str) -> Path:
    """The description of the synthesizer of that name; where it should be if there is none."""
    inside = ("synthesizer/synthesizer.json", "synthesizer.json")
    roots = [Path(one) / name for one in folder_paths.get_folder_paths(FOLDER)]
    every = [root / one for root in roots for one in inside]
    return next((path for path in every if path.is_file()), every[-1])


def load(name: str, hub_id: str) -> Loaded:
    """Load a synthesizer by its name in `synthesizers`, or from the hub where an id is given."""
    if hub_id := hub_id.strip().removeprefix("hub:"):
        return Loaded(Synthesizer.from_pretrained(f"hub:{hub_id}"), Path("on the hub"))
    if name == SHIPPED:
        return Loaded(Synthesizer.from_pretrained("bundle/synthesizer"), Path("bundle/library"))
    folder = _place(name).parent
    beside = folder.parent if folder.name == "synthesizer" else folder
    return Loaded(Synthesizer.from_pretrained(folder), beside / "library")


def steps_of(text: str) -> dict[str, float]:
    """Attributes and by how much they rise, of `glasses=+1, hair:red=-0.3`."""
    steps = {}
    for part in filter(str.strip, text.replace("\n", ",").split(",")):
        name, _, size = part.partition("=")
        try:
            steps[name.strip()] = float(size)
        except ValueError as error:
            raise ConfigError(
                f"attributes are NAME=STEP, with commas between, but one is {part.strip()!r}"
            ) from error
    return steps


def refine(
    adapter: Adapter,
    photos: list[Tensor],
    base: str,
    encoder: ConditionEncoder,
    steps: int,
    seed: int,
    advance: Callable[[int], None],
) -> Adapter:
    """The adapter trained on with photos; `advance` is told of each step."""
    with torch.inference_mode(False):  # in which ComfyUI runs nodes, and nothing can be trained
        model = BaseModel.load(base)
        require_made_for(model, adapter.metadata.base_fingerprint, "the LoRA")
        photos = [photo.clone() for photo in photos]
        subject = Subject(id="subject", photos=photos, captions=[PORTRAIT] * len(photos))
        own = replace(adapter, factors=map_factors(torch.clone, adapter.factors))
        recipe = replace(REFINE, steps=steps, seed=seed)
        return refined(model, own, subject, recipe, encoder, lambda *_: advance(1))


def apply(model: Any, clip: Any, lora: Tensors, strength: float) -> tuple[Any, Any]:
    """MODEL and CLIP with the LoRA; one that does not fit is refused rather than passed over."""
    keys, weights = comfy.lora.model_lora_keys_unet(model.model, {}), model.model.state_dict()
    ends = (".lora_down.weight", ".lora_A.weight")
    downs = {key.removesuffix(end): lora[key] for key in lora for end in ends if key.endswith(end)}
    found = {stem: keys[stem] for stem in downs if stem in keys}
    extra = lora.adapter.metadata.extra if isinstance(lora, Lora) else {}
    whose = f"the LoRA is for another base model ({extra.get('base_name', 'of unknown name')}): "
    if not found:
        raise LayoutError(f"{whose}this MODEL has none of its {len(downs)} layers")
    for stem, key in found.items():
        weight, needs = weights[key if isinstance(key, str) else key[0]], downs[stem][0].numel()
        has = weight.shape[1:].numel() if weight.is_floating_point() else needs  # else it is packed
        if has != needs:
            raise LayoutError(f"{whose}{stem} has {needs} inputs, but {has} in this MODEL")
    return comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
