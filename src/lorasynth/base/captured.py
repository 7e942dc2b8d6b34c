"""Any text-to-image pipeline of diffusers, by its own call.

`type(pipeline).__call__` is run for one step, without its `no_grad`, with latents given and a
stand-in for the scheduler that has the times we ask for and keeps what the denoiser predicted.  So
the packing of latents, ids, masks, the convention of times and the sign of predictions are
diffusers' own, and predictions are in the convention of the pipeline's scheduler.  What diffusers
does not say is a row of `lorasynth.base.families`.
"""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Real
from torch import Tensor
from typing_extensions import override

from lorasynth.base.contract import BaseModel, Guided, SamplingConfig
from lorasynth.base.families import BaseFamily, family_of
from lorasynth.base.latents import scale_of
from lorasynth.base.noising import Discrete, Flow, Noising, ddim, is_flow
from lorasynth.base.texts import Texts, interleave, separate
from lorasynth.core.errors import BaseModelError, ConfigError

#: What a model that was distilled with guidance is told in training: the weight at which guidance
#: does nothing, so that an adapter learns the images as they are.
_TRAINING_GUIDANCE = 1.0

#: Weight of guidance in images, where nothing is asked for.
_GUIDANCE = 3.0

#: Steps of the schedule that the shift of training times is read from; FLUX.2's depends on it.
_SHIFT_STEPS = 50


class _Said(Exception):  # noqa: N818  (it carries a result)
    """Leaves a pipeline's call with what was predicted."""

    def __init__(self, prediction: Any) -> None:
        self.prediction = prediction


class _OneStep:
    """What a pipeline takes for its scheduler: one step at given times."""

    order = 1
    init_noise_sigma = 1.0
    sigmas = (1.0,)  # Wan's call reads one for its caches

    def __init__(self, config: Any, times: Tensor | list[float]) -> None:
        self.config = config
        self.timesteps = times

    def set_timesteps(self, *_: Any, sigmas: Any = None, timesteps: Any = None, **__: Any) -> None:
        """There is one step, whatever is asked for."""

    def set_begin_index(self, _: int) -> None:
        """It begins where it ends."""

    def scale_model_input(self, latents: Tensor, _: Any) -> Tensor:
        """Latents as they are."""
        return latents

    def step(self, prediction: Tensor, *_: Any, **__: Any) -> None:
        """End the call."""
        raise _Said(prediction)


class Captured(BaseModel):
    """A pipeline of one of the known families.

    Attributes:
        row: its family.
        scheduler: the solver of images: the pipeline's own, or DDIM in its place.
    """

    def __init__(self, pipeline: Any, name: str, image_size: int | None = None) -> None:
        row = family_of(type(pipeline).__name__)
        assert row is not None, type(pipeline)
        self.row: BaseFamily = row
        self.pipeline_class = type(pipeline)
        self.denoiser_part, texts = parts_of(type(pipeline))
        lacking = [part for part in row.optional if getattr(pipeline, part, None) is None]
        self.text_parts = {name: part for name, part in texts.items() if part not in lacking}
        super().__init__(pipeline, name, image_size)
        own, flow = pipeline.scheduler, is_flow(pipeline.scheduler)
        self.experts = [one for one in self.denoiser.modules() if hasattr(one, "moe_infer")]
        for module in self.experts:  # diffusers computes no gradient of theirs in evaluation
            module.training = True
        # LCM's samplers draw noise in each step, which an image's seed does not decide.
        drawing = "LCM" in type(own).__name__
        solver = FlowMatchEulerDiscreteScheduler if drawing else type(own)
        discrete = not flow and (row.ddim or drawing)
        self.scheduler = ddim(own) if discrete else solver.from_config(own.config)
        self.few_steps = row.few if any(map(self._has, row.distilled)) else None
        self._noising: Noising = Flow(own, self._shift_of_size) if flow else Discrete(ddim(own))
        self._call = inspect.unwrap(type(pipeline).__call__)
        self._caller = _caller_of(pipeline)
        self._require_plain()

    def _has(self, facts: Mapping[str, Any]) -> bool:
        """Whether the parts are of such classes, and their configurations say so."""

        def said(fact: str) -> Any:
            part, _, setting = fact.rpartition(".")
            if part:
                return getattr(self.pipeline, part).config.get(setting)
            found = self.pipeline.config.get(fact)
            return found[1] if isinstance(found, tuple | list) else found

        return all(said(fact) == value for fact, value in facts.items())

    def _require_plain(self) -> None:
        """Refuse models of these parts that are for something else."""
        taken = int(self.denoiser.config.in_channels)
        expected = self.latent_shape[0] * (4 if self.row.packing == "patches" else 1)
        if taken != expected:
            raise BaseModelError(
                f"a base model must make images of text alone, but the denoiser of {self.name} "
                f"takes {taken} channels, not {expected}, as models for inpainting and editing "
                "do: use the model that it was made from"
            )

    @property
    @override
    def default_targets(self) -> tuple[str, ...]:
        return self.row.targets

    # Sizes

    @property
    def _factor(self) -> int:
        """Pixels along one side of a latent."""
        return scale_of(self.vae).factor(self.vae)

    @override
    def own_image_size(self) -> int:
        if self.row.image_size is not None:
            return self.row.image_size
        for part in (self.denoiser, self.vae):
            size = getattr(part.config, "sample_size", None)
            if size is not None:
                side = size if isinstance(size, int) else size[0]
                return int(side) * (self._factor if part is self.denoiser else 1)
        raise BaseModelError(
            f"the size of the images must be stated for {self.name}, whose configurations have "
            "none: give --size"
        )

    @property
    @override
    def unit(self) -> int:
        return self._factor * self.row.patch

    @override
    def shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        unit = self.unit
        for side in (height, width):
            if side < unit or side % unit:
                raise BaseModelError(
                    f"images of {self.name} must have a multiple of {unit} pixels on each side, "
                    f"but {height} x {width} are asked for"
                )
        channels = scale_of(self.vae).channels(self.vae)
        return channels, height // self._factor, width // self._factor

    # Prompts

    @functools.cached_property
    def _encoding(self) -> dict[str, Any]:
        """Arguments of `encode_prompt` besides the prompts: as the call gives them."""
        call = inspect.signature(self._call).parameters
        taken = inspect.signature(self.pipeline.encode_prompt).parameters
        given = {name: call[name].default for name in taken if name in call}
        given |= {name: value for name, value in self.row.call.items() if name in taken}
        if "max_sequence_length" in given:
            given["max_sequence_length"] = self._longest
        if "do_classifier_free_guidance" in taken:
            given["do_classifier_free_guidance"] = False
        return given

    @functools.cached_property
    def _longest(self) -> int:
        """Tokens of the longest prompt, of the text encoder that takes the longest ones."""
        tokenizer = getattr(self.pipeline, list(parts_of(self.pipeline_class)[1])[-1])
        call = inspect.signature(self._call).parameters["max_sequence_length"].default
        limit = getattr(tokenizer, "model_max_length", None) or call
        return int(min(call, limit))

    @override
    def encode_prompts(self, prompts: Sequence[str]) -> Texts:
        return self._encoded(prompts, self.row.texts)

    @override
    def empty_prompts(self, count: int, negative: str = "") -> Texts:
        prompts = [negative] * count
        if not self.row.negative:
            return self.encode_prompts(prompts)
        default = inspect.signature(self._call).parameters["negative_prompt"].default
        options = {
            "do_classifier_free_guidance": True,
            "negative_prompt": prompts if negative else default,
        }
        return self._encoded(prompts, self.row.negative, **options)

    @torch.no_grad()
    def _encoded(self, prompts: Sequence[str], kept: Mapping[str, int], **options: Any) -> Texts:
        given = {**self._encoding, **options, "prompt": list(prompts), "device": self.device}
        found = self.pipeline.encode_prompt(**given)
        parts = self._turned({name: found[place] for name, place in kept.items()})
        if self.row.lengths != "fixed":
            parts = self._padded(parts["prompt_embeds"], parts.get("prompt_embeds_mask"))
        return Texts({name: self._as_stored(part) for name, part in parts.items()})

    def _turned(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Prompts first where the call has layers first, and back; lists of tensors stay so."""
        turned = self.row.layers_first
        return {k: part.transpose(0, 1) if k in turned else part for k, part in parts.items()}

    def _as_stored(self, part: Tensor) -> Tensor:
        return part.to(self.dtype) if part.is_floating_point() else part

    def _padded(self, rows: Any, mask: Tensor | None) -> dict[str, Tensor]:
        """Prompts of different lengths as one tensor, so that they can be stored and joined."""
        lengths = [len(row) for row in rows] if mask is None else mask.sum(dim=1).tolist()
        longest = max(self._longest, *lengths)
        padded = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
        stated = torch.zeros(len(rows), longest, dtype=torch.long, device=padded.device)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            padded[i, :length] = row[:length]
            stated[i, :length] = 1
        return {"prompt_embeds": padded, "prompt_embeds_mask": stated}

    def _given(self, texts: Texts) -> dict[str, Any]:
        """Prompts as the call takes them."""
        parts: dict[str, Any] = self._turned(texts.parts)
        for name in self.row.unread:
            parts[name] = parts["prompt_embeds"].new_ones(len(texts), 1)
        if self.row.lengths == "fixed":
            return parts
        lengths = parts["prompt_embeds_mask"].sum(dim=1).long().tolist()
        if self.row.lengths == "list":
            rows = zip(parts["prompt_embeds"], lengths, strict=True)
            return {"prompt_embeds": [row[:length] for row, length in rows]}
        return {name: part[:, : max(lengths)] for name, part in parts.items()}

    # Training

    @override
    def draw_times(self, shape: Sequence[int], generator: torch.Generator) -> Real[Tensor, "..."]:
        return self._noising.draw(shape, generator)

    @override
    def add_noise(
        self,
        latents: Float[Tensor, "b c i j"],
        noise: Float[Tensor, "b c i j"],
        times: Real[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        return self._noising.add(latents, noise, times)

    @override
    def denoise(
        self, noisy: Float[Tensor, "b c i j"], times: Real[Tensor, " b"], texts: Texts
    ) -> Float[Tensor, "b c i j"]:
        told = {"guidance_scale": _TRAINING_GUIDANCE} if self.row.guidance == "told" else {}
        return self._unpacked(self._said(noisy, times, texts, **told), noisy)

    def _said(
        self, noisy: Float[Tensor, "b c i j"], times: Real[Tensor, "..."], texts: Texts, **told: Any
    ) -> Tensor:
        """What the denoiser predicts, as the pipeline gives it to its scheduler.

        Args:
            noisy: latents.
            times: one for each, or one for all.
            texts: prompts.
            told: further arguments of the call.
        """
        each = times.dim() > 0 and not self._takes_times
        time = [1.0] if each else times[None]
        with self._given_times(times) if each else nullcontext():
            said: Tensor = self._run(_OneStep(self.scheduler.config, time), noisy, texts, **told)
        return said

    def _run(self, scheduler: Any, latents: Tensor, texts: Texts, **options: Any) -> Any:
        """Run the call until somebody says something."""
        height, width = (side * self._factor for side in latents.shape[2:])
        # HiDream's call makes all images as large in area as this says, and rounds down.
        area = (1 + 1e-9) * math.sqrt(height * width) / self._factor
        vars(self._caller).update(
            scheduler=scheduler, device_of_latents=latents.device, default_sample_size=area
        )
        arguments = {"num_inference_steps": 1, **self.row.call, **self._given(texts), **options}
        try:
            self._call(
                self._caller,
                height=height,
                width=width,
                latents=self._packed(latents),
                output_type="latent",
                **arguments,
            )
        except _Said as said:
            return said.prediction
        except ValueError as error:  # what diffusers' checks of sizes say
            raise BaseModelError(
                f"{self.row.title} must be able to make images of {height} x {width} pixels, but "
                f"{self.name} cannot ({str(error).splitlines()[0]}): choose another size"
            ) from error
        raise AssertionError("the pipeline never asked its denoiser or scheduler")

    @property
    def _takes_times(self) -> bool:
        """Whether the call takes a time for each sample."""
        return self.row.each_time and not self.pipeline.config.get("expand_timesteps")

    @contextmanager
    def _given_times(self, times: Real[Tensor, " b"]) -> Iterator[None]:
        """The denoiser with a time for each sample, where the call, at time 1, has one for all."""

        def change(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            told = kwargs["timestep"]
            own = times.reshape(-1, *[1] * (told.dim() - 1)).to(told)
            return args, {**kwargs, "timestep": told * own}

        handle = self.denoiser.register_forward_pre_hook(change, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _packed(self, latents: Float[Tensor, "b c i j"]) -> Tensor:
        if self.row.packing == "patches":
            packed: Tensor = self.pipeline._pack_latents(latents, *latents.shape)
            return packed
        return latents[:, :, None] if self.row.packing == "frame" else latents

    def _unpacked(
        self, prediction: Tensor, like: Float[Tensor, "b c i j"]
    ) -> Float[Tensor, "b c i j"]:
        if self.row.packing == "patches":
            size = [side * self._factor for side in like.shape[2:]]
            prediction = self.pipeline._unpack_latents(prediction, *size, self._factor)
        elif self.row.packing == "tokens":
            prediction = prediction.mT
        return prediction.reshape(like.shape).to(like.dtype)

    # Images

    @override
    def schedule(
        self, steps: int, shape: Sequence[int] | None = None
    ) -> Iterator[Real[Tensor, ""]]:
        most = int(self.scheduler.config.num_train_timesteps)
        if not 1 <= steps <= most:
            raise ConfigError(f"sampler steps must be from 1 to {most}, but are {steps}")
        self._set_up(steps, shape)
        yield from self.scheduler.timesteps

    def _set_up(self, steps: int, shape: Sequence[int] | None = None) -> None:
        """Let the pipeline set its scheduler's times: its call is left at the denoiser."""

        def stop(*_: Any) -> None:
            raise _Said(None)

        latents = torch.zeros(1, *(shape or self.latent_shape), device=self.device)
        names = {*self.row.texts, *(["prompt_embeds_mask"] if self.row.lengths != "fixed" else [])}
        blank = {
            name: latents.new_ones([1] * (4 if name in self.row.layers_first else 3))
            for name in names
        }
        flat = [name for name in names if "pooled" in name or "mask" in name]
        blank |= {name: blank[name][..., 0] for name in flat}
        handle = self.denoiser.register_forward_pre_hook(stop, prepend=True)
        try:
            with torch.no_grad():
                self._run(self.scheduler, latents, Texts(blank), num_inference_steps=steps)
        finally:
            handle.remove()

    @functools.cached_property
    def _shift(self) -> float:
        found = {}
        own: Callable[..., None] = self.scheduler.set_timesteps

        @functools.wraps(own)
        def watched(*args: Any, **kwargs: Any) -> None:
            found.update(kwargs)
            own(*args, **kwargs)

        self.scheduler.set_timesteps = watched
        try:
            self._set_up(_SHIFT_STEPS)
        finally:
            del self.scheduler.set_timesteps
        return float(found["mu"])

    def _shift_of_size(self) -> float:
        """How far times move toward noise; large images need more of it to be drowned."""
        return self._shift

    @override
    def guided(self, texts: Texts, count: int, config: SamplingConfig) -> Guided:
        """Classifier-free guidance (Ho & Salimans 2022), or what a model was distilled to do."""
        guidance = self.guidance(config.guidance)
        if self.row.guidance == "told":
            if config.negative_prompt:
                raise ConfigError(
                    f"{self.row.title} has its guidance within and takes no negative prompt: "
                    "leave it out"
                )
            return lambda latents, time: self._unpacked(
                self._said(latents, time, texts, guidance_scale=guidance), latents
            )
        if guidance == self.row.off or self.pipeline.config.get("is_distilled"):
            return lambda latents, time: self._unpacked(self._said(latents, time, texts), latents)
        # An adapter may change the text encoder, so each has an empty prompt of its own.
        alone = config.guidance_side == "prompt"
        with self._bare() if alone else nullcontext():
            empty = self.empty_prompts(count, config.negative_prompt)
        samples = len(texts) // count
        empty = empty.map(lambda part: part.repeat_interleave(samples, dim=0))
        both = texts.interleaved(empty, count)

        def predict(latents: Tensor, time: Tensor) -> Tensor:
            if alone:
                said = self._said(latents, time, texts)
                with self._bare():
                    unsaid = self._said(latents, time, empty)
            else:
                inputs = interleave(latents, latents, count)
                said, unsaid = separate(self._said(inputs, time, both), count)
            return self._unpacked(self._guided(said, unsaid, guidance), latents)

        return predict

    @override
    def guidance(self, asked: float | None) -> float:
        if asked is None:
            return _GUIDANCE if self.few_steps is None else self.row.off
        return asked

    def _guided(self, said: Tensor, unsaid: Tensor, guidance: float) -> Tensor:
        """The prediction for the prompt, away from that for nothing said."""
        guided = (unsaid if self.row.off else said) + guidance * (said - unsaid)
        if self.row.rescaled:
            norms = (part.norm(dim=-1, keepdim=True) for part in (said, guided))
            guided = guided * (next(norms) / next(norms))
        return guided

    @override
    def noise(
        self, seeds: Sequence[int], shape: Sequence[int] | None = None
    ) -> Float[Tensor, "b c i j"]:
        drawn = super().noise(seeds, shape)
        return drawn.float() if self.row.exact else drawn


def _caller_of(pipeline: Any) -> Any:
    """A copy that shares all parts, whose scheduler may be replaced.

    A pipeline looks through all modules of all parts for the device that it runs on: milliseconds
    in each call.
    """
    caller = copy.copy(pipeline)
    device = property(lambda self: self.device_of_latents)
    caller.__class__ = type(
        type(pipeline).__name__, (type(pipeline),), {"_execution_device": device}
    )
    return caller


def parts_of(pipeline: type[Any]) -> tuple[str, dict[str, str]]:
    """A pipeline's names for its denoiser, and for each tokenizer and its text encoder."""
    taken = inspect.signature(pipeline.__init__).parameters
    tokenizers = [name for name in taken if name.startswith("tokenizer")]
    pairs = {name: name.replace("tokenizer", "text_encoder") for name in sorted(tokenizers)}
    return "unet" if "unet" in taken else "transformer", pairs
