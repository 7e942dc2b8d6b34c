"""What a recipe's adapters are worth: are they like their subjects, and are they repeatable?"""

import time
from dataclasses import replace
from typing import Any

from lorasynth.collect import AdapterPredictor as Anchor
from lorasynth.core.config import to_dict
from lorasynth.core.progress import progress
from lorasynth.engine.recipe import Recipe
from lorasynth.evaluation.bootstrap import bootstrap
from lorasynth.evaluation.trial import Instruments, Trial, TrialConfig
from lorasynth.studies.twice import compare, train_twice


def repeatability_report(
    instruments: Instruments, recipe: Recipe, config: TrialConfig, anchor: Anchor | None = None
) -> dict[str, Any]:
    """Train every subject of a trial twice, on images apart, and measure the first adapters.

    Args:
        instruments: what makes images, and what judges them.
        recipe: how each adapter is trained.
        config: the subjects; each training sees `training_images` of its own.
        anchor: predicts the adapters that training starts from; None: as the recipe says.

    Returns:
        JSON values: cosine of the updates of the `same` and of `different` subjects, likeness by
        both encoders beside that of `real` images, and seconds of training per adapter.
    """
    twice = replace(config, training_images=2 * config.training_images)
    run = Trial(instruments, twice)
    subjects = [run.subjects.load(name) for name in run.subjects.ids]
    start = time.monotonic()
    with progress("train twice", recipe.steps) as advance:
        first, second = train_twice(
            instruments.base,
            recipe,
            subjects,
            anchor=anchor,
            on_step=lambda _, __: advance(),
        )
    seconds = (time.monotonic() - start) / (2 * len(subjects))
    cosines, measured, real = compare(first, second), run.tried("trained", first), run.real()
    likeness, second_likeness = (
        bootstrap(values) for values in (measured.likeness, measured.likeness_second)
    )
    return {
        "recipe": to_dict(recipe),
        "anchor": None if anchor is None else anchor.fingerprint,
        "config": to_dict(config),
        "same": cosines.same,
        "different": cosines.different,
        "likeness": likeness.mean,
        "lo": likeness.lo,
        "hi": likeness.hi,
        "likeness_second": second_likeness.mean,
        "real": real.likeness.mean().item(),
        "real_second": real.likeness_second.mean().item(),
        "attribute_accuracy": measured.attribute_accuracy.mean().item(),
        "prompt_following": measured.prompt_following.mean().item(),
        "seconds": seconds,
    }
