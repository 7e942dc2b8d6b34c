"""A base model: any Stable Diffusion pipeline of diffusers, by folder or hub id.

Nothing here knows which model it is: widths, latent shape, noise schedule and prediction type are
read from the pipeline.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from lorasynth.adapter import Factors
from lorasynth.adapter.components import DENOISER, split
from lorasynth.base.quiet import without_bars
from lorasynth.base.stacked import StackedAdapters
from lorasynth.errors import BaseModelError, LayoutError
from lorasynth.pictures.files import to_unit_range
from lorasynth.randomness import torch_stream
from lorasynth.weights import fingerprint


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How pictures are made.

    Attributes:
        steps: DDIM steps.
        guidance: weight of classifier-free guidance; 1 turns it off.
        batch: latents denoised at once (twice as many U-Net samples with guidance).
    """

    steps: int = 20
    guidance: float = 3.0
    batch: int = 64


class BaseModel:
    """A text-to-image model that adapters are made for; all of its weights are frozen.

    Attributes:
        name: the folder or hub id it came from.
        fingerprint: identifies the weights; written into every adapter made for the model.
        picture_size: side of its pictures in pixels.
        latent_shape: channels, height and width of a latent.
    """

    def __init__(self, pipeline: Any, name: str) -> None:
        self.pipeline = pipeline
        self.name = name
        self.unet: Any = pipeline.unet
        self.vae: Any = pipeline.vae
        self.text_encoder: Any = pipeline.text_encoder
        self.tokenizer = pipeline.tokenizer
        for part in (self.unet, self.vae, self.text_encoder):
            part.requires_grad_(False).eval()
        side = int(pipeline.unet.config.sample_size)
        self.latent_shape = (int(pipeline.unet.config.in_channels), side, side)
        self.picture_size = side * int(pipeline.vae_scale_factor)
        self.scaling = float(pipeline.vae.config.scaling_factor)
        # Whatever sampler the pipeline came with, DDIM takes its noise schedule and prediction
        # type; clipping is for pixels, not for latents.
        self.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False, timestep_spacing="trailing"
        )
        self.fingerprint = fingerprint(self.unet)

    @classmethod
    def load(
        cls,
        name: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "BaseModel":
        """Load a pipeline from a folder or the hub.

        Raises:
            BaseModelError: the folder or repository is missing a part or is not of this kind.
        """
        local = Path(name).is_dir()
        if Path(name).exists() and not local:
            raise BaseModelError(f"a base model is a pipeline folder, but {name} is a file")
        try:
            with without_bars():
                pipeline = StableDiffusionPipeline.from_pretrained(
                    str(name),
                    dtype=torch.float32,
                    safety_checker=None,
                    requires_safety_checker=False,
                    local_files_only=local,
                    use_safetensors=True,
                )
        except Exception as error:
            raise BaseModelError(
                f"a base model must be a whole Stable Diffusion pipeline (folder or hub id), but "
                f"{name} cannot be loaded ({str(error).splitlines()[0]})"
            ) from error
        _check_tokenizer(pipeline, str(name))
        pipeline.set_progress_bar_config(disable=True)
        # The fingerprint is of the weights as stored, so the cast comes after it.
        base = cls(pipeline, str(name))
        for part in (base.unet, base.vae, base.text_encoder):
            nn.Module.to(part, device, dtype)
        return base

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        device: torch.device = self.unet.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's number format."""
        dtype: torch.dtype = self.unet.dtype
        return dtype

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: `epsilon`, `v_prediction` or `sample`."""
        return str(self.scheduler.config.prediction_type)

    def target_linears(self, targets: Sequence[str]) -> dict[str, nn.Linear]:
        """The U-Net's linear layers whose name ends with one of `targets`, sorted by name.

        Raises:
            LayoutError: a target matches no layer.
        """
        linears = {n: m for n, m in self.unet.named_modules() if isinstance(m, nn.Linear)}
        for target in targets:
            if not any(_ends_with(name, target) for name in linears):
                endings = sorted({n.rsplit(".", 1)[-1] for n in linears if not n[-1].isdigit()})
                raise LayoutError(
                    f"a target must end the name of a linear layer of the U-Net, but {target!r} "
                    f"ends none: use names such as {', '.join(endings[:8])}"
                )
        return {
            name: linears[name]
            for name in sorted(linears)
            if any(_ends_with(name, target) for target in targets)
        }

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b tokens width"]:
        """Text embeddings as the U-Net takes them."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        embedded: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return embedded.to(self.dtype)

    @torch.no_grad()
    def encode_pictures(
        self, pictures: UInt8[Tensor, "b h w 3"], batch: int = 64
    ) -> Float[Tensor, "b c i j"]:
        """The means of the pictures' latents, scaled as the U-Net takes them."""
        parts = []
        for part in pictures.split(batch):
            unit = to_unit_range(part.to(self.device)).to(self.dtype)
            parts.append(self.vae.encode(unit).latent_dist.mean * self.scaling)
        return torch.cat(parts)

    @torch.no_grad()
    def decode_latents(
        self, latents: Float[Tensor, "b c i j"], batch: int = 64
    ) -> UInt8[Tensor, "b h w 3"]:
        """Pictures of latents, on the CPU."""
        parts = []
        for part in latents.split(batch):
            decoded = self.vae.decode((part / self.scaling).to(self.dtype)).sample.float()
            pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            parts.append(pixels.permute(0, 2, 3, 1).cpu())
        return torch.cat(parts)

    def add_noise(
        self,
        latents: Float[Tensor, "b c i j"],
        noise: Float[Tensor, "b c i j"],
        timesteps: Int64[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        """Noisy latents, and what the U-Net must predict for them."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        if self.prediction_type == "epsilon":
            return noisy, noise
        if self.prediction_type == "v_prediction":
            return noisy, self.scheduler.get_velocity(latents, noise, timesteps)
        return noisy, latents

    def denoise(
        self,
        noisy: Float[Tensor, "b c i j"],
        timesteps: Int64[Tensor, " b"],
        text: Float[Tensor, "b tokens width"],
    ) -> Float[Tensor, "b c i j"]:
        """The U-Net's prediction."""
        prediction: Tensor = self.unet(noisy, timesteps, text).sample
        return prediction

    @contextmanager
    def attached(self, adapters: Factors | None) -> Iterator[None]:
        """Stacked adapters, attached to U-Net and text encoder inside the context.

        Raises:
            LayoutError: a module is absent or has other widths.
        """
        parts = {DENOISER: self.unet, "text_encoder": self.text_encoder}
        with ExitStack() as stack:
            for component, factors in split(adapters or {}).items():
                if component not in parts:
                    raise LayoutError(
                        f"an adapter may change the U-Net and the text encoder of {self.name}, but "
                        f"this one changes {component}: it is made for another kind of model"
                    )
                network = parts[component]
                stack.enter_context(StackedAdapters(network, _present(network, factors)))
            yield

    def noise(self, seeds: Sequence[int]) -> Float[Tensor, "b c i j"]:
        """Starting noise, one stream per seed, so that a picture does not depend on its batch."""
        drawn = [torch.randn(self.latent_shape, generator=torch_stream(s, "image")) for s in seeds]
        return torch.stack(drawn).to(self.device, self.dtype)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        adapters: Factors | None = None,
        config: SamplingConfig | None = None,
    ) -> UInt8[Tensor, "b h w 3"]:
        """Make one picture per prompt.

        Args:
            prompts: b prompts; with n stacked adapters, b = n * m in the order of the adapters.
            seeds: one per prompt.
            adapters: n stacked adapters, or None for the base model.
            config: sampler options.

        Raises:
            LayoutError: the numbers of prompts, seeds and adapters do not fit.
        """
        config = config or SamplingConfig()
        count = 1 if adapters is None else next(iter(adapters.values())).A.shape[0]
        if not prompts or len(prompts) % count or len(seeds) != len(prompts):
            raise LayoutError(
                "each picture needs a prompt and a seed, and each adapter the same number of "
                f"pictures, but got {len(prompts)} prompts, {len(seeds)} seeds and {count} "
                f"adapters: give a multiple of {count} of both"
            )
        if adapters is None:
            return self._sample_in_batches(prompts, seeds, None, 1, config)
        per_adapter = len(prompts) // count
        fleet = max(config.batch // per_adapter, 1)
        pictures = []
        for start in range(0, count, fleet):
            rows = slice(start, min(start + fleet, count))
            part = {k: type(f)(f.A[rows], f.B[rows]) for k, f in adapters.items()}
            images = slice(rows.start * per_adapter, rows.stop * per_adapter)
            pictures.append(
                self._sample_in_batches(
                    prompts[images], seeds[images], part, rows.stop - rows.start, config
                )
            )
        return torch.cat(pictures)

    def _sample_in_batches(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        adapters: Factors | None,
        count: int,
        config: SamplingConfig,
    ) -> UInt8[Tensor, "b h w 3"]:
        # With adapters the batch is one block per adapter, so it is cut within each block alike.
        per_adapter = len(prompts) // count
        width = max(config.batch // count, 1)
        order = torch.arange(len(prompts)).reshape(count, per_adapter)
        columns = [c.flatten().tolist() for c in order.split(width, dim=1)]
        latents = torch.empty(len(prompts), *self.latent_shape, device=self.device)
        with self.attached(adapters):
            for rows in columns:
                latents[rows] = self._sample_batch(
                    [prompts[i] for i in rows], [seeds[i] for i in rows], count, config
                ).float()
        return self.decode_latents(latents)

    def _sample_batch(
        self, prompts: Sequence[str], seeds: Sequence[int], count: int, config: SamplingConfig
    ) -> Float[Tensor, "b c i j"]:
        text, latents = self.encode_prompts(prompts), self.noise(seeds)
        guided = config.guidance != 1
        if guided:  # per adapter: its conditional samples, then its unconditional ones
            # An adapter may change the text encoder, so each has an empty prompt of its own.
            empty = self.encode_prompts([""] * count).repeat_interleave(len(text) // count, dim=0)
            text = _interleave(text, empty, count)
        self.scheduler.set_timesteps(config.steps, device=self.device)
        for step in self.scheduler.timesteps:
            inputs = _interleave(latents, latents, count) if guided else latents
            prediction = self.denoise(inputs, step.expand(len(inputs)), text)
            if guided:
                said, unsaid = _separate(prediction, count)
                prediction = unsaid + config.guidance * (said - unsaid)
            latents = self.scheduler.step(prediction, step, latents).prev_sample
        return latents


def _present(network: nn.Module, factors: Factors) -> Factors:
    # transformers 5 took the layer `text_model` out of CLIP's text encoder; files still name it.
    outer = "text_model."
    if hasattr(network, outer[:-1]):
        return factors
    return {module.removeprefix(outer): factor for module, factor in factors.items()}


def _check_tokenizer(pipeline: Any, name: str) -> None:
    # Without its files transformers makes a tokenizer that knows no words, in silence.
    words, config = len(pipeline.tokenizer), pipeline.text_encoder.config
    length = pipeline.tokenizer.model_max_length
    if words < config.vocab_size or length > config.max_position_embeddings:
        raise BaseModelError(
            f"a base model's tokenizer must be its text encoder's ({config.vocab_size} tokens, "
            f"texts of {config.max_position_embeddings}), but that of {name} has {words} and texts "
            f"of {length}: is its folder tokenizer/ complete?"
        )


def _interleave(
    first: Float[Tensor, "b *rest"], second: Float[Tensor, "b *rest"], count: int
) -> Float[Tensor, "c *rest"]:
    """Put each adapter's block of `first` before its block of `second`."""
    blocks = [t.unflatten(0, (count, -1)) for t in (first, second)]
    return torch.cat(blocks, dim=1).flatten(0, 1)


def _separate(
    both: Float[Tensor, "c *rest"], count: int
) -> tuple[Float[Tensor, "b *rest"], Float[Tensor, "b *rest"]]:
    """The inverse of `_interleave`."""
    first, second = both.unflatten(0, (count, -1)).chunk(2, dim=1)
    return first.flatten(0, 1), second.flatten(0, 1)


def _ends_with(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")
