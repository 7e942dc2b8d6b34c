"""Captions of images that have none, by a captioner of transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from lorasynth.core.errors import ConfigError
from lorasynth.core.places import pretrained
from lorasynth.images import Subject

#: Of a caption.
_TOKENS = 40
_TRY = "try hub:Salesforce/blip-image-captioning-base"


class Captioner:
    """Says what an image shows.

    Args:
        processor: of images, and of the model's tokens.
        model: makes tokens of an image.
    """

    def __init__(self, processor: Any, model: Any) -> None:
        self.processor, self.model = processor, model.eval()

    @classmethod
    def load(cls, name: str, device: torch.device) -> "Captioner":
        """Load a model of images to text: a folder, or hub:owner/name.

        Raises:
            ConfigError: it is none, or brings code of its own.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        place, local = pretrained(name, "a captioner", ConfigError)
        safe: dict[str, Any] = {"trust_remote_code": False, **local}
        try:
            processor = AutoProcessor.from_pretrained(place, **safe)
            model = AutoModelForImageTextToText.from_pretrained(place, use_safetensors=True, **safe)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"--captioner must be a model of images to text, but {name} cannot be loaded "
                f"({first}): {_TRY}"
            ) from error
        return cls(processor, model.to(device))

    @torch.no_grad()
    def __call__(self, subject: Subject) -> Sequence[str]:
        """What each photo shows, in a few words.

        Raises:
            ConfigError: the model wants a question beside the images.
        """
        photos = [Image.fromarray(photo.numpy()) for photo in subject.photos]
        try:
            inputs = self.processor(images=photos, return_tensors="pt").to(self.model.device)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"--captioner must need nothing but images, but {type(self.model).__name__} takes "
                f"words, too ({(str(error).splitlines() or [''])[0]}): {_TRY}"
            ) from error
        tokens = self.model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False)
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]
