"""weights2weights from its published files to a measured synthesizer, as one resumable run.

    library      import, canonical form
    conditions   an embedding of each subject, and who is held out
    codec        of the training subjects' adapters
    synthesizer  the hypernetwork around it
    loras        a LoRA file for each tried test subject, from one image
    evaluation   those files beside the subjects' own adapters and the baselines

The published files hold no images.  Where none are given, each subject is embedded from images
that its adapter makes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Adapter, Factors, unstack
from lorasynth.adapter.files import get_format, write_many
from lorasynth.base import BaseModel
from lorasynth.base.compatibility import require_fits
from lorasynth.codec import CODECS, Budget, fit_into, load_codec
from lorasynth.collect.embedding import column_of
from lorasynth.collect import GeneratedConfig
from lorasynth.collect.described import GeneratedSubjects, embed_imported
from lorasynth.condition import SHOWN, ConditionEncoder
from lorasynth.core.atomic import as_file_name, atomic_directory, write_json
from lorasynth.core.config import from_dict, read_json, to_dict
from lorasynth.core.errors import ConfigError, ImageError, LibraryError
from lorasynth.core.randomness import torch_stream
from lorasynth.core.splits import split_of
from lorasynth.core.stages import StagedRun
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.evaluation.clip_score import ClipScore
from lorasynth.evaluation.compare import CompareConfig, Contender, Judges, compare
from lorasynth.hypernet.library_data import training_set
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.hypernet.train import train as train_hypernet
from lorasynth.images import Subject, SubjectSource, subjects_in
from lorasynth.library import Library
from lorasynth.library.groups import groups_by_likeness
from lorasynth.library.vectors import Stored
from lorasynth.library.w2w import W2WFiles, import_w2w
from lorasynth.studies.methods import methods
from lorasynth.synthesizer import Synthesizer


@dataclass(frozen=True, kw_only=True)
class W2WConfig:
    """Every choice of the run.

    Attributes:
        gauge: of the canonical vectors.
        dtype: in which the library stores them.
        person: column of the table that says who is shown.
        generated: how adapters show their subjects, where no images are given.
        codec: its name.
        codec_options: its options.
        hypernet: training of the hypernetwork.
        trigger: what calls the subject in a prompt.
        subjects: test subjects that are tried.
        comparison: how they are measured.
        seed: draws them.
    """

    gauge: str = "procrustes"
    dtype: Stored = "float16"
    person: str = "identity"
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    codec: str = "pca"
    codec_options: dict[str, Any] = field(default_factory=lambda: {"latents": 512})
    hypernet: HypernetConfig = field(default_factory=HypernetConfig)
    trigger: str = "sks person"
    subjects: int = 100
    comparison: CompareConfig = field(
        default_factory=lambda: CompareConfig(prompts=("a photo of sks person",))
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subjects < 2:
            raise ConfigError(f"at least two subjects must be tried, but subjects={self.subjects}")


#: Options that may change between runs: they decide the last two stages, which are then made again.
_FREE = ("subjects", "comparison", "seed")


class W2WRecipe:
    """One run of the recipe.

    Args:
        source: weights2weights' files: a folder, or hub:owner/name.
        run: folder of the run.
        config: every choice.
        base: the base model that the adapters were trained on.
        encoder: makes the conditions, and measures likeness.
        second: another encoder, which measures and nothing else; None without one.
        clip: CLIP model that scores prompts, a folder or hub:owner/name; None without.
        images: the subjects' images by their ids, as `subjects_in` reads them; None: made.
        memory: bytes that fitting the codec may take.

    Raises:
        ConfigError: there is no such codec, or the folder holds a run of other choices, or an
            encoder looks at no images.
        ImageError: there is nothing at `images`.
    """

    def __init__(
        self,
        source: str,
        run: Path,
        config: W2WConfig,
        *,
        base: BaseModel,
        encoder: ConditionEncoder,
        memory: int,
        second: ConditionEncoder | None = None,
        clip: str | None = None,
        images: Path | None = None,
    ) -> None:
        if images is not None and not images.exists():
            raise ImageError(f"--images must be where the images are, but {images} is not")
        self.source = source
        self.run = run
        self.config = config
        self.base = base
        self.encoder = encoder
        self.second = second
        self.clip = clip
        self.images = images
        self.memory = memory
        kind = CODECS.get(config.codec).config_class
        self.codec_config: object = from_dict(kind, config.codec_options)
        for judge in self._judges:  # refuses what looks at no images
            judge.embed(torch.zeros(1, judge.image_size, judge.image_size, 3).byte())
        stated = to_dict(config)
        free = {name: stated.pop(name) for name in _FREE}
        free |= {"second": None if second is None else column_of(second), "clip": clip}
        choices = stated | {"source": source, "base": base.fingerprint}
        choices |= {"encoder": column_of(encoder), "images": str(images or "made")}
        self.stages = StagedRun(
            run,
            {
                "library": self._library,
                "conditions.json": self._conditions,
                "codec": self._codec,
                "synthesizer": self._synthesizer,
                "loras": self._loras,
                "evaluation": self._evaluation,
            },
            choices,
            dict.fromkeys(("loras", "evaluation"), free),
        )
        self.stages.require_same_choices()

    @property
    def _judges(self) -> list[ConditionEncoder]:
        return [one for one in (self.encoder, self.second) if one is not None]

    def _library(self, path: Path) -> None:
        growing, config = self.run / "library", self.config
        require_fits(self.base, W2WFiles.find(self.source).layout)
        import_w2w(
            self.source, growing, gauge=config.gauge, dtype=config.dtype, person=config.person
        )
        growing.rename(path)

    def _conditions(self, path: Path) -> None:
        """Embed the subjects, and note each one's split beside the column's name."""
        library = Library.open(self.stages.path("library"))
        embeddings = embed_imported(
            library, self.encoder, self.images, lambda: self.base, self.config.generated
        )
        split = _splits(library, embeddings)
        write_json(path, {"column": column_of(self.encoder), "split": split})

    def _codec(self, path: Path) -> None:
        fit_into(
            path,
            self.config.codec,
            self._rows("train"),
            self.codec_config,
            Budget(memory=self.memory, run=self.run / "codec-fit", device=str(self.base.device)),
        )

    def _synthesizer(self, path: Path) -> None:
        codec, train = load_codec(self.stages.path("codec")), self._rows("train")
        data = training_set(train, codec, column_of(self.encoder))
        checkpoint = self.run / "hypernet.safetensors"
        hypernet = train_hypernet(
            data, self.config.hypernet, checkpoint=checkpoint, device=self.base.device
        )
        made = Synthesizer.of(
            self.base,
            train.layout,
            self.encoder,
            hypernet,
            codec,
            trigger_phrase=self.config.trigger,
        )
        made.save(path)

    def _loras(self, path: Path) -> None:
        synthesizer = Synthesizer.from_pretrained(self.stages.path("synthesizer"))
        names = [subject.id for subject in self._tried]
        layout, metadata = synthesizer.layout, synthesizer.metadata(self.config.seed)
        made = layout.flatten(synthesizer.synthesise(self._seen, names, seed=self.config.seed))
        with atomic_directory(path) as folder:
            paths = [folder / f"{as_file_name(name)}.safetensors" for name in names]
            write_many(get_format("kohya"), made, layout, metadata, paths)

    def _evaluation(self, path: Path) -> None:
        clip = None if self.clip is None else ClipScore.load(self.clip)
        judges = Judges(encoder=self.encoder, second=self.second, prompts=clip)
        found = compare(self.base, judges, self._tried, self._contenders(), self.config.comparison)
        with atomic_directory(path) as folder:
            found.save(folder)

    def _contenders(self) -> list[Contender]:
        """The base model, the files, the subjects' own adapters, and the baselines."""
        names = [subject.id for subject in self._tried]

        def contender(name: str, stacked: Factors) -> Contender:
            adapters = map(Adapter, unstack(stacked))
            return Contender(name=name, adapters=dict(zip(names, adapters, strict=True)))

        library, folder = Library.open(self.stages.path("library")), self.stages.path("loras")
        files = {name: Adapter.load(folder / f"{as_file_name(name)}.safetensors") for name in names}
        synthesizer = Synthesizer.from_pretrained(self.stages.path("synthesizer"))
        column = column_of(self.encoder)
        known = LatentLibrary.encode(self._rows("train"), synthesizer.codec, column)
        table = methods(synthesizer, None, known, self.config.seed)
        del table["diffusion"]  # which made the files
        return [
            Contender(name="base model", adapters=None),
            Contender(name="synthesised", adapters=files),
            contender("own", library.factors(library.rows_of(names))),
            *(contender(name, method(self._seen, names)) for name, method in table.items()),
        ]

    def _rows(self, split: str) -> Library:
        """The library's rows of a split."""
        library = Library.open(self.stages.path("library"))
        stated = read_json(self.stages.path("conditions.json"))["split"]
        return library.select([i for i, found in enumerate(stated) if found == split])

    @cached_property
    def _tried(self) -> list[Subject]:
        """Test subjects whose images all show what the encoders know, in an order by the seed.

        Raises:
            LibraryError: fewer than two are held out and shown.
        """
        test = self._rows("test")
        source: SubjectSource = (
            GeneratedSubjects(self.base, test.whole, self.config.generated)
            if self.images is None
            else subjects_in(self.images)
        )
        order = torch.randperm(len(test), generator=torch_stream(self.config.seed, "tried"))
        loaded = (source.load(test.ids[row]) for row in order.tolist())
        tried = list(islice(filter(self._is_shown, loaded), self.config.subjects))
        if len(tried) < 2:
            raise LibraryError(
                "at least two held-out subjects must be shown by their images, but "
                f"{len(tried)} of {len(test)} are: give more adapters, or --images"
            )
        return tried

    def _is_shown(self, subject: Subject) -> bool:
        seen = (one.see(subject.photos) for one in self._judges)
        return all(bool((one.presence >= SHOWN).all()) for one in seen)

    @cached_property
    def _seen(self) -> Float[Tensor, "n m"]:
        """What synthesis sees: the embedding of each tried subject's first image."""
        return self.encoder.embed(torch.stack([one.images[0] for one in self._tried]))


def _splits(library: Library, embeddings: Float[Tensor, "N P m"]) -> Sequence[str]:
    """The split of each row: the table's, or that of whoever its images show."""
    table = library.table
    if "split" in table.column_names and None not in table["split"].to_pylist():
        return [str(split) for split in table["split"].to_pylist()]
    alike = groups_by_likeness(embeddings.mean(dim=1))
    return [split_of(f"like {library.ids[leader]}", 0) for leader in alike]
