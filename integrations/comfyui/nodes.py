"""The nodes: a photo's LoRA made, applied, edited, blended, refined, saved and judged."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, io, ui
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lorasynth import Adapter
from lorasynth.adapter import stack
from lorasynth.adapter.addition import merged
from lorasynth.base import BaseModel
from lorasynth.edit import PATHS

from . import handling
from .handling import Loaded, Lora, Tensors

SYNTHESIZER, LORA = io.Custom("SYNTHESIZER"), io.Custom("LORA_MODEL")
_MADE = [LORA.Output(display_name="lora"), io.String.Output(display_name="trigger")]
_SEED = io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True)
_STRENGTH = io.Float.Input("strength", default=1.0, min=-4.0, max=4.0, step=0.05)


def _schema(name: str, title: str, inputs: list[Any], outputs: list[Any], text: str) -> io.Schema:
    return io.Schema(
        node_id=f"Lorasynth{name}",
        display_name=title,
        category="lorasynth",
        description=text,
        inputs=inputs,
        outputs=outputs,
        is_output_node=name in ("SaveLora", "Score"),
    )


class LoadSynthesizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names, tip = handling.synthesizers(), "owner/name: is fetched and used in its place"
        inputs = [
            io.Combo.Input("synthesizer", options=names, default=names[0]),
            io.String.Input("hub_id", default="", optional=True, tooltip=tip),
        ]
        outputs = [SYNTHESIZER.Output(display_name="synthesizer")]
        text = "What makes LoRAs of photos: a folder in models/synthesizers, or one of the hub."
        return _schema("LoadSynthesizer", "Load Synthesizer", inputs, outputs, text)

    @classmethod
    def execute(cls, synthesizer: str, hub_id: str = "") -> io.NodeOutput:
        return io.NodeOutput(handling.load(synthesizer, hub_id))


class LoraFromPhotos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        heat = "1: full diversity over seeds, 0: none, -1: the synthesizer's own"
        inputs = [
            SYNTHESIZER.Input("synthesizer"),
            io.Image.Input("images", tooltip="one or more photos of one subject"),
            _SEED,
            io.Float.Input("temperature", default=-1.0, min=-1.0, max=2.0, step=0.05, tooltip=heat),
            io.Int.Input("face", default=0, max=99, tooltip="from the left; 0: the largest"),
            _STRENGTH,
        ]
        text = "A LoRA of one subject, without training. Of people only with their consent."
        return _schema("LoraFromPhotos", "LoRA from Photos", inputs, _MADE, text)

    @classmethod
    def execute(
        cls, synthesizer: Loaded, images: Tensor, face: int, strength: float, **draw: Any
    ) -> io.NodeOutput:
        if draw["temperature"] < 0:
            draw["temperature"] = None
        made = synthesizer.synth(handling.photos_of(images), face=face or None, **draw)
        made = handling.strengthened(made, strength)
        return io.NodeOutput(Lora(made), made.metadata.trigger_phrase)


class LoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Combo.Input("name", options=folder_paths.get_filename_list("loras"))]
        text = "A file of models/loras, in any spelling that lorasynth reads, to edit or blend."
        return _schema("LoadLora", "Load LoRA to Edit", inputs, _MADE, text)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        adapter = Adapter.load(folder_paths.get_full_path_or_raise("loras", name))
        return io.NodeOutput(Lora(adapter), adapter.metadata.trigger_phrase)


class ApplyLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        clip = io.Clip.Input("clip", optional=True)
        inputs = [io.Model.Input("model"), LORA.Input("lora"), _STRENGTH, clip]
        outputs = [io.Model.Output(display_name="MODEL"), io.Clip.Output(display_name="CLIP")]
        text = "Changes MODEL, and CLIP if there is one; a LoRA that does not fit is an error."
        return _schema("ApplyLora", "Apply LoRA", inputs, outputs, text)

    @classmethod
    def execute(cls, model: Any, lora: Tensors, strength: float, clip: Any = None) -> io.NodeOutput:
        return io.NodeOutput(*handling.apply(model, clip, lora, strength))


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        formats, tip = ["auto", "kohya", "diffusers", "comfyui"], "auto: ComfyUI, diffusers read it"
        inputs = [
            LORA.Input("lora"),
            io.String.Input("name", default="lorasynth/me"),
            io.Combo.Input("format", options=formats, default="auto", tooltip=tip),
        ]
        outputs, text = [io.String.Output(display_name="file")], "Writes a file in models/loras."
        return _schema("SaveLora", "Save LoRA", inputs, outputs, text)

    @classmethod
    def execute(cls, lora: Tensors, name: str, format: str) -> io.NodeOutput:
        root = folder_paths.get_folder_paths("loras")[0]
        folder, stem, number, *_ = folder_paths.get_save_image_path(name, root)
        path = Path(folder) / f"{stem}_{number:05}_.safetensors"
        handling.adapter_of(lora).save(path, format)
        file = path.relative_to(root).as_posix()
        return io.NodeOutput(file, ui=ui.PreviewText(file))


class EditAttributes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        tip = "NAME=STEP, such as glasses=+1, hair:red=-0.3; the error of a wrong one lists all"
        attributes = io.String.Input("attributes", default="glasses=+1", tooltip=tip)
        inputs = [SYNTHESIZER.Input("synthesizer"), LORA.Input("lora"), attributes]
        text = "Changes attributes of the LoRA's subject, and keeps all others."
        return _schema("EditAttributes", "Edit Attributes", inputs, _MADE[:1], text)

    @classmethod
    def execute(cls, synthesizer: Loaded, lora: Tensors, attributes: str) -> io.NodeOutput:
        steps, space = handling.steps_of(attributes), synthesizer.space
        return io.NodeOutput(Lora(space.moved(handling.adapter_of(lora), space.direction(steps))))


class Blend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            LORA.Input("start"),
            LORA.Input("end"),
            io.Float.Input("share", default=0.5, min=0.0, max=1.0, step=0.05),
            io.Combo.Input("path", options=["lerp", "slerp"], default="lerp"),
            SYNTHESIZER.Input("synthesizer", optional=True),
        ]
        text = "The LoRA between two: in the latents of a synthesizer, or else of weights."
        return _schema("Blend", "Blend LoRAs", inputs, _MADE[:1], text)

    @classmethod
    def execute(
        cls, start: Tensors, end: Tensors, share: float, path: str, synthesizer: Any = None
    ) -> io.NodeOutput:
        ends = handling.adapter_of(start), handling.adapter_of(end)
        if synthesizer is None:
            return io.NodeOutput(Lora(merged(ends, [1 - share, share], "sum", 1, 0)[0]))
        return io.NodeOutput(Lora(*synthesizer.space.between(*ends, [share], PATHS[path])))


class Refine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            SYNTHESIZER.Input("synthesizer"),
            LORA.Input("lora"),
            io.Image.Input("photos", tooltip="of the LoRA's subject"),
            io.String.Input("base", default="bundle/base", tooltip="folder, or hub:owner/name"),
            io.Int.Input("steps", default=50, min=1, max=1000),
            _SEED,
        ]
        text = "Trains the LoRA on with photos, by a pipeline; unchanged where that is no better."
        return _schema("Refine", "Refine LoRA", inputs, _MADE[:1], text)

    @classmethod
    def execute(
        cls, synthesizer: Loaded, lora: Tensors, photos: Tensor, base: str, steps: int, seed: int
    ) -> io.NodeOutput:
        adapter, shown = handling.adapter_of(lora), handling.photos_of(photos)
        encoder, progress = synthesizer.synth.encoder, ProgressBar(steps)
        return io.NodeOutput(
            Lora(handling.refine(adapter, shown, base, encoder, steps, seed, progress.update))
        )


class Images(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            LORA.Input("lora"),
            io.String.Input("prompt", default="a portrait of sks, smiling", multiline=True),
            io.String.Input("base", default="bundle/base", tooltip="folder, or hub:owner/name"),
            io.Int.Input("count", default=1, min=1, max=64),
            _SEED,
        ]
        outputs = [io.Image.Output(display_name="images")]
        text = "Images by a diffusers pipeline that is no checkpoint, such as that of the avatars."
        return _schema("Images", "Images by a Pipeline", inputs, outputs, text)

    @classmethod
    def execute(cls, lora: Tensors, base: str, seed: int, count: int, prompt: str) -> io.NodeOutput:
        adapters, seeds = stack([handling.adapter_of(lora).factors]), range(seed, seed + count)
        images = BaseModel.load(base).sample([prompt] * count, seeds, adapters)
        return io.NodeOutput(images.float() / 255)


class Score(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        tip = "of the subject, best others than those that the LoRA is made of"
        photos = io.Image.Input("photos", tooltip=tip)
        inputs = [SYNTHESIZER.Input("synthesizer"), io.Image.Input("images"), photos]
        outputs = [io.Float.Output(display_name="similarity")]
        text = "Mean cosine of images and reference photos, by the synthesizer's encoder."
        return _schema("Score", "Identity Similarity", inputs, outputs, text)

    @classmethod
    def execute(cls, synthesizer: Loaded, images: Tensor, photos: Tensor) -> io.NodeOutput:
        real, synth = handling.photos_of(photos), synthesizer.synth
        synth.embed(real)  # refuses what shows no subject, which images that were made may
        a, b = (synth.encoder.see(part).embeddings for part in (handling.photos_of(images), real))
        score = float(cosine_similarity(a[:, None], b, dim=2).mean())
        return io.NodeOutput(score, ui=ui.PreviewText(f"identity similarity {score:.3f}"))


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        making = [LoadSynthesizer, LoraFromPhotos, LoadLora, ApplyLora, SaveLora]
        return [*making, EditAttributes, Blend, Refine, Images, Score]


async def comfy_entrypoint() -> Extension:
    return Extension()
