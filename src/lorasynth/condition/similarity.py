"""Identity similarity: are the images made with an adapter images of its subject?"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def likeness(
    generated: Float[Tensor, "n k m"], references: Float[Tensor, "n j m"]
) -> Float[Tensor, " n"]:
    """Mean cosine between each subject's k generated and j reference images.

    Args:
        generated: embeddings of the images made for n subjects.
        references: those of real images of the same subjects; never the image that was the
            condition, nor one that an adapter was trained on.
    """
    # Conditions of several parts are no unit vectors: each of their parts is one.
    return (normalize(generated, dim=-1) @ normalize(references, dim=-1).mT).mean(dim=(1, 2))
