"""Training of an encoder on images of subjects with the ArcFace loss (Deng et al. 2019)."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from lorasynth.condition.config import TrainedConfig
from lorasynth.condition.trained import TrainedEncoder
from lorasynth.condition.trunks import augment
from lorasynth.core import config as configs
from lorasynth.core.device import worker_processes
from lorasynth.core.errors import ImageError
from lorasynth.core.progress import Note, progress
from lorasynth.core.randomness import numpy_stream, stream_seed
from lorasynth.engine.config import ArcFaceConfig
from lorasynth.engine.trainer import Trainer
from lorasynth.images import SubjectSource
from lorasynth.images.files import to_unit_range
from lorasynth.images.framing import framed


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


class Squares(NamedTuple):
    """Images of subjects in memory, as squares of one size; image i shows subject `subject[i]`."""

    images: UInt8[Tensor, "n h w 3"]
    subject: Int64[Tensor, " n"]

    @classmethod
    def read(
        cls, source: SubjectSource, ids: Sequence[str], size: int, workers: int = 1
    ) -> tuple["Squares", dict[str, str]]:
        """The images of subjects, and why others are left out, by their names.

        Args:
            source: of the subjects.
            ids: at least one that can be used.
            size: side in pixels; see `framed` for how images are cut.
            workers: processes that read.
        """
        read = partial(_squares_of, source, size)
        parts, left_out = list[np.ndarray](), dict[str, str]()
        pool = nullcontext() if workers == 1 else worker_processes(workers)
        with pool as processes, progress("reading images", len(ids)) as advance:
            found = map(read, ids) if processes is None else processes.map(read, ids, chunksize=8)
            for name, squares in zip(ids, found, strict=True):
                if isinstance(squares, str):
                    left_out[name] = squares
                else:
                    parts.append(squares)
                advance()
        if not parts:
            raise ImageError(f"no subject can be used: {next(iter(left_out.values()), 'none')}")
        counts = torch.tensor([len(part) for part in parts])
        subject = torch.arange(len(parts)).repeat_interleave(counts)
        return cls(torch.from_numpy(np.concatenate(parts)), subject), left_out


def _squares_of(source: SubjectSource, size: int, subject_id: str) -> np.ndarray | str:
    """A subject's images, or why it cannot be used.  Arrays pass between processes."""
    try:
        photos = source.load(subject_id).photos
    except ImageError as error:
        return str(error)
    return np.stack([framed(photo, size).numpy() for photo in photos])


def draw_pattern(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw an image of `size` pixels that shows no subject: noise, a gradient, or rectangles."""
    kind = rng.integers(3)
    if kind == 0:  # noise at a random scale, from static to soft clouds
        cells = int(rng.integers(1, size + 1))
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        return np.asarray(coarse.resize((size, size), Image.Resampling(int(rng.choice([0, 2])))))
    if kind == 1:  # a gradient between two colours
        ends = rng.integers(0, 256, (2, 1, 1, 3))
        share = np.linspace(0, 1, size).reshape(1, size, 1)
        gradient = np.broadcast_to(ends[0] + share * (ends[1] - ends[0]), (size, size, 3))
        return np.ascontiguousarray(np.rot90(gradient, int(rng.integers(4)))).astype(np.uint8)
    canvas = np.empty((size, size, 3), np.uint8)  # flat rectangles, one over the other
    canvas[:] = rng.integers(0, 256, 3)
    for _ in range(rng.integers(1, 12)):
        (top, bottom), (left, right) = np.sort(rng.integers(0, size, (2, 2)), axis=1)
        canvas[top : bottom + 1, left : right + 1] = rng.integers(0, 256, 3)
    return canvas


def tear(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Shuffle an image's sixteen tiles, so that its colours stay and its subject does not."""
    side = image.shape[0] // 4
    tiles = image[: side * 4, : side * 4].reshape(4, side, 4, side, 3).swapaxes(1, 2)
    shuffled = tiles.reshape(16, side, side, 3)[rng.permutation(16)].reshape(4, 4, side, side, 3)
    torn: UInt8[np.ndarray, "h w 3"] = shuffled.swapaxes(1, 2).reshape(side * 4, side * 4, 3)
    return torn


def draw_negatives(
    images: UInt8[Tensor, "n h w 3"], count: int, seed: int
) -> UInt8[Tensor, "count h w 3"]:
    """Images that show no subject: a third of them torn ones, so that colours tell nothing."""
    rng, size = numpy_stream(seed, "negatives"), images.shape[1]
    drawn = [
        np.resize(tear(images[rng.integers(len(images))].numpy(), rng), (size, size, 3))
        if rng.random() < 1 / 3
        else draw_pattern(rng, size)
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack(drawn))


def train_encoder(
    squares: Squares,
    negatives: UInt8[Tensor, "k h w 3"],
    encoder_config: TrainedConfig,
    config: ArcFaceConfig,
    checkpoint: Path,
    device: torch.device,
) -> TrainedEncoder:
    """Train an encoder to tell subjects apart; resumes from `checkpoint`.

    Args:
        squares: images of subjects.
        negatives: images that show none.
        encoder_config: what is trained.
        config: how.
        checkpoint: file to save to and to resume from.
        device: where.
    """
    options = config.optimisation
    torch.manual_seed(stream_seed(options.seed, "encoder", encoder_config.name))
    encoder = TrainedEncoder(encoder_config)
    classes = int(squares.subject.max()) + 1
    head = ArcFaceHead(encoder_config.width, classes, config.scale, config.margin)
    images, subject, without = (part.to(device) for part in (*squares, negatives))
    others = round(options.batch * config.negative_share)
    shown = options.batch - others
    shows = torch.cat([torch.ones(shown), torch.zeros(others)]).to(device)

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Note]:
        generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "arcface", step))
        rows = torch.randint(len(images), (shown,), generator=generator, device=device)
        beside = torch.randint(len(without), (others,), generator=generator, device=device)
        batch = to_unit_range(torch.cat([images[rows], without[beside]]))
        embeddings, logits = model["encoder"](augment(batch, generator))  # type: ignore[index]
        identity = model["head"](embeddings[:shown], subject[rows])  # type: ignore[index]
        detection = functional.binary_cross_entropy_with_logits(logits, shows)
        seen = identity.detach()
        return identity + detection, lambda: f"identity {seen.item():.3f}"

    both = nn.ModuleDict({"encoder": encoder, "head": head})
    settings = {
        "encoder": configs.to_dict(encoder_config),
        "arcface": configs.to_dict(config),
        "images": len(images),
    }
    trainer = Trainer(both, options, checkpoint, device, settings)
    trainer.run(f"encoder {encoder_config.name}", loss)
    return encoder.eval()
