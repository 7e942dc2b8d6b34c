"""A small IP-Adapter (Ye et al. 2023): the family of adapters that the paper argues against.

Cross-attention to a few tokens made of the condition is added to each cross-attention to the text.
It is trained once, for all subjects, so that a new subject costs nothing; no LoRA comes of it.
The layers are those of diffusers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.base import BaseModel
from lorasynth.condition import ConditionEncoder
from lorasynth.core.config import to_dict
from lorasynth.core.errors import ConfigError
from lorasynth.core.randomness import stream_seed, torch_stream
from lorasynth.engine.loop import denoising_losses
from lorasynth.engine.trainer import Optimisation, Trainer
from lorasynth.images import SubjectSource
from lorasynth.predict.tasks import ENCODED, draw_task, encode_with_embeddings

_CROSS = "attn2.processor"


@dataclass(frozen=True, kw_only=True)
class IPAdapterConfig:
    """How an IP-Adapter is built and trained.

    Attributes:
        tokens: made of one condition.
        dropped: share of the subjects of a step without a condition, for guidance.
        optimisation: its batch is the number of subjects.
    """

    tokens: int = 4
    dropped: float = 0.1
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=10_000, batch=64, lr=1e-3)
    )


class IPAdapter(nn.Module):
    """Tokens of a condition, and the layers that attend to them.

    Args:
        config: how it is built.
        unet: of the base model, whose own keys and values the new layers start from.
        condition_width: m, the width of a condition.
    """

    def __init__(self, config: IPAdapterConfig, unet: Any, condition_width: int) -> None:
        super().__init__()
        width = unet.config.cross_attention_dim
        self.project = MultiIPAdapterImageProjection(
            [ImageProjection(condition_width, width, config.tokens)]
        )
        self.names = [name for name in unet.attn_processors if name.endswith(_CROSS)]
        layers = []
        for name in self.names:
            attention = unet.get_submodule(name.removesuffix(".processor"))
            layer = IPAdapterAttnProcessor2_0(
                attention.to_k.out_features, width, num_tokens=(config.tokens,)
            )
            layer.to_k_ip[0].weight.data.copy_(attention.to_k.weight)
            layer.to_v_ip[0].weight.data.copy_(attention.to_v.weight)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    @contextmanager
    def attached(
        self,
        unet: Any,
        conditions: Float[Tensor, "n m"],
        *,
        guided: bool = False,
        scale: float = 1.0,
    ) -> Iterator[None]:
        """Let the U-Net attend to conditions inside the context.

        Args:
            unet: of the base model; as it was afterwards.
            conditions: of equal blocks of the batch; zeros stand for none.
            guided: the second half of the batch is without, as classifier-free guidance has it.
            scale: multiplies what attention to them adds.

        Raises:
            ConfigError: inside, where a batch is no multiple of the conditions.
        """
        if guided:
            conditions = torch.cat([conditions, 0 * conditions])
        for layer in self.layers:
            assert isinstance(layer, IPAdapterAttnProcessor2_0)
            layer.scale = [scale]
        before = unet.attn_processors
        mine = dict(zip(self.names, self.layers, strict=True))
        unet.set_attn_processor({name: mine.get(name, old) for name, old in before.items()})
        unet.encoder_hid_proj = self.project
        unet.register_to_config(encoder_hid_dim_type="ip_image_proj")

        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
            each, rest = divmod(len(args[0]), len(conditions))
            if rest:
                raise ConfigError(
                    f"a batch must be a multiple of an IP-Adapter's {len(conditions)} conditions, "
                    f"but has {len(args[0])} samples: make images of fewer subjects at once"
                )
            rows = conditions.repeat_interleave(each, dim=0)
            return args, {**kwargs, "added_cond_kwargs": {"image_embeds": [rows[:, None]]}}

        handle = unet.register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            unet.register_to_config(encoder_hid_dim_type=None)
            unet.encoder_hid_proj = None
            unet.set_attn_processor(before)


def train_ip_adapter(
    base: BaseModel,
    encoder: ConditionEncoder,
    source: SubjectSource,
    config: IPAdapterConfig,
    checkpoint: Path,
) -> IPAdapter:
    """Train on the subjects' images, from the checkpoint if there is one.

    Raises:
        ConfigError: the checkpoint is of another run.
        BundleError: the checkpoint is damaged.
    """
    kept = checkpoint.with_name(ENCODED)
    taught = encode_with_embeddings(base, encoder, source, kept)
    options = config.optimisation
    torch.manual_seed(stream_seed(options.seed, "ip-adapter"))
    adapter = IPAdapter(config, base.denoiser, taught.width)

    def loss(model: Any, step: int) -> tuple[Tensor, str]:
        seen, some, draw = draw_task(base, taught, options, 1, step)
        stream = torch_stream(options.seed, "ip-adapter", step)
        kept = torch.rand(len(seen), 1, generator=stream) >= config.dropped
        with model.attached(base.denoiser, seen * kept.to(seen)):
            value = denoising_losses(base, some, draw).mean()
        return value, f"loss {value.item():.4f}"

    settings = to_dict(config) | {"subjects": len(taught.ids)}
    settings |= {"base": base.fingerprint, "encoder": encoder.fingerprint}
    trainer = Trainer(adapter, options, checkpoint, base.device, settings)
    trainer.run("IP-Adapter", loss)
    return adapter.requires_grad_(requires_grad=False)
