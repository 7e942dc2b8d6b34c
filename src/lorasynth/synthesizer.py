"""The assembled system that a user holds: images of a subject in, an adapter out.

A saved synthesizer is one folder:

    synthesizer.json   base model, layout, trigger phrase, encoder
    encoder/           the condition encoder
    codec/             latents to flat vectors
    hypernet/          conditions to latents
    checksums.json     of all the above
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypedDict, Unpack, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Adapter, AdapterMetadata, Factors, Layout, scaled, unstack
from lorasynth.adapter.files import FORMATS, write_many
from lorasynth.codec import Codec, load_codec
from lorasynth.condition import (
    ConditionEncoder,
    load_encoder,
    sphere_mean,
    subject_condition,
    subject_conditions,
)
from lorasynth.core import checksums
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.card import REPOSITORY, Card, as_list, names_in, write_card
from lorasynth.core.config import read_json
from lorasynth.core.errors import BundleError, ConfigError, LayoutError
from lorasynth.core.hub import Upload, fetch, upload
from lorasynth.core.learned import Learned
from lorasynth.core.places import folder_of, repository
from lorasynth.core.weights import fingerprint
from lorasynth.hypernet import Hypernetwork, LatentRegression, in_latents_of, load_hypernet
from lorasynth.images import Photo, Subject, as_photo
from lorasynth.images.contract import TRIGGER

_DESCRIPTION = "synthesizer.json"
_VERSION = 1


@runtime_checkable
class BaseIdentity(Protocol):
    """What a synthesizer remembers of a base model: all that it needs, so none is loaded here.

    Attributes:
        name: where the model can be had.
        fingerprint: identifies its weights.
    """

    name: str
    fingerprint: str


class SamplingOptions(TypedDict, total=False):
    """How adapters are drawn; keywords of every call that makes some.

    Attributes:
        seed: of the noise that diffusion starts from (0); another seed gives another adapter.
        guidance: see `LatentDiffusionConfig`; None for the trained default.
        steps: solver steps; None for the trained default.
        temperature: of the noise; None for the synthesizer's own.
    """

    seed: int
    guidance: float | None
    steps: int | None
    temperature: float | None


@dataclass
class Stages:
    """Wall-clock seconds of each stage of a call."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside under `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Synthesizer:
    """Everything between an image and an adapter.

    Attributes:
        base_fingerprint: of the base model that the adapters change.
        base_name: where that base model can be had.
        trigger_phrase: what calls the subject in a prompt.
        layout: of the flat vector.
        encoder: images to conditions.
        hypernet: conditions to latents.
        codec: latents to vectors.
        strength: multiplies ΔW of synthesised adapters.  Predictions shrink toward the conditional
            mean; values above 1 restore the norm (chosen on validation subjects,
            `lorasynth evaluate --tune`).
        temperature: multiplies the noise that diffusion starts from, unless a call says otherwise:
            1 samples all that fits the condition as often as the hypernetwork believes it, less
            keeps nearer to the likeliest, and 0 gives one adapter whatever the seed.
        learned: the subjects that any part has learned from, which are no test subjects.
        domain: whom it can make adapters for, in the plural; empty for all that the encoder knows.
    """

    base_fingerprint: str
    base_name: str
    trigger_phrase: str
    layout: Layout
    encoder: ConditionEncoder
    hypernet: Hypernetwork
    codec: Codec
    strength: float = 1.0
    temperature: float = 1.0
    learned: Learned = frozenset()
    domain: str = ""

    def __post_init__(self) -> None:
        """Check that the parts fit one another.

        Raises:
            LayoutError: one part's output is not as wide as the next part's input.
        """
        for what, given, taken in (
            ("embedding", self.encoder.width, self.hypernet.condition_width),
            ("latent", self.hypernet.latents, self.codec.latents),
            ("vector", self.codec.width, self.layout.size),
        ):
            if given != taken:
                raise LayoutError(
                    f"the parts of a synthesizer must fit, but its {what} has {given} numbers on "
                    f"one side and {taken} on the other: train them together"
                )

    @classmethod
    def of(
        cls,
        base: BaseIdentity,
        layout: Layout,
        encoder: ConditionEncoder,
        hypernet: Hypernetwork,
        codec: Codec,
        *,
        trigger_phrase: str = TRIGGER,
    ) -> "Synthesizer":
        """Put trained parts together for the base model that they were trained for, on the CPU.

        Raises:
            LayoutError: the parts do not fit one another.
        """
        return cls(
            base_fingerprint=base.fingerprint,
            base_name=base.name,
            trigger_phrase=trigger_phrase,
            layout=layout,
            encoder=encoder,
            hypernet=hypernet.cpu(),
            codec=codec.cpu(),
        )

    def __call__(
        self,
        photos: Photo | Sequence[Photo],
        *,
        face: int | None = None,
        facts: Mapping[str, object] | None = None,
        stages: Stages | None = None,
        **draw: Unpack[SamplingOptions],
    ) -> Adapter:
        """Make an adapter for the subject of one or several photos.

        Args:
            photos: one, or a list of several of one subject, which are averaged on the sphere; each
                is a path, bytes, an open file, a Pillow image, an array or a tensor.
            face: which face of each photo, counted from the left, from 1; None for the largest.
            facts: attributes of the subject, for an encoder that knows some; photos may be none
                then.
            stages: collects the time of each stage.
            **draw: `seed` (0), `guidance`, `steps` and `temperature`, see `SamplingOptions`.

        Raises:
            ImageError: a photo cannot be read, or does not show what the encoder knows.
            ConfigError: the encoder does not know a fact, or finds no face by itself.
            TypeError: a keyword is unknown.
        """
        [adapter] = self.many([photos], face=face, facts=facts, stages=stages, **draw)
        return adapter

    def many(
        self,
        subjects: Sequence[Photo | Sequence[Photo]],
        *,
        face: int | None = None,
        facts: Mapping[str, object] | None = None,
        stages: Stages | None = None,
        **draw: Unpack[SamplingOptions],
    ) -> list[Adapter]:
        """Make an adapter for each of several subjects, all in one batch.

        Args:
            subjects: the images of each; the other arguments are those of a single call.
            face: which face of each image, as in a single call.
            facts: attributes that all of them share.
            stages: collects the time of each stage.
            **draw: how the adapters are drawn, see `SamplingOptions`.

        Raises:
            ImageError: an image cannot be read or shows no face.
            ConfigError: as for a single call.
        """
        conditions = self._conditions_of(subjects, face, facts, stages or Stages())
        return self.from_conditions(conditions, stages=stages, **draw)

    def from_conditions(
        self,
        conditions: Float[Tensor, "n m"],
        *,
        stages: Stages | None = None,
        **draw: Unpack[SamplingOptions],
    ) -> list[Adapter]:
        """Make an adapter for each condition that `embed` gave, as `many` does for its images.

        Args:
            conditions: one for each subject, kept in place of its images.
            stages: collects the time of each stage.
            **draw: how the adapters are drawn, see `SamplingOptions`.
        """
        if not len(conditions):
            return []
        factors = self.synthesise(conditions, _names(conditions), stages=stages, **draw)
        metadata, kernels = self.metadata(draw.get("seed", 0)), self.layout.kernels
        return [Adapter(single, metadata, kernels) for single in unstack(factors)]

    def write(
        self,
        subjects: Sequence[Photo | Sequence[Photo]],
        paths: Sequence[Path | str],
        format: str = "auto",
        *,
        face: int | None = None,
        facts: Mapping[str, object] | None = None,
        stages: Stages | None = None,
        **draw: Unpack[SamplingOptions],
    ) -> list[Path]:
        """Write a LoRA file for each of several subjects, all in one batch.

        Args:
            subjects: the images of each; the other arguments are those of a single call.
            paths: of the files; for `peft`, of folders.
            format: see `Adapter.save`.
            face: which face of each image, as in a single call.
            facts: attributes that all of them share.
            stages: collects the time of each stage.
            **draw: how the adapters are drawn, see `SamplingOptions`.

        Returns:
            The paths that were written.

        Raises:
            ImageError: an image cannot be read or shows no face.
            ConfigError: as for a single call, or no such format.
            LorasynthError: a file cannot be written, or is not named as the format asks.
        """
        stages = stages or Stages()
        FORMATS.get(format)  # before anything is read
        conditions = self._conditions_of(subjects, face, facts, stages)
        return self.write_conditions(conditions, paths, format, stages=stages, **draw)

    def write_conditions(
        self,
        conditions: Float[Tensor, "n m"],
        paths: Sequence[Path | str],
        format: str = "kohya",
        *,
        stages: Stages | None = None,
        **draw: Unpack[SamplingOptions],
    ) -> list[Path]:
        """Write a LoRA file for each condition that `embed` gave, all in one batch.

        Args:
            conditions: one for each subject, kept in place of its photos.
            paths: of the files; for `peft`, of folders.
            format: see `Adapter.save`.
            stages: collects the time of each stage.
            **draw: how the adapters are drawn, see `SamplingOptions`.

        Returns:
            The paths that were written.

        Raises:
            ConfigError: no such format, or not a path for each condition.
            LorasynthError: a file cannot be written, or is not named as the format asks.
        """
        stages, form = stages or Stages(), FORMATS.get(format)
        if len(paths) != len(conditions):
            raise ConfigError(
                f"each subject needs a path, but got {len(conditions)} subjects and {len(paths)} "
                "paths"
            )
        if not paths:
            return []
        vectors = self.vectors(conditions, stages=stages, **draw)
        with stages.stage("write"):
            metadata = self.metadata(draw.get("seed", 0))
            return write_many(form, vectors, self.layout, metadata, list(map(Path, paths)))

    def vectors(
        self,
        conditions: Float[Tensor, "n m"],
        *,
        stages: Stages | None = None,
        **draw: Unpack[SamplingOptions],
    ) -> Float[Tensor, "n D"]:
        """The adapters that `from_conditions` makes, as vectors of `layout`."""
        factors = self.synthesise(conditions, _names(conditions), stages=stages, **draw)
        return self.layout.flatten(factors)

    def _conditions_of(
        self,
        subjects: Sequence[Photo | Sequence[Photo]],
        face: int | None,
        facts: Mapping[str, object] | None,
        stages: Stages,
    ) -> Float[Tensor, "n m"]:
        if not subjects:
            return torch.zeros(0, self.encoder.width)
        return torch.stack([self.embed(photos, stages, face, facts) for photos in subjects])

    def embed(
        self,
        photos: Photo | Sequence[Photo],
        stages: Stages | None = None,
        face: int | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> Float[Tensor, " m"]:
        """The condition of one subject, from images and facts as in a call.

        Raises:
            ImageError: an image cannot be read, or shows no face, or not so many.
            ConfigError: the encoder does not know a fact, or looks for no face.
        """
        stages = stages or Stages()
        several = list(photos) if isinstance(photos, list | tuple) else [photos]
        with stages.stage("read"):
            whole, names = zip(*map(as_photo, several), strict=True) if several else ((), ())
        with stages.stage("embed"):
            return subject_condition(self.encoder, whole, names, face, facts)

    @torch.no_grad()
    def synthesise(
        self,
        conditions: Float[Tensor, "n m"] | None,
        names: Sequence[str],
        *,
        stages: Stages | None = None,
        **draw: Unpack[SamplingOptions],
    ) -> Factors:
        """Make n stacked adapters in one batch; each depends on its own condition and name only.

        Their ΔW is `strength` times what `decode` makes of their latents, as `metadata` states.

        Args:
            conditions: one per adapter; None to sample without.
            names: one per adapter; each names the noise that its adapter starts from.
            stages: collects the time of each stage.
            **draw: how the adapters are drawn, see `SamplingOptions`.
        """
        stages = stages or Stages()
        with stages.stage("sample"):
            latents = self.latents(conditions, names, **draw)
        with stages.stage("decode"):
            return scaled(self.decode(latents), self.strength)

    @torch.no_grad()
    def latents(
        self,
        conditions: Float[Tensor, "n m"] | None,
        names: Sequence[str],
        **draw: Unpack[SamplingOptions],
    ) -> Float[Tensor, "n k"]:
        """The latents of the adapters that `synthesise` makes of the same arguments."""
        if unknown := sorted(draw.keys() - SamplingOptions.__annotations__.keys()):
            raise TypeError(
                f"unexpected keyword {unknown[0]!r}: options are "
                f"{', '.join(SamplingOptions.__annotations__)}"
            )
        temperature = draw.get("temperature")
        temperature = self.temperature if temperature is None else temperature
        noise = temperature * self.hypernet.draw_noise(draw.get("seed", 0), names).to(self.dtype)
        conditions = None if conditions is None else conditions.to(noise)
        return self.hypernet.sample(
            conditions, noise, guidance=draw.get("guidance"), steps=draw.get("steps")
        )

    def decode(self, latents: Float[Tensor, "n k"]) -> Factors:
        """Stacked adapters of latents, without `strength`; differentiable."""
        return self.layout.unflatten(self.codec.decode(latents))

    def __repr__(self) -> str:
        """In one line: whom it knows, and what it is made of."""
        return (
            f"Synthesizer({type(self.hypernet).__name__}, knows {self.knows}, "
            f"base_name={self.base_name!r}, encoder={self.encoder.name!r}, "
            f"{len(self.layout.slots)} modules, trigger_phrase={self.trigger_phrase!r}, "
            f"strength={self.strength:g})"
        )

    @property
    def device(self) -> torch.device:
        """Where it computes; adapters are on the CPU."""
        return next(self.codec.buffers(), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision it computes in."""
        return self.codec.dtype

    @property
    def knows(self) -> str:
        """Whom it can make adapters for, in the plural."""
        return self.domain or self.encoder.domain

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Synthesizer":
        """The synthesizer on another device, in another precision; its encoder stays as it is.

        As of torch's modules, what this one holds is moved, too.
        """
        to: dict[str, Any] = {"device": device, "dtype": dtype}
        return replace(self, hypernet=self.hypernet.to(**to), codec=self.codec.to(**to))

    @property
    def fingerprint(self) -> str:
        """Identifies all that decides its adapters."""
        parts = [fingerprint(self.hypernet), fingerprint(self.codec), self.encoder.fingerprint]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def conditions(self, subjects: Sequence[Subject]) -> Float[Tensor, "n m"]:
        """The condition of all images of each subject."""
        return torch.stack([sphere_mean(subject_conditions(self.encoder, one)) for one in subjects])

    def predict(self, subjects: Sequence[Subject]) -> Factors:
        """Adapters from all images of each subject, for a collection to start from.

        They are as `decode` makes them: training finds its own strength.
        """
        names = [subject.id for subject in subjects]
        return self.decode(self.latents(self.conditions(subjects), names))

    def regression_in(self, codec: Codec) -> LatentRegression:
        """What this synthesizer predicts, in another codec's latents: diffusion starts around it.

        Raises:
            ConfigError: it is no regression, or a codec is not linear.
        """
        if not isinstance(self.hypernet, LatentRegression):
            raise ConfigError(
                "diffusion is anchored at a regression, but this synthesizer has "
                f"{type(self.hypernet).__name__}: give one that `lorasynth pretrain` made"
            )
        return in_latents_of(self.hypernet, self.codec, codec)

    def metadata(self, seed: int, strength: float | None = None) -> AdapterMetadata:
        """What is written into every file that this synthesizer makes.

        Args:
            seed: of the noise.
            strength: what the decoded ΔW was multiplied by; None: what `synthesise` takes.
        """
        name = self.base_name  # of a folder the last part: the rest says whose disk it is on
        base = name if name.startswith("hub:") else Path(name).name
        extra = {"encoder": self.encoder.name, "seed": str(seed), "base_name": base}
        extra |= {"strength": f"{self.strength if strength is None else strength:g}"}
        return AdapterMetadata(
            base_fingerprint=self.base_fingerprint,
            trigger_phrase=self.trigger_phrase,
            synthesised=True,
            extra=extra,
        )

    def save_pretrained(self, folder: Path | str, card: Card | None = None) -> None:
        """As `save`, with a model card (README.md); `card` says what the parts do not know.

        Raises:
            LorasynthError: the folder cannot be written.
        """
        self.save(folder, card=card or Card())

    def push_to_hub(self, name: str, card: Card | None = None, **options: Unpack[Upload]) -> str:
        """Upload the synthesizer with its model card; `from_pretrained("hub:...")` loads it.

        Args:
            name: of the repository, owner/name; made if there is none.
            card: what the parts do not know.
            **options: `private`, `revision`, `create_pr`, `commit_message`, `token`.

        Returns:
            The address of the commit or pull request.

        Raises:
            LorasynthError: the hub refuses it, or is not reached.
        """
        with TemporaryDirectory() as temporary:
            self.save_pretrained(Path(temporary) / "synthesizer", card)
            return upload(Path(temporary) / "synthesizer", name, **options)

    def save(self, folder: Path | str, *, half: bool = True, card: Card | None = None) -> None:
        """Write the synthesizer as a folder.

        Args:
            folder: to write; an earlier synthesizer there is replaced.
            half: store matrices as fp16.
            card: also write a model card, README.md.

        Raises:
            LorasynthError: the folder cannot be written.
        """
        earlier = checksums.names(folder) + names_in(folder)
        with atomic_directory(folder, earlier) as temporary:
            self.encoder.save(temporary / "encoder")
            self.codec.save(temporary / "codec", half=half)
            self.hypernet.save(temporary / "hypernet", half=half)
            description = {
                "version": _VERSION,
                "base_fingerprint": self.base_fingerprint,
                "base_name": self.base_name,
                "trigger_phrase": self.trigger_phrase,
                "strength": self.strength,
                "temperature": self.temperature,
                "domain": self.domain,
                "learned": sorted(self.learned),
                "layout": self.layout.to_dict(),
            }
            write_json(temporary / _DESCRIPTION, description)
            checksums.record(temporary)
            if card is not None:  # its text may be changed later, so no checksum covers it
                write_synthesizer_card(self, temporary, card)

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        cache_dir: Path | str | None = None,
        token: str | None = None,
    ) -> "Synthesizer":
        """Load a synthesizer from a folder, or from `hub:owner/name`.

        Args:
            name: folder, or `hub:owner/name`.
            revision: branch, tag or commit on the hub.
            device: where it computes.
            cache_dir: of what is fetched from the hub; default: the hub's own.
            token: for a private repository; default: that of `hf auth login`.

        Raises:
            BundleError: it is damaged, incomplete or cannot be fetched.
        """
        if on_hub := repository(name):
            folder = fetch(
                on_hub, "a synthesizer", revision=revision, cache_dir=cache_dir, token=token
            )
        else:
            folder = folder_of(name, "a synthesizer", BundleError)
        checksums.verify(folder)
        try:
            stated: dict[str, Any] = read_json(folder / _DESCRIPTION)
            return cls(
                base_fingerprint=str(stated["base_fingerprint"]),
                base_name=str(stated["base_name"]),
                trigger_phrase=str(stated["trigger_phrase"]),
                layout=Layout.from_dict(stated["layout"]),
                encoder=load_encoder(folder / "encoder", device),
                hypernet=load_hypernet(folder / "hypernet", device),
                codec=load_codec(folder / "codec", device),
                strength=float(stated.get("strength", 1.0)),
                temperature=float(stated.get("temperature", 1.0)),
                learned=frozenset(stated.get("learned", ())),
                domain=str(stated.get("domain", "")),
            )
        except KeyError as error:
            raise BundleError(
                f"{folder / _DESCRIPTION} must state {error}, but does not: save it again"
            ) from error


def _names(conditions: Float[Tensor, "n m"]) -> list[str]:
    """Names of noise streams: equal conditions start from equal noise."""
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in conditions]


def write_synthesizer_card(synth: Synthesizer, folder: Path, card: Card) -> Path:
    """Write the model card of a synthesizer into its folder, from what its parts state."""
    base = synth.metadata(0).extra["base_name"]
    on_hub = base.removeprefix("hub:") if base.startswith("hub:") else None
    report, learned = synth.codec.report, len(synth.learned)
    variance = report.get("explained_variance", [])
    licence = getattr(synth.encoder, "licence", "") or "not stated"
    facts: dict[str, object] = {
        "base model": base.removeprefix("hub:"),
        "its fingerprint": synth.base_fingerprint,
        "subjects": f"it knows {synth.knows}",
        "trigger phrase": f"`{synth.trigger_phrase}`",
        "condition encoder": f"{synth.encoder.name} (licence of its weights: {licence})",
        "codec": f"{type(synth.codec).__name__}, {synth.codec.latents} latents",
        "hypernetwork": type(synth.hypernet).__name__,
        "adapters": f"{len(synth.layout.slots)} modules, {synth.layout.size} parameters",
        "strength": f"{synth.strength:g}",
        "temperature": f"{synth.temperature:g}",
    }
    figures: dict[str, float | str] = {}
    if variance:
        figures["variance explained by the codec, of the adapters it was fitted to"] = (
            f"{variance[-1]:.3f}"
        )
    figures |= {"subjects that it has learned from": learned} if learned else {}
    data = {
        "library_name": "lorasynth",
        "base_model": on_hub,
        "instance_prompt": synth.trigger_phrase or None,
        "tags": ["text-to-image", "lora", "hypernetwork", "lorasynth"],
    }
    use = (
        "```python\nfrom lorasynth import Synthesizer\n\n"
        f'synth = Synthesizer.from_pretrained("hub:{REPOSITORY}")  # of this repository\n'
        'synth("photo.png").save("me.safetensors")\n```'
    )
    about = "Makes a LoRA of the subject of one reference image, without training."
    sections = [
        (f"Synthesizer for {base.removeprefix('hub:')}", about),
        ("Use", use),
        ("How it was made", as_list(facts)),
        ("Consent", card.consent or _UNSTATED),
    ]
    return write_card(folder, replace(card, figures=figures | dict(card.figures)), data, sections)


_UNSTATED = (
    "Whose images this synthesizer learned from, and whether they agreed, is not stated here. Make "
    "a LoRA of a person only with that person's consent, and do not use it to deceive."
)
