"""The families of text-to-image models, one row each: what diffusers' pipeline does not say itself.

Everything else (packing of ids, masks, time conventions, signs, learned variances) is done by the
pipeline's own call, which `lorasynth.base.model` runs for one step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lorasynth.core.registry import Registry

#: Attention and feed-forward layers under the names that most transformers of diffusers have.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_USUAL = (*_ATTENTION, "ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True, kw_only=True)
class BaseFamily:
    """What must be known of a pipeline besides its own call and configurations.

    Attributes:
        pipeline: the class of diffusers that makes images of text.
        title: its name for people.
        also: pipelines of the same parts, whose folders are taken as `pipeline`'s.
        texts: results of `encode_prompt` that the call takes, by name: their places in the tuple.
        negative: the same for what stands for nothing said; empty: encoded as prompts are.
        lengths: how prompts of different lengths are given: "fixed": all are padded alike; "mask":
            padded to the longest, with `prompt_embeds_mask`; "list": a list of tensors.
        layers_first: those whose first axis runs over an encoder's layers, and the second over
            prompts.
        unread: arguments that the call insists on beside given prompts, though nothing reads them.
        call: constant arguments of the call and of `encode_prompt`.
        packing: the call's latents: "none": as ours; "patches": 2 x 2 patches as tokens; "tokens":
            ours go in and tokens come out; "frame": a video of one frame.
        patch: pixels of a side of our latents that the denoiser takes as one token.
        guidance: "weighed": classifier-free; "told": the denoiser was distilled with guidance and
            is told its weight.
        off: the weight at which guidance does nothing.
        distilled: what says that a model was distilled to few steps without guidance: alternatives
            of facts, `part.setting` of a part's configuration, or its class, and their values.
        few: solver steps of such a model.
        rescaled: whether a guided prediction gets the norm of the one with the prompt.
        each_time: whether the call takes a time for each sample; else the denoiser is given them.
        exact: whether latents stay in float32 whatever the format of the weights.
        ddim: whether images are made by DDIM, not by the scheduler that came with the model.
        sized: whether the call makes all images as large as its pipeline's `default_sample_size`.
        image_size: side of images in pixels, where the configurations have none that is meant.
        targets: endings of the names of the layers that adapters change by default.
        left_out: arguments that keep a pipeline from loading parts that are not used.
        optional: a text encoder that a folder may lack, and its tokenizer.
        trigger: word for the subject.
        prompt: what an image of it shows.
    """

    pipeline: str
    title: str
    also: tuple[str, ...] = ()
    texts: Mapping[str, int] = field(default_factory=lambda: {"prompt_embeds": 0})
    negative: Mapping[str, int] = field(default_factory=dict)
    lengths: Literal["fixed", "mask", "list"] = "fixed"
    layers_first: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    call: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    packing: Literal["none", "patches", "tokens", "frame"] = "none"
    patch: int = 1
    guidance: Literal["weighed", "told"] = "weighed"
    off: float = 1.0
    distilled: tuple[Mapping[str, Any], ...] = ()
    few: int = 4
    rescaled: bool = False
    each_time: bool = True
    exact: bool = False
    ddim: bool = False
    sized: bool = False
    image_size: int | None = None
    targets: tuple[str, ...] = _USUAL
    left_out: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    trigger: str = "sks"
    prompt: str = "a portrait of {}"


#: By the name of the pipeline's class; other packages add rows by entry points.
BASE_MODELS: Registry[BaseFamily] = Registry(
    "base model", "lorasynth.base_models", "lorasynth.base.families"
)

_POOLED = {"prompt_embeds": 0, "pooled_prompt_embeds": 2}
_MASKED = {"prompt_embeds": 0, "prompt_attention_mask": 1}
_NEGATIVE_MASKED = {"prompt_embeds": 2, "prompt_attention_mask": 3}
_BINNED = {"guidance_scale": 1.0, "use_resolution_binning": False, "clean_caption": False}

_LCM = {"scheduler": "LCMScheduler"}
#: SDXL Turbo's sampler.
_ADD = {"scheduler": "EulerAncestralDiscreteScheduler", "scheduler.timestep_spacing": "trailing"}

_ROWS = (
    BaseFamily(
        pipeline="StableDiffusionPipeline",
        title="Stable Diffusion 1 and 2",
        also=(
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "LatentConsistencyModelPipeline",
            "LatentConsistencyModelImg2ImgPipeline",
        ),
        distilled=(_LCM, _ADD),
        ddim=True,
        left_out={"safety_checker": None, "requires_safety_checker": False},
    ),
    BaseFamily(
        pipeline="StableDiffusionXLPipeline",
        title="Stable Diffusion XL",
        also=("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        texts=_POOLED,
        negative={"prompt_embeds": 1, "pooled_prompt_embeds": 3},
        distilled=(_LCM, _ADD),
        ddim=True,
        left_out={"add_watermarker": False},
    ),
    BaseFamily(
        pipeline="StableDiffusion3Pipeline",
        title="Stable Diffusion 3 and 3.5",
        also=("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
        texts=_POOLED,
        optional=("text_encoder_3", "tokenizer_3"),
        patch=2,
    ),
    BaseFamily(
        pipeline="FluxPipeline",
        title="FLUX.1 (dev, schnell, Krea, Kontext)",
        also=(
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxKontextPipeline",
            "FluxKontextInpaintPipeline",
        ),
        texts={"prompt_embeds": 0, "pooled_prompt_embeds": 1},
        call={},
        packing="patches",
        patch=2,
        guidance="told",
        distilled=({"transformer.guidance_embeds": False},),
    ),
    BaseFamily(
        pipeline="Flux2Pipeline",
        title="FLUX.2 dev",
        call={},
        packing="tokens",
        guidance="told",
        targets=(*_ATTENTION, "to_qkv_mlp_proj", "ff.linear_in"),
    ),
    BaseFamily(
        pipeline="Flux2KleinPipeline",
        title="FLUX.2 klein",
        also=("Flux2KleinInpaintPipeline", "Flux2KleinKVPipeline"),
        packing="tokens",
        distilled=({"is_distilled": True},),
        targets=(*_ATTENTION, "to_qkv_mlp_proj", "ff.linear_in"),
    ),
    BaseFamily(
        pipeline="ChromaPipeline",
        title="Chroma",
        also=("ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
        texts={"prompt_embeds": 0, "prompt_attention_mask": 2},
        packing="patches",
        patch=2,
    ),
    BaseFamily(
        pipeline="ZImagePipeline",
        title="Z-Image (base, Turbo)",
        also=("ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
        lengths="list",
        call={"guidance_scale": 0.0},
        off=0.0,
        distilled=({"scheduler.shift": 3.0},),  # the base's is 6
        few=9,
        patch=2,
        exact=True,
        targets=(*_ATTENTION, *(f"feed_forward.w{n}" for n in (1, 2, 3))),
    ),
    BaseFamily(
        pipeline="QwenImagePipeline",
        title="Qwen-Image",
        also=("QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
        texts={"prompt_embeds": 0, "prompt_embeds_mask": 1},
        lengths="mask",
        call={"true_cfg_scale": 1.0},
        packing="patches",
        patch=2,
        rescaled=True,
        image_size=1024,
        targets=(*_ATTENTION, "img_mlp.net.0.proj", "img_mlp.net.2"),
    ),
    BaseFamily(
        pipeline="Lumina2Pipeline",
        title="Lumina-Image 2",
        also=("Lumina2Text2ImgPipeline",),
        texts=_MASKED,
        negative=_NEGATIVE_MASKED,
        patch=2,
        rescaled=True,
        targets=(*_ATTENTION, *(f"feed_forward.linear_{n}" for n in (1, 2, 3))),
    ),
    *(
        BaseFamily(
            pipeline=f"PixArt{one}Pipeline",
            title=f"PixArt {one}",
            texts=_MASKED,
            call=_BINNED,
            distilled=(_LCM,),
            patch=2,
        )
        for one in ("Alpha", "Sigma")
    ),
    BaseFamily(
        pipeline="SanaPipeline",
        title="Sana",
        also=("SanaPAGPipeline",),
        texts=_MASKED,
        negative=_NEGATIVE_MASKED,
        call=_BINNED,
        exact=True,
        targets=_ATTENTION,
    ),
    BaseFamily(
        pipeline="WanPipeline",
        title="Wan 2.1 and 2.2 (single images)",
        call={"guidance_scale": 1.0, "num_frames": 1},
        packing="frame",
        patch=2,
        exact=True,
        image_size=480,
        targets=(*_ATTENTION, "ffn.net.0.proj", "ffn.net.2"),
    ),
    BaseFamily(
        pipeline="AuraFlowPipeline",
        title="AuraFlow",
        unread=("prompt_attention_mask",),
        patch=2,
        each_time=False,
        image_size=1024,
        targets=(*_ATTENTION, "ff.linear_1", "ff.linear_2", "ff.out_projection"),
    ),
    BaseFamily(
        pipeline="HiDreamImagePipeline",
        title="HiDream-I1",
        texts={"prompt_embeds_t5": 0, "prompt_embeds_llama3": 2, "pooled_prompt_embeds": 4},
        negative={"prompt_embeds_t5": 1, "prompt_embeds_llama3": 3, "pooled_prompt_embeds": 5},
        layers_first=("prompt_embeds_llama3",),
        distilled=({"scheduler": "FlowMatchLCMScheduler"},),
        few=28,
        patch=2,
        sized=True,
        image_size=1024,
        targets=("to_q", "to_k", "to_v", "to_out"),
    ),
)
for _row in _ROWS:
    BASE_MODELS.register(_row.pipeline)(_row)


def family_of(pipeline: str) -> BaseFamily | None:
    """The family whose parts a pipeline of diffusers has, by the name of its class."""
    if pipeline in BASE_MODELS.names():  # of another package, which is imported only now
        return BASE_MODELS.get(pipeline)
    rows = (row for row in BASE_MODELS.own.values() if pipeline in row.also)
    return next(rows, None)
