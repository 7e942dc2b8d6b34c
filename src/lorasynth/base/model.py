"""Base models: any text-to-image pipeline of diffusers, by its own call, with adapters attached.

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
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Real, UInt8
from torch import Tensor, nn

from lorasynth.adapter import Factor, Factors, count, map_factors
from lorasynth.adapter.components import DENOISER, split
from lorasynth.base.families import BaseFamily, family_of
from lorasynth.base.latents import scale_of
from lorasynth.base.memory import Memory, quantise
from lorasynth.base.noising import Discrete, Flow, ddim, is_flow
from lorasynth.base.outline import stored_fingerprint
from lorasynth.base.sampling import Guided, SamplingConfig, mixed, region_weights
from lorasynth.base.stacked import StackedAdapters
from lorasynth.base.texts import Texts, interleave, separate
from lorasynth.core.errors import BaseModelError, ConfigError, LayoutError, reason_of
from lorasynth.core.places import public_name
from lorasynth.core.randomness import torch_stream
from lorasynth.core.weights import fingerprint
from lorasynth.images.files import to_unit_range

#: What a model that was distilled with guidance is told in training: the weight at which guidance
#: does nothing, so that an adapter learns the images as they are.
_TRAINING_GUIDANCE = 1.0

#: Weight of guidance in images, where nothing is asked for.
_GUIDANCE = 3.0

#: Steps of the schedule that the shift of training times is read from; FLUX.2's depends on it.
_SHIFT_STEPS = 50

#: Pixels that the autoencoder takes at once, and that a denoiser makes at once: 64 images of
#: 64 pixels, or one of 512; 16 of 512.
_ENCODED_AT_ONCE, _MADE_AT_ONCE = 1 << 18, 1 << 22

#: Pixels of which diffusers' pipelines want a multiple on each side, whatever the model.
_DIFFUSERS_UNIT = 8


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


class BaseModel:
    """A text-to-image model that adapters are made for; all of its weights are frozen.

    Attributes:
        pipeline_class: the pipeline of diffusers.
        denoiser_part: the pipeline's name for the denoiser.
        text_parts: the pipeline's names for each tokenizer and its text encoder.
        name: its id on the hub, or the last name of its folder's path.
        fingerprint: identifies the denoiser's weights; written into every adapter.
        denoiser: the U-Net or transformer.
        text_encoders: by their names in the pipeline.
        image_size: side of its images in pixels.
        latent_shape: channels, height and width of a latent.
        frames: sides that images of training are cut to; one square, unless `use_buckets`.
        scheduler: diffusers' solver, which each kind chooses.
        few_steps: solver steps of a model that was distilled to so few; None: it was not.
        experts: layers of the denoiser that send each token to some of their experts.
    """

    def __init__(self, pipeline: Any, name: str, image_size: int | None = None) -> None:
        """Freeze a pipeline.

        Args:
            pipeline: of one of the known families.
            name: for messages.
            image_size: side of the images in pixels; None: the model's own.

        Raises:
            BaseModelError: a part is missing, or the model cannot make images of that size.
        """
        row = family_of(type(pipeline).__name__)
        assert row is not None, type(pipeline)
        self.row: BaseFamily = row
        self.pipeline_class: type[Any] = type(pipeline)
        self.denoiser_part, texts = parts_of(type(pipeline))
        lacking = [part for part in row.optional if getattr(pipeline, part, None) is None]
        self.text_parts = {name: part for name, part in texts.items() if part not in lacking}
        _require_parts(pipeline, name, (self.denoiser_part, "vae", *self.text_parts.values()))
        self._attached: list[StackedAdapters] = []
        #: Of networks that are offloaded: their device, and which one is there.
        self._home: torch.device | None = None
        self._there: Any = None
        self.pipeline = pipeline
        self.name = public_name(name)
        self.denoiser: Any = getattr(pipeline, self.denoiser_part)
        self.vae: Any = pipeline.vae
        self.text_encoders: dict[str, Any] = {
            part: getattr(pipeline, part) for part in self.text_parts.values()
        }
        for part in self._networks():
            part.requires_grad_(False).eval()
        self.image_size = image_size or self.own_image_size()
        self.latent_shape = self.shape_of(self.image_size, self.image_size)
        self.frames: tuple[tuple[int, int], ...] = ((self.image_size, self.image_size),)
        self.fingerprint = (
            stored_fingerprint(name, self.denoiser_part, self.denoiser)
            if self.device.type == "meta"
            else fingerprint(self.denoiser)
        )
        self._set_solver()
        self._require_plain()

    def _set_solver(self) -> None:
        """Choose what makes images, and what noises latents in training."""
        own, flow = self.pipeline.scheduler, is_flow(self.pipeline.scheduler)
        self.experts = [one for one in self.denoiser.modules() if hasattr(one, "moe_infer")]
        for module in self.experts:  # diffusers computes no gradient of theirs in evaluation
            module.training = True
        # LCM's samplers draw noise in each step, which an image's seed does not decide.
        drawing = "LCM" in type(own).__name__
        solver = FlowMatchEulerDiscreteScheduler if drawing else type(own)
        discrete = not flow and (self.row.ddim or drawing)
        self.scheduler: Any = ddim(own) if discrete else solver.from_config(own.config)
        self.few_steps = self.row.few if any(map(self._has, self.row.distilled)) else None
        self._noising = Flow(own, lambda: self._shift) if flow else Discrete(ddim(own))
        self._call = inspect.unwrap(self.pipeline_class.__call__)
        self._caller = _caller_of(self.pipeline)

    @staticmethod
    def load(
        name: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        memory: Memory | None = None,
        image_size: int | None = None,
    ) -> "BaseModel":
        """Load a pipeline of any known kind from a folder or the hub.

        Args:
            name: the folder, or hub:owner/name.
            device: where to; `meta` reads the configurations and a few numbers, which is enough to
                compare the model with what was made for it, and for nothing else.
            dtype: of all weights; an autoencoder that is known to overflow in
                float16 stays in float32.
            memory: what is given up for memory; None: nothing.
            image_size: side of the images in pixels; None: the model's own.

        Raises:
            BaseModelError: the folder or repository is missing a part or is of no known kind.
        """
        from lorasynth.base.opening import check_tokenizers, format_of, open_pipeline

        pipeline = open_pipeline(str(name), outlined=torch.device(device).type == "meta")
        # The fingerprint is of the weights as stored, so the cast comes after it.
        base = BaseModel(pipeline, str(name), image_size)
        if base.device.type == "meta":
            return base
        check_tokenizers(base)
        memory = memory or Memory()
        memory.apply(base.denoiser, str(name))
        if memory.quantize is not None:
            quantise(base.denoiser, memory.quantize, device, dtype)
        for part in base._networks():
            nn.Module.to(part, "cpu" if memory.offload else device, format_of(part, dtype))
        if memory.offload:
            base._home = torch.device(device)
            for part in (base.denoiser, *base.text_encoders.values()):
                part.register_forward_pre_hook(lambda network, _: base._bring(network))
        return base

    def _bring(self, network: Any) -> None:
        """Of networks that are offloaded, have this one alone on the device."""
        if self._home is None or self._there is network:
            return
        if self._there is not None:
            nn.Module.to(self._there, "cpu")
        self._there = nn.Module.to(network, self._home)

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
    def default_targets(self) -> tuple[str, ...]:
        """Endings of the names of the layers that adapters of this family change by default."""
        return self.row.targets

    # Sizes

    @property
    def _factor(self) -> int:
        """Pixels along one side of a latent."""
        return scale_of(self.vae).factor(self.vae)

    def own_image_size(self) -> int:
        """Side in pixels of the images that the model was trained for."""
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
    def unit(self) -> int:
        """Pixels of which each side of an image must be a multiple."""
        return self._factor * self.row.patch

    def shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of images.

        Raises:
            BaseModelError: a side is no multiple of what the model needs.
        """
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

    def encode_prompts(self, prompts: Sequence[str]) -> Texts:
        """Prompts as the denoiser takes them."""
        return self._encoded(prompts, self.row.texts)

    def empty_prompts(self, count: int, negative: str = "") -> Texts:
        """What the model takes where nothing is said, or what images shall not show."""
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

    def draw_times(self, shape: Sequence[int], generator: torch.Generator) -> Real[Tensor, "..."]:
        """Random times to denoise at in training, on the generator's device."""
        return self._noising.draw(shape, generator)

    def add_noise(
        self,
        latents: Float[Tensor, "b c i j"],
        noise: Float[Tensor, "b c i j"],
        times: Real[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        """Noisy latents, and what the denoiser must predict for them."""
        return self._noising.add(latents, noise, times)

    def denoise(
        self, noisy: Float[Tensor, "b c i j"], times: Real[Tensor, " b"], texts: Texts
    ) -> Float[Tensor, "b c i j"]:
        """The denoiser's prediction."""
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
        vars(self._caller).update(scheduler=scheduler, device_of_latents=latents.device)
        if self.row.sized:  # in area, which is rounded down
            area = (1 + 1e-9) * math.sqrt(height * width) / self._factor
            self._caller.default_sample_size = area
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
                f"{self.name} cannot ({reason_of(error)}): choose another size"
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

    def schedule(
        self, steps: int, shape: Sequence[int] | None = None
    ) -> Iterator[Real[Tensor, ""]]:
        """The times of a solver that starts at noise, for latents of a shape; None: the model's.

        `step` is called after each.
        """
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
        """How far times move toward noise; large images need more of it to be drowned."""
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

    def guidance(self, asked: float | None) -> float:
        """The weight of guidance, where none is asked for the one that suits the model."""
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

    def step(
        self,
        prediction: Float[Tensor, "b c i j"],
        time: Real[Tensor, ""],
        latents: Float[Tensor, "b c i j"],
    ) -> Float[Tensor, "b c i j"]:
        """Latents at the time after `time`."""
        less_noisy: Tensor = self.scheduler.step(prediction, time, latents).prev_sample
        return less_noisy

    # Adapters, images

    @property
    def device(self) -> torch.device:
        """Where the denoiser is, or comes to be used."""
        device: torch.device = self._home or self.denoiser.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's dtype."""
        dtype: torch.dtype = self.denoiser.dtype
        return dtype

    def use_buckets(self) -> None:
        """Cut images of training to rectangles near their own ratio, of a square's area at most.

        Their longer sides are those of the square and up to twice that, by eighths.
        """
        size, unit = self.image_size, math.lcm(self.unit, _DIFFUSERS_UNIT)
        step = -(-size // (8 * unit)) * unit
        longer = range(size, 2 * size + 1, step)
        pairs = [(side, size * size // side // unit * unit) for side in longer]
        pairs = [(longer, shorter) for longer, shorter in pairs if shorter]
        self.frames = tuple(sorted({*pairs, *((b, a) for a, b in pairs)}))

    def use_scheduler(self, name: str) -> None:
        """Make images by another solver of diffusers, with this model's noise schedule.

        Raises:
            ConfigError: it is none that diffusers has for this model.
        """
        known = {one.__name__: one for one in self.scheduler.compatibles}
        if name not in known:
            raise ConfigError(
                f"--scheduler must be one of {', '.join(sorted(known))} for {self.name}, but is "
                f"{name!r}"
            )
        self.scheduler = known[name].from_config(self.pipeline.scheduler.config)

    def target_linears(self, targets: Sequence[str]) -> dict[str, nn.Linear]:
        """The denoiser's linear layers whose name ends with one of `targets`, sorted by name.

        Raises:
            LayoutError: a target matches no layer.
        """
        linears = {n: m for n, m in self.denoiser.named_modules() if isinstance(m, nn.Linear)}
        for target in targets:
            if not any(_ends_with(name, target) for name in linears):
                endings = sorted({n.rsplit(".", 1)[-1] for n in linears if not n[-1].isdigit()})
                raise LayoutError(
                    f"a target must end the name of a linear layer of the denoiser, but {target!r} "
                    f"ends none: use names such as {', '.join(endings[:8])}"
                )
        return {
            name: linears[name]
            for name in sorted(linears)
            if any(_ends_with(name, target) for target in targets)
        }

    @torch.no_grad()
    def encode_images(
        self, images: UInt8[Tensor, "b h w 3"], batch: int | None = None
    ) -> Float[Tensor, "b c i j"]:
        """The means of the images' latents, scaled as the denoiser takes them."""
        self._bring(self.vae)
        parts, scale = [], scale_of(self.vae)
        for part in images.split(batch or _at_once(_ENCODED_AT_ONCE, images.shape[1:3])):
            unit = to_unit_range(part.to(self.device)).to(self.vae.dtype)
            parts.append(scale.encode(self.vae, unit).to(self.dtype))
        return torch.cat(parts)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b c i j"]) -> UInt8[Tensor, "b h w 3"]:
        """Images of latents, on the CPU."""
        self._bring(self.vae)
        parts, scale = [], scale_of(self.vae)
        sides = [side * scale.factor(self.vae) for side in latents.shape[2:]]
        for part in latents.split(_at_once(_ENCODED_AT_ONCE, sides)):
            decoded = scale.decode(self.vae, part).float()
            pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            parts.append(pixels.permute(0, 2, 3, 1).cpu())
        return torch.cat(parts)

    @contextmanager
    def attached(self, adapters: Factors | None) -> Iterator[None]:
        """Stacked adapters, from any device, attached to denoiser and text encoders inside.

        Raises:
            LayoutError: a module is absent or has other widths.
        """
        parts = {DENOISER: self.denoiser, **self.text_encoders}
        with ExitStack() as stack:
            for component, factors in split(adapters or {}).items():
                if component not in parts:
                    raise LayoutError(
                        f"an adapter may change the denoiser and {', '.join(self.text_encoders)} "
                        f"of {self.name}, but this one changes {component}: it is made for another "
                        "kind of model"
                    )
                network = parts[component]
                stacked = StackedAdapters(network, _present(network, factors, self.device))
                self._attached.append(stack.enter_context(stacked))
                stack.callback(self._attached.remove, stacked)
            yield

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """The model without the adapters that are attached, inside."""
        for stacked in self._attached:
            stacked.detach()
        try:
            yield
        finally:
            for stacked in self._attached:
                stacked.attach()

    def noise(
        self, seeds: Sequence[int], shape: Sequence[int] | None = None
    ) -> Float[Tensor, "b c i j"]:
        """Starting noise, one stream per seed, so that an image does not depend on its batch."""
        size = tuple(shape or self.latent_shape)
        drawn = [torch.randn(size, generator=torch_stream(s, "image")) for s in seeds]
        noise = torch.stack(drawn).to(self.device, self.dtype)
        return noise.float() if self.row.exact else noise

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        adapters: Factors | None = None,
        config: SamplingConfig | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> UInt8[Tensor, "b h w 3"]:
        """Make one image per prompt.

        Args:
            prompts: b prompts; with n stacked adapters, b = n * m in the order of the adapters.
            seeds: one per prompt.
            adapters: n stacked adapters, or None for the base model.
            config: sampler options; with regions, m images are made, in which each adapter's
                prompts and seeds say what is in its region.
            advance: is told of how many images a step is done, after each.

        Raises:
            LayoutError: the numbers of prompts, seeds, regions and adapters do not fit.
            BaseModelError: the model cannot make images of that size.
            ConfigError: the model takes no negative prompt, or not so many steps.
        """
        config = config or SamplingConfig()
        n = 1 if adapters is None else count(adapters)
        if not prompts or len(prompts) % n or len(seeds) != len(prompts):
            raise LayoutError(
                "each image needs a prompt and a seed, and each adapter the same number of "
                f"images, but got {len(prompts)} prompts, {len(seeds)} seeds and {n} "
                f"adapters: give a multiple of {n} of both"
            )
        if config.regions and len(config.regions) != n:
            raise LayoutError(
                f"each adapter needs a region, but got {len(config.regions)} regions and {n} "
                "adapters: give as many of both"
            )
        if adapters is None:
            return self._sample_in_batches(prompts, seeds, None, 1, config, advance)
        per_adapter = len(prompts) // n
        fleet = n if config.regions else max(self._most_at_once(config) // per_adapter, 1)
        images = []
        for start in range(0, n, fleet):
            rows = slice(start, min(start + fleet, n))
            part = {name: Factor(f.A[rows], f.B[rows]) for name, f in adapters.items()}
            own = slice(rows.start * per_adapter, rows.stop * per_adapter)
            size = rows.stop - rows.start
            images.append(
                self._sample_in_batches(prompts[own], seeds[own], part, size, config, advance)
            )
        return torch.cat(images)[: per_adapter if config.regions else None]

    def _most_at_once(self, config: SamplingConfig) -> int:
        sides = config.height or self.image_size, config.width or self.image_size
        return min(config.batch, _at_once(_MADE_AT_ONCE, sides))

    def _sample_in_batches(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        adapters: Factors | None,
        n: int,
        config: SamplingConfig,
        advance: Callable[[int], None],
    ) -> UInt8[Tensor, "b h w 3"]:
        # With adapters the batch is one block per adapter, so it is cut within each block alike.
        per_adapter = len(prompts) // n
        order = torch.arange(len(prompts)).reshape(n, per_adapter)
        each = max(self._most_at_once(config) // n, 1)
        columns = [c.flatten().tolist() for c in order.split(each, dim=1)]
        sides = config.height or self.image_size, config.width or self.image_size
        latents = torch.empty(len(prompts), *self.shape_of(*sides), device=self.device)
        with self.attached(adapters):
            for rows in columns:
                latents[rows] = self._sample_batch(
                    [prompts[i] for i in rows],
                    [seeds[i] for i in rows],
                    n,
                    config,
                    latents.shape[1:],
                    advance,
                ).float()
        return self.decode_latents(latents)

    def _sample_batch(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        n: int,
        config: SamplingConfig,
        shape: Sequence[int],
        advance: Callable[[int], None] = lambda _: None,
    ) -> Float[Tensor, "b c i j"]:
        texts, latents = self.encode_prompts(prompts), self.noise(seeds, shape)
        scaled = getattr(self.scheduler, "scale_model_input", lambda part, _: part)
        predict = self.guided(texts, n, config)
        weights = region_weights(config.regions, shape[-2:]).to(latents) if config.regions else None
        if weights is not None:  # all blocks are one image from the first step on
            latents = latents[: len(latents) // n].repeat(n, *[1] * len(shape))
        for i, time in enumerate(self.schedule(config.steps, shape)):
            if i == 0:  # known once there are times
                latents = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)
            predicted = predict(scaled(latents, time), time)
            if weights is not None:
                predicted = mixed(predicted, weights)
            latents = self.step(predicted, time, latents)
            advance(len(prompts))
        return latents

    def _networks(self) -> tuple[Any, ...]:
        return (self.denoiser, self.vae, *self.text_encoders.values())


def _require_parts(pipeline: Any, name: str, parts: Sequence[str]) -> None:
    for part in parts:
        if getattr(pipeline, part, None) is None:
            raise BaseModelError(
                f"a base model must be a whole {type(pipeline).__name__}, but {name} has no {part}"
            )


def _present(network: Any, factors: Factors, device: torch.device) -> Factors:
    """The factors on the device, under the names that the network's modules have."""
    here = map_factors(lambda part: part.to(device), factors)
    # transformers 5 took the layer `text_model` out of CLIP's text encoder; files still name it.
    outer = "text_model."
    if hasattr(network, outer[:-1]):
        return here
    return {module.removeprefix(outer): factor for module, factor in here.items()}


def _ends_with(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _at_once(pixels: int, sides: Sequence[int]) -> int:
    """Images of two sides in a batch of so many pixels; from 1 to 64."""
    return max(1, min(64, pixels // (sides[0] * sides[1])))


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
