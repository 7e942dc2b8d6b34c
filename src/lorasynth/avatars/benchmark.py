"""Avatars as test subjects, and the metric that reads their attributes off an image.

Of each subject one image conditions, others judge, and further ones train.  Nothing of a test
subject, nor its combination of attributes, was seen by any part of the system.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorasynth.avatars import captions
from lorasynth.avatars.attributes import PROMPTED, share_found
from lorasynth.avatars.drawing import AvatarSubjects, named_subjects
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.pool import IDENTITY_LABELS, labels_of
from lorasynth.core.config import from_dict, to_dict
from lorasynth.core.weights import fingerprint
from lorasynth.evaluation.cases import Case, TestSubjects
from lorasynth.evaluation.config import BenchmarkConfig
from lorasynth.evaluation.metrics import Judges, Made, Metric


@dataclass(frozen=True, kw_only=True)
class TestAvatars(AvatarSubjects):
    """Avatars to evaluate on; `images` of each are trained on."""

    __test__ = False  # no test class

    @classmethod
    def of(cls, config: BenchmarkConfig, size: int) -> "TestAvatars":
        """Those that a benchmark's config asks for."""
        return cls(
            split=config.split,
            count=config.drawn,
            images=config.training_images,
            size=size,
            seed=config.seed,
            series="evaluation",
        )

    @property
    def key(self) -> Any:
        """All that decides the images that are trained on, but how many subjects there are."""
        return {name: value for name, value in to_dict(self).items() if name != "count"}

    def case(self, subject_id: str, images: int) -> Case:
        """One image that conditions, as many as are made that judge, and a prompt for each."""
        several, identity = replace(self, images=images), self.identity(subject_id)
        scenes = {name: several.scenes(subject_id, name) for name in ("evaluation", "reference")}
        asked, shown = (
            torch.tensor([labels_of(identity, scene) for scene in some]) for some in scenes.values()
        )
        return Case(
            reference=replace(self, images=1).load(subject_id, "condition"),
            judging=several.load(subject_id, "reference"),
            prompts=[captions.prompt(scene) for scene in scenes["evaluation"]],
            described=[captions.described(identity, scene) for scene in scenes["evaluation"]],
            facts={"asked": asked, "shown": shown},
        )


def named_tests(argument: str, size: int) -> TestAvatars:
    """The test subjects that `test-avatars:200,split=validation` asks for, after the colon.

    Raises:
        ConfigError: it asks for something that avatars do not have.
    """
    stated = to_dict(named_subjects(argument, size))
    asked = {part.partition("=")[0].strip() for part in argument.split(",")}
    stated |= {"split": stated["split"] if "split" in asked else "test"}
    return from_dict(TestAvatars, stated | {"series": "evaluation"})


class Attributes(Metric):
    """`attribute_accuracy`: how often the subject's hair or hat, facial hair and glasses are there.

    And `prompt_following`: how often expression, clothes, their colour and the background are.
    """

    def __init__(self, judge: AttributeJudge) -> None:
        self.judge = judge

    @property
    def identity(self) -> Any:
        """The judge's weights."""
        return ["attributes", fingerprint(self.judge)]

    def __call__(self, made: Made) -> Mapping[str, float]:
        """Compare what the judge finds in each image with what was asked for."""
        judged = self.judge.labels(made.images)
        asked = made.case.facts["shown" if made.real else "asked"]
        return {
            "attribute_accuracy": share_found(judged, asked, tuple(IDENTITY_LABELS)),
            "prompt_following": share_found(judged, asked, PROMPTED),
        }


def attribute_metric(judges: Judges, subjects: TestSubjects) -> Metric | None:
    """The metric of avatars, where there is a judge; None for other subjects."""
    if judges.attributes is None or not isinstance(subjects, TestAvatars):
        return None
    return Attributes(AttributeJudge.load(Path(judges.attributes)))
