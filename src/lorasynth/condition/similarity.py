"""Identity similarity: are the images made with an adapter images of its subject?"""

from jaxtyping import Float
from torch import Tensor


def likeness(
    generated: Float[Tensor, "n k m"], references: Float[Tensor, "n j m"]
) -> Float[Tensor, " n"]:
    """Mean cosine between each subject's k generated and j reference images.

    Args:
        generated: unit embeddings of the images made for n subjects.
        references: unit embeddings of real images of the same subjects; never the image that
            was the condition, nor one that an adapter was trained on.
    """
    return (generated @ references.mT).mean(dim=(1, 2))
