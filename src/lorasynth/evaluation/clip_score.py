"""CLIP score: do images of anything show what their prompts say?  (Hessel et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from lorasynth.condition import ConditionEncoder, load_encoder
from lorasynth.core.errors import ConfigError, reason_of
from lorasynth.core.places import pretrained


class ClipScore:
    """Cosine between an image and its prompt; the published score is 2.5 times its positive part.

    Args:
        vision: CLIP's encoder of images.
        text: its encoder of text.
        tokenizer: its tokenizer.
    """

    def __init__(self, vision: ConditionEncoder, text: Any, tokenizer: Any) -> None:
        self.vision = vision
        self.text = text.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, model: str) -> "ClipScore":
        """Load both encoders of a CLIP model, from a folder or the hub.

        Raises:
            ConfigError: it is none.
        """
        try:
            place, local = pretrained(model, "a CLIP model", ConfigError)
            text = CLIPTextModelWithProjection.from_pretrained(place, **local)
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **local)
        except Exception as error:
            raise ConfigError(
                f"a CLIP score needs a whole CLIP model (folder or hub:owner/name), but {model} "
                f"cannot be loaded ({reason_of(error)}): try "
                "hub:openai/clip-vit-base-patch32"
            ) from error
        return cls(load_encoder(f"clip:{model}"), text, tokenizer)

    @torch.no_grad()
    def __call__(
        self, images: UInt8[Tensor, "n h w 3"], prompts: Sequence[str]
    ) -> Float[Tensor, " n"]:
        """Score each image against its own prompt."""
        said = self._embed(sorted(set(prompts)))
        seen = self.vision.embed(images)
        expected = torch.stack([said[prompt] for prompt in prompts])
        return functional.cosine_similarity(seen, expected, dim=1)

    def _embed(self, prompts: Sequence[str]) -> dict[str, Float[Tensor, " m"]]:
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        return dict(zip(prompts, self.text(**tokens).text_embeds.float(), strict=True))
