"""What a network from conditions learns by: it sees one picture, others must be denoised."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.base import BaseModel
from lorasynth.collect.draws import Draw
from lorasynth.collect.encoded import EncodedSubjects, encode_subjects
from lorasynth.condition import ConditionEncoder, embed_subject
from lorasynth.pictures import Subject, SubjectSource
from lorasynth.progress import progress
from lorasynth.randomness import stream_seed
from lorasynth.training import Optimisation


def draw_task(
    base: BaseModel,
    encoded: EncodedSubjects,
    embeddings: Float[Tensor, "n k m"],
    options: Optimisation,
    pictures: int,
    step: int,
) -> tuple[Float[Tensor, "b m"], EncodedSubjects, Draw]:
    """Draw the subjects of a step, one embedding of each, and what each must denoise.

    Args:
        base: the base model.
        encoded: all subjects.
        embeddings: of the same pictures.
        options: the seed, and as the batch the number b of subjects.
        pictures: denoised of each.
        step: names the stream of random numbers.

    Returns:
        The conditions, the subjects drawn, and their draws.
    """
    device, batch = base.device, options.batch
    generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "predict", step))
    shape = (batch, pictures)

    def below(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator, device=device)

    rows = below(len(embeddings), batch)
    seen = embeddings[rows, below(embeddings.shape[1], batch)]
    noise = torch.randn(*shape, *encoded.latents.shape[1:], generator=generator, device=device)
    draw = Draw(
        pictures=below(embeddings.shape[1], *shape),
        times=base.draw_times(shape, generator),
        noise=noise,
        dropped=torch.zeros(shape, dtype=torch.bool, device=device),
    )
    return seen, replace(encoded, first=encoded.first[rows]), draw


@torch.no_grad()
def encode_with_embeddings(
    base: BaseModel, encoder: ConditionEncoder, source: SubjectSource
) -> tuple[EncodedSubjects, Float[Tensor, "n k m"]]:
    """All subjects as the base model sees them, and the embeddings of the same pictures."""
    embeddings: list[Tensor] = []
    with progress("encode subjects", len(source.ids)) as advance:

        def subjects() -> Iterator[Subject]:
            for name in source.ids:
                subject = source.load(name)
                embeddings.append(embed_subject(encoder, subject))
                yield subject
                advance()

        encoded = encode_subjects(base, subjects())
    pictures = min(encoded.counts)
    return encoded, torch.stack([rows[:pictures] for rows in embeddings]).to(base.device)
