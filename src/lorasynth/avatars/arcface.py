"""Training of an avatar encoder with the ArcFace loss (additive margin; Deng et al. 2019)."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from lorasynth.avatars.encoder import AvatarEncoder, AvatarEncoderConfig
from lorasynth.avatars.negatives import draw_negative, tear
from lorasynth.avatars.pool import Pool
from lorasynth.avatars.trunks import augment
from lorasynth.core import config as configs
from lorasynth.core.progress import progress
from lorasynth.core.randomness import numpy_stream, stream_seed
from lorasynth.engine.trainer import Optimisation, Trainer
from lorasynth.images.files import to_unit_range


@dataclass(frozen=True, kw_only=True)
class ArcFaceConfig:
    """How an encoder is trained.

    Attributes:
        scale: s of the loss, the inverse temperature.
        margin: m of the loss, in radians, added to the angle to the own class.
        negatives: faceless images drawn to train the detector.
        negative_share: of faceless images in a batch.
    """

    scale: float = 24.0
    margin: float = 0.35
    negatives: int = 2000
    negative_share: float = 0.1
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(
            steps=6000, batch=128, lr=2e-3, weight_decay=0.05, ema=0.995
        )
    )


class ArcFaceHead(nn.Module):
    """Class centres on the sphere; the loss pulls each embedding to its own, past a margin."""

    def __init__(self, width: int, classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(classes, width) * 0.01)
        self.scale, self.margin = scale, margin

    def forward(
        self, embeddings: Float[Tensor, "b m"], subject: Int64[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """The loss: cross entropy of s cos(theta + m [own class])."""
        cosines = (embeddings @ functional.normalize(self.centres, dim=1).T).float()
        angle = cosines.gather(1, subject[:, None]).clamp(-1 + 1e-6, 1 - 1e-6).acos()
        target = (angle + self.margin).clamp(max=torch.pi).cos()
        logits = self.scale * cosines.scatter(1, subject[:, None], target.to(cosines.dtype))
        return functional.cross_entropy(logits, subject)


def _negatives(pool: Pool, count: int, size: int, seed: int) -> UInt8[Tensor, "n h w 3"]:
    rng = numpy_stream(seed, "negatives")
    drawn = []
    with progress("drawing negatives", count) as advance:
        for _ in range(count):
            if rng.random() < 0.25:
                drawn.append(tear(pool.images[rng.integers(len(pool))].numpy(), rng))
            else:
                drawn.append(draw_negative(rng, size))
            advance()
    return torch.from_numpy(np.stack(drawn))


def train_encoder(
    pool: Pool,
    encoder_config: AvatarEncoderConfig,
    config: ArcFaceConfig,
    checkpoint: Path,
    device: torch.device,
) -> AvatarEncoder:
    """Train an encoder on a pool of drawn subjects; resumes from `checkpoint`."""
    options = config.optimisation
    torch.manual_seed(stream_seed(options.seed, "encoder", encoder_config.name))
    encoder = AvatarEncoder(encoder_config)
    classes = int(pool.subject.max()) + 1
    head = ArcFaceHead(encoder_config.width, classes, config.scale, config.margin)
    negatives = _negatives(pool, config.negatives, encoder_config.image_size, options.seed)
    images, subject, negatives = (
        part.to(device) for part in (pool.images, pool.subject, negatives)
    )
    faceless = round(options.batch * config.negative_share)
    faces = options.batch - faceless
    has_face = torch.cat([torch.ones(faces), torch.zeros(faceless)]).to(device)

    def loss(model: nn.Module, step: int) -> tuple[Tensor, str]:
        generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "arcface", step))
        rows = torch.randint(len(images), (faces,), generator=generator, device=device)
        others = torch.randint(len(negatives), (faceless,), generator=generator, device=device)
        batch = to_unit_range(torch.cat([images[rows], negatives[others]]))
        embeddings, logits = model["encoder"](augment(batch, generator))  # type: ignore[index]
        identity = model["head"](embeddings[:faces], subject[rows])  # type: ignore[index]
        detection = functional.binary_cross_entropy_with_logits(logits, has_face)
        note = f"identity {identity.item():.3f}" if step % 50 == 0 else ""
        return identity + detection, note

    both = nn.ModuleDict({"encoder": encoder, "head": head})
    settings = {
        "encoder": configs.to_dict(encoder_config),
        "arcface": configs.to_dict(config),
        "images": len(pool),
    }
    trainer = Trainer(both, options, checkpoint, device, settings)
    trainer.run(f"encoder {encoder_config.name}", loss)
    return encoder.eval()
