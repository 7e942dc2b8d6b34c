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

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.files import FORMATS, write_many
from lorasynth.base.compatibility import require_fits
from lorasynth.codec import CODECS, Budget, fit_into, load_codec
from lorasynth.collect.described import GeneratedSubjects, embed_imported
from lorasynth.collect.embedding import column_of
from lorasynth.commands.shared import memory_of
from lorasynth.condition import SHOWN, load_encoder
from lorasynth.core.atomic import as_file_name, atomic_directory, write_json
from lorasynth.core.cache import Cache, plain
from lorasynth.core.config import from_dict, read_json
from lorasynth.core.errors import ImageError, LibraryError
from lorasynth.core.learned import learned_from
from lorasynth.core.randomness import torch_stream
from lorasynth.core.splits import split_of
from lorasynth.core.stages import StagedRun
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.evaluation.baselines import BASELINES
from lorasynth.evaluation.benchmark import Benchmark, Contender
from lorasynth.evaluation.cases import SplitSubjects
from lorasynth.evaluation.contenders import Parts, contenders_of, from_files, stacked
from lorasynth.evaluation.metrics import Judges, metrics_for
from lorasynth.evaluation.report import evaluate, save_report
from lorasynth.hypernet.library_data import training_set
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.hypernet.train import train as train_hypernet
from lorasynth.images import Subject, SubjectSource, subjects_in
from lorasynth.library import Library
from lorasynth.library.groups import groups_by_likeness
from lorasynth.library.w2w import W2WFiles, import_w2w
from lorasynth.studies.commands import RecipeW2W
from lorasynth.synthesizer import Synthesizer


class W2WRun:
    """One run of the recipe.

    Args:
        asked: the command, whose options are every choice.

    Raises:
        ConfigError: there is no such codec, or the folder holds a run of other choices, or an
            encoder looks at no images.
        ImageError: there is nothing at its `images`.
    """

    def __init__(self, asked: RecipeW2W) -> None:
        if asked.images is not None and not Path(asked.images).exists():
            raise ImageError(f"--images must be where the images are, but {asked.images} is not")
        self.asked, self.run, self.config = asked, asked.out, asked.config
        self.memory = memory_of(asked.memory)
        kind = CODECS.get(self.config.codec).config_class
        self.codec_config: object = from_dict(kind, {"latents": self.config.latents})
        self.base = asked.load_base()
        named = [name for name in (asked.encoder, asked.second) if name is not None]
        self.judges = [load_encoder(name, self.base.device) for name in named]
        self.encoder = self.judges[0]
        for judge in self.judges:  # refuses what looks at no images
            judge.embed(torch.zeros(1, judge.image_size, judge.image_size, 3).byte())
        stated = plain(self.config)
        free = {name: stated.pop(name) for name in ("tests", "prompt")}
        free |= {"second": [column_of(one) for one in self.judges[1:]], "clip": asked.clip}
        stated |= {"source": asked.source, "base": self.base.fingerprint}
        stated |= {"encoder": column_of(self.encoder), "images": str(asked.images or "made")}
        self.stages = StagedRun(
            self.run,
            {
                "library": self._library,
                "conditions.json": self._conditions,
                "codec": self._codec,
                "synthesizer": self._synthesizer,
                "loras": self._loras,
                "evaluation": self._evaluation,
            },
            stated,
            dict.fromkeys(("loras", "evaluation"), free),
        )
        self.stages.require_same_choices()

    def _library(self, path: Path) -> None:
        growing, config = self.run / "library", self.config
        source, stored = self.asked.source, config.stored
        require_fits(self.base, W2WFiles.find(source).layout)
        import_w2w(source, growing, gauge=config.gauge, dtype=stored, person=config.person)
        growing.rename(path)

    def _conditions(self, path: Path) -> None:
        """Embed the subjects, and note each one's split beside the column's name."""
        library, encoder = Library.open(self.stages.path("library")), self.encoder
        shown = self.asked.images, lambda: self.base, self.config.generated
        embeddings = embed_imported(library, encoder, *shown)
        split = _splits(library, embeddings)
        write_json(path, {"column": column_of(encoder), "split": split})

    def _codec(self, path: Path) -> None:
        run, device = self.run / "codec-fit", str(self.base.device)
        budget = Budget(memory=self.memory, run=run, device=device)
        fit_into(path, self.config.codec, self._rows("train"), self.codec_config, budget)

    def _synthesizer(self, path: Path) -> None:
        codec, train = load_codec(self.stages.path("codec")), self._rows("train")
        data = training_set(train, codec, column_of(self.encoder))
        hypernet = train_hypernet(
            data,
            HypernetConfig(optimisation=self.config.optimisation),
            checkpoint=self.run / "hypernet.safetensors",
            device=self.base.device,
        )
        parts = (self.base, train.layout, self.encoder, hypernet, codec)
        made = Synthesizer.of(*parts, trigger_phrase=self.config.trigger)
        replace(made, learned=learned_from(train.ids)).save(path)

    def _loras(self, path: Path) -> None:
        synthesizer, seed = self._made, self.config.tests.seed
        conditions = synthesizer.conditions([self._tests.load(name) for name in self._tests.ids])
        made = synthesizer.synthesise(conditions, self._tests.ids, seed=seed)
        layout, metadata = synthesizer.layout, synthesizer.metadata(seed)
        with atomic_directory(path) as folder:
            paths = [folder / f"{as_file_name(name)}.safetensors" for name in self._tests.ids]
            write_many(FORMATS.get("kohya"), layout.flatten(made), layout, metadata, paths)

    @property
    def _made(self) -> Synthesizer:
        return Synthesizer.from_pretrained(self.stages.path("synthesizer"))

    def _evaluation(self, path: Path) -> None:
        tests, asked = self._tests, self.config.tests
        metrics = metrics_for(Judges(encoders=self.judges, clip=self.asked.clip), tests)
        run = Benchmark(self.base, tests, metrics, asked, conditioners=[self.encoder])
        contenders = self._contenders()
        report = evaluate(run, contenders)
        with atomic_directory(path) as folder:
            save_report(report, folder / "report.json")
            run.save_sheets(contenders, folder, 16)

    def _contenders(self) -> list[Contender]:
        """The base model, the files, the subjects' own adapters, and the baselines."""
        ids, library = self._tests.ids, Library.open(self.stages.path("library"))
        synthesizer, base, seed = self._made, self.base, self.config.tests.seed
        column = column_of(self.encoder)
        known = LatentLibrary.encode(self._rows("train"), synthesizer.codec, column)
        parts = Parts(base=base, synthesizer=synthesizer, library=known, seed=seed)
        return [
            Contender(name="base"),
            from_files("synthesised", self.stages.path("loras"), ids, base),
            stacked("own", library.factors(library.rows_of(ids)), ids),
            *contenders_of(parts, self._tests, Cache(self.run), list(BASELINES)),
        ]

    def _rows(self, split: str) -> Library:
        """The library's rows of a split."""
        library = Library.open(self.stages.path("library"))
        stated = read_json(self.stages.path("conditions.json"))["split"]
        return library.select([i for i, found in enumerate(stated) if found == split])

    @cached_property
    def _tests(self) -> SplitSubjects:
        """Test subjects whose images all show what the encoders know, in an order by the seed.

        Raises:
            LibraryError: fewer than two are held out and shown.
        """
        test, config = self._rows("test"), self.config
        source: SubjectSource = (
            GeneratedSubjects(self.base, test.whole, config.generated)
            if self.asked.images is None
            else subjects_in(self.asked.images)
        )
        order = torch.randperm(len(test), generator=torch_stream(config.tests.seed, "tried"))
        loaded = (source.load(test.ids[row]) for row in order.tolist())
        shown = {one.id: one for one in islice(filter(self._is_shown, loaded), config.tests.drawn)}
        if len(shown) < 2:
            raise LibraryError(
                "at least two held-out subjects must be shown by their images, but "
                f"{len(shown)} of {len(test)} are: give more adapters, or --images"
            )
        return SplitSubjects(source=_Loaded(shown), prompts=[config.prompt])

    def _is_shown(self, subject: Subject) -> bool:
        seen = (one.see(subject.photos) for one in self.judges)
        return all(bool((one.presence >= SHOWN).all()) for one in seen)


class _Loaded:
    """Subjects that are loaded already."""

    def __init__(self, subjects: Mapping[str, Subject]) -> None:
        self.subjects = subjects
        self.ids = list(subjects)

    def load(self, subject_id: str) -> Subject:
        return self.subjects[subject_id]


def _splits(library: Library, embeddings: Float[Tensor, "N P m"]) -> list[str]:
    """The split of each row: the table's, or that of whoever its images show."""
    table = library.table
    if "split" in table.column_names and None not in table["split"].to_pylist():
        return [str(split) for split in table["split"].to_pylist()]
    alike = groups_by_likeness(embeddings.mean(dim=1))
    return [split_of(f"like {library.ids[leader]}", 0) for leader in alike]
