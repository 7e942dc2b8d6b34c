"""What a base model must do, and what follows from that for all kinds of pipelines.

Nothing here or above knows which model it is: widths, latent shape, noise schedule and prediction
type are read from the pipeline, and a kind of pipeline is one class.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Real, UInt8
from torch import Tensor, nn

from lorasynth.adapter import Factor, Factors, count, map_factors
from lorasynth.adapter.components import DENOISER, split
from lorasynth.base.latents import scale_of
from lorasynth.base.memory import Memory, quantise
from lorasynth.base.outline import stored_fingerprint
from lorasynth.base.stacked import StackedAdapters
from lorasynth.base.texts import Texts
from lorasynth.core.errors import BaseModelError, ConfigError, LayoutError
from lorasynth.core.places import public_name
from lorasynth.core.randomness import torch_stream
from lorasynth.core.weights import fingerprint
from lorasynth.images.files import to_unit_range

#: Pixels that the autoencoder takes at once, and that a denoiser makes at once: 64 images of
#: 64 pixels, or one of 512; 16 of 512.
_ENCODED_AT_ONCE, _MADE_AT_ONCE = 1 << 18, 1 << 22

#: Pixels of which diffusers' pipelines want a multiple on each side, whatever the model.
_DIFFUSERS_UNIT = 8

#: In tokens, where a text encoder has no limit of its own.
_LONGEST_TEXT = 4096

#: Noisy latents and their time -> the prediction that a solver takes.
Guided: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How images are made.

    Attributes:
        steps: solver steps.
        guidance: weight of classifier-free guidance, 1 turns it off (0 in Z-Image, as diffusers
            counts there); or what a model that was distilled with guidance is told; None: 3, and
            off in a model that was distilled to few steps.
        batch: most latents denoised at once (twice as many samples with guidance); large images
            are made in smaller batches.
        height: of the images in pixels; None: the base model's `image_size`.
        width: the same.
        negative_prompt: what the images shall not show, for classifier-free guidance.
        guidance_side: where adapters act in classifier-free guidance: "both", or at the "prompt"
            alone, and the model says by itself what it makes of nothing.
        regions: where in one image each of several adapters acts, as shares of its sides: left,
            top, right, bottom; none: each adapter makes images of its own.
    """

    steps: int = 20
    guidance: float | None = None
    batch: int = 64
    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    guidance_side: Literal["both", "prompt"] = "both"
    regions: tuple[tuple[float, float, float, float], ...] = ()


#: For images that are only measured: their figures are those of images after twenty steps.
MEASURED = SamplingConfig(steps=10)


class BaseModel(ABC):
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

    scheduler: Any
    pipeline_class: type[Any]
    denoiser_part: str
    text_parts: Mapping[str, str]
    few_steps: int | None = None
    experts: Sequence[nn.Module] = ()

    def __init__(self, pipeline: Any, name: str, image_size: int | None = None) -> None:
        """Freeze a pipeline.

        Args:
            pipeline: of `pipeline_class`.
            name: for messages.
            image_size: side of the images in pixels; None: the model's own.

        Raises:
            BaseModelError: a part is missing, or the model cannot make images of that size.
        """
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
        from lorasynth.base.captured import Captured  # a subclass
        from lorasynth.base.opening import open_pipeline

        pipeline = open_pipeline(str(name), outlined=torch.device(device).type == "meta")
        # The fingerprint is of the weights as stored, so the cast comes after it.
        base = Captured(pipeline, str(name), image_size)
        if base.device.type == "meta":
            return base
        _check_tokenizers(base)
        memory = memory or Memory()
        memory.apply(base.denoiser, str(name))
        if memory.quantize is not None:
            quantise(base.denoiser, memory.quantize, device, dtype)
        for part in base._networks():
            nn.Module.to(part, "cpu" if memory.offload else device, _format_of(part, dtype))
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

    # What a kind of pipeline must say

    @property
    @abstractmethod
    def default_targets(self) -> tuple[str, ...]:
        """Endings of the names of the layers that adapters of this family change by default."""

    @abstractmethod
    def own_image_size(self) -> int:
        """Side in pixels of the images that the model was trained for."""

    @abstractmethod
    def shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of images.

        Raises:
            BaseModelError: a side is no multiple of what the model needs.
        """

    @property
    @abstractmethod
    def unit(self) -> int:
        """Pixels of which each side of an image must be a multiple."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Texts:
        """Prompts as the denoiser takes them."""

    @abstractmethod
    def draw_times(self, shape: Sequence[int], generator: torch.Generator) -> Real[Tensor, "..."]:
        """Random times to denoise at in training, on the generator's device."""

    @abstractmethod
    def add_noise(
        self,
        latents: Float[Tensor, "b c i j"],
        noise: Float[Tensor, "b c i j"],
        times: Real[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        """Noisy latents, and what the denoiser must predict for them."""

    @abstractmethod
    def denoise(
        self, noisy: Float[Tensor, "b c i j"], times: Real[Tensor, " b"], texts: Texts
    ) -> Float[Tensor, "b c i j"]:
        """The denoiser's prediction."""

    @abstractmethod
    def schedule(
        self, steps: int, shape: Sequence[int] | None = None
    ) -> Iterator[Real[Tensor, ""]]:
        """The times of a solver that starts at noise, for latents of a shape; None: the model's.

        `step` is called after each.
        """

    @abstractmethod
    def guided(self, texts: Texts, count: int, config: SamplingConfig) -> Guided:
        """The denoiser with guidance, for the prompts of `count` attached adapters."""

    @abstractmethod
    def guidance(self, asked: float | None) -> float:
        """The weight of guidance, where none is asked for the one that suits the model."""

    @abstractmethod
    def empty_prompts(self, count: int, negative: str = "") -> Texts:
        """What the model takes where nothing is said, or what images shall not show."""

    def step(
        self,
        prediction: Float[Tensor, "b c i j"],
        time: Real[Tensor, ""],
        latents: Float[Tensor, "b c i j"],
    ) -> Float[Tensor, "b c i j"]:
        """Latents at the time after `time`."""
        less_noisy: Tensor = self.scheduler.step(prediction, time, latents).prev_sample
        return less_noisy

    # What follows

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
    def decode_latents(
        self, latents: Float[Tensor, "b c i j"], batch: int | None = None
    ) -> UInt8[Tensor, "b h w 3"]:
        """Images of latents, on the CPU."""
        self._bring(self.vae)
        parts, scale = [], scale_of(self.vae)
        sides = [side * scale.factor(self.vae) for side in latents.shape[2:]]
        for part in latents.split(batch or _at_once(_ENCODED_AT_ONCE, sides)):
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
        return torch.stack(drawn).to(self.device, self.dtype)

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


def region_weights(
    regions: Sequence[tuple[float, float, float, float]], sides: Sequence[int]
) -> Float[Tensor, "n h w"]:
    """How much each region's adapter decides at each place of a latent; they add up to 1.

    What lies in several regions, or in none, is shared evenly.
    """
    height, width = sides
    y = (torch.arange(height) + 0.5)[:, None] / height
    x = (torch.arange(width) + 0.5)[None] / width
    inside = torch.stack(
        [((x >= a) & (x < c) & (y >= b) & (y < d)).float() for a, b, c, d in regions]
    )
    inside = torch.where(inside.sum(dim=0) > 0, inside, 1.0)
    return inside / inside.sum(dim=0)


def mixed(predicted: Float[Tensor, "nm ..."], weights: Float[Tensor, "n h w"]) -> Tensor:
    """What n adapters predict of m images, mixed place by place; the same for each of the n.

    MultiDiffusion's rule (Bar-Tal et al. 2023), with a prediction for each region.
    """
    each = predicted.unflatten(0, (len(weights), -1))
    spread = weights.view(len(weights), *[1] * (each.dim() - 3), *weights.shape[1:])
    whole: Tensor = (each * spread.to(each)).sum(dim=0)
    return whole.expand(len(weights), *whole.shape).flatten(0, 1)


def _at_once(pixels: int, sides: Sequence[int]) -> int:
    """Images of two sides in a batch of so many pixels; from 1 to 64."""
    return max(1, min(64, pixels // (sides[0] * sides[1])))


def _require_parts(pipeline: Any, name: str, parts: Sequence[str]) -> None:
    for part in parts:
        if getattr(pipeline, part, None) is None:
            raise BaseModelError(
                f"a base model must be a whole {type(pipeline).__name__}, but {name} has no {part}"
            )


def _check_tokenizers(base: BaseModel) -> None:
    # Without its files transformers makes a tokenizer that knows no words, in silence.
    for name, part in base.text_parts.items():
        tokenizer, config = getattr(base.pipeline, name), base.text_encoders[part].config
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor for images, too
        config = config.get_text_config()
        known = 0 if tokenizer is None else len(tokenizer)
        length = 0 if tokenizer is None else tokenizer.model_max_length
        longest = getattr(config, "max_position_embeddings", _LONGEST_TEXT)
        # T5's table of embeddings has a few rows more than there are words.
        # Tokenizers of language models have limits beyond those of any model, or none.
        limited = config.model_type.startswith(("clip", "t5")) and length > longest
        if known < 0.99 * config.vocab_size or limited:
            raise BaseModelError(
                f"a base model's {name} must be that of its {part} ({config.vocab_size} tokens, "
                f"texts of {longest}), but that of {base.name} has {known} and texts of {length}: "
                f"is its folder {name}/ complete?"
            )


def _format_of(part: Any, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a part: in float16 T5 and Gemma overflow; an autoencoder may."""
    if dtype != torch.float16:
        return dtype
    if getattr(part.config, "force_upcast", False):
        return torch.float32
    overflow = getattr(part.config, "model_type", "") in ("t5", "umt5", "gemma2")
    return torch.bfloat16 if overflow else dtype


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
