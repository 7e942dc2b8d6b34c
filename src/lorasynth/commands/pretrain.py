"""`lorasynth pretrain`: a synthesizer from images alone, before there is a library."""

from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic.dataclasses import dataclass
from tyro.conf import arg

from lorasynth.commands.shared import TRIGGER, Overwriting, Resumed, WithBase, WithImages
from lorasynth.commands.training import WithRecipe, WithSheet
from lorasynth.core.command import Flat, Out
from lorasynth.predict.config import PredictorTraining

if TYPE_CHECKING:
    from lorasynth.base import BaseModel
    from lorasynth.condition import ConditionEncoder
    from lorasynth.images import SubjectSource
    from lorasynth.predict import Predicting


@dataclass(frozen=True, kw_only=True)
class Pretrain(WithRecipe, WithBase, WithImages, WithSheet, Overwriting, Resumed):
    """Train a synthesizer through the base model's denoising loss; run again to resume.

    Its adapters are functions of the condition by construction. `collect --init-from` starts a
    library from them; the recipe says what is adapted, and must be the library's.

    Watch it in the run's folder: metrics.jsonl has the losses of training and of held-out subjects
    and the identity similarity of samples, samples/ these samples beside a real image.

    Under `accelerate launch -m lorasynth pretrain ...` all processes share one batch.

    Consent: of people only with their consent.

    Example: lorasynth pretrain people --encoder dlib -o pretrained --optimisation.steps 4000

    Attributes:
        out: Synthesizer folder to write.
        encoder: Condition encoder: a folder or a name.
        trigger: Trigger phrase, such as 'sks person', stored in the metadata.
        training: How the synthesizer is trained.
    """

    group: ClassVar[str] = "Make a synthesizer"
    shared: ClassVar[bool] = True

    out: Out
    encoder: str
    trigger: str = TRIGGER
    training: Annotated[PredictorTraining, Flat] = field(default_factory=PredictorTraining)
    run_folder: Annotated[Path, arg(name="run")] = Path("runs/pretrain")

    def run(self) -> Path:
        """Train, and write the synthesizer; its path."""
        from lorasynth.collect.sheet import cut_subjects
        from lorasynth.condition import load_encoder
        from lorasynth.core.atomic import make_parent
        from lorasynth.core.device import pick_device
        from lorasynth.engine.processes import Processes, end_of_launched
        from lorasynth.predict import train_predictor
        from lorasynth.predict.tasks import divided

        make_parent(self.out, self.run_folder)
        self.require_free(self.out)
        seeded = replace(self.training.optimisation, seed=self.seed)
        encoder, base = load_encoder(self.encoder, pick_device(self.device)), self.load_base()
        source = self.load_images(base.image_size)
        learned, _ = divided(source, self.training.held_out)
        first = Processes.here(base.device).is_first
        if first:
            self.draw_sheet(cut_subjects(source, learned, base.frames, [encoder]))
        made = train_predictor(
            base,
            encoder,
            source,
            self.recipe_for(base),
            replace(self.training, optimisation=seeded),
            self.run_folder / "pretrain.safetensors",
        )
        if first:
            self._write(base, encoder, source, made)
        end_of_launched()
        return self.out

    def _write(
        self,
        base: "BaseModel",
        encoder: "ConditionEncoder",
        source: "SubjectSource",
        made: "Predicting",
    ) -> None:
        from lorasynth.collect.failures import Failures
        from lorasynth.core.learned import learned_from
        from lorasynth.predict.tasks import ENCODED
        from lorasynth.synthesizer import Synthesizer

        parts = (base, made.layout, encoder, made.hypernet, made.codec)
        synthesizer = Synthesizer.of(*parts, trigger_phrase=self.trigger)
        replace(synthesizer, learned=learned_from(made.ids)).save(self.out)
        failures = Failures(self.run_folder / ENCODED)
        left_out = len(set(failures.ids) & set(source.ids))
        held = f", {len(made.held_out)} held out" if made.held_out else ""
        why = f", {left_out} left out ({failures.path})" if left_out else ""
        print(f"{self.out}: trained on {len(made.ids)} subjects{held}{why}")
        if made.figures:
            said = (f"{name.replace('_', ' ')} {x:.4g}" for name, x in made.figures.items())
            print(f"of the weights that are kept: {', '.join(said)}")
