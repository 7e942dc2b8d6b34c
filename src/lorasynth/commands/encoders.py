"""`lorasynth encoders`: condition encoders by name, as folders, joined, or trained here."""

import os
from collections.abc import Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional

from lorasynth.commands.shared import OfSubjects, Repeated, Resumed
from lorasynth.condition.config import TrainedConfig
from lorasynth.core.command import Command, Flat, OnDevice, Out
from lorasynth.core.errors import ImageError, installing
from lorasynth.engine.config import ArcFaceConfig

if TYPE_CHECKING:
    from torch import Tensor

    from lorasynth.condition import TrainedEncoder
    from lorasynth.engine.arcface import Squares

#: An encoder learns to tell subjects apart, and is measured on some that it has not seen.
_LEAST_SUBJECTS = 8
#: Of those that are held out; more say little more.
_MOST_HELD_OUT = 500


@dataclass(frozen=True, kw_only=True)
class ListEncoders(Command):
    """List the condition encoders: what each needs, its licence, and whether it is installed.

    Every option that takes an encoder takes one of these names, or a folder that holds one.
    """

    group: ClassVar[str] = "Encoders"

    def run(self) -> None:
        """Print the table."""
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table

        from lorasynth.condition import NAMED

        table = Table(box=SIMPLE)
        for column in ("encoder", "of what, and what it needs", "licence of the weights", "here"):
            table.add_column(column, no_wrap=column == "encoder", overflow="fold")
        table.add_row("FOLDER", "what it says", "what it says", "yes")
        absent = []
        for _, one in sorted(NAMED.own.items()):
            here = "no" if one.missing else "yes"
            table.add_row(one.spelling, one.needs, one.licence, here)
            if one.missing:
                packages, extra = ", ".join(one.missing), one.extra
                absent.append(f"{one.spelling} lacks {packages}: {installing(extra)}")
        for name in sorted({*NAMED.names()} - {*NAMED.own}):  # which is not imported for this
            table.add_row(f"{name}:...", "what its package says", "its own", "yes")
        Console(markup=False).print(table)
        for line in absent:
            print(line)
        print("Any of them as a folder, with other options: lorasynth encoders make --help")
        print("One of your own, of images of many subjects: lorasynth encoders train --help")
        print("Attributes in words, alone or beside one: lorasynth encoders attributes --help")


@dataclass(frozen=True, kw_only=True)
class MakeEncoder(Command):
    """Save an encoder that comes trained as a folder, to set its options or to pass it on.

    Example: lorasynth encoders make onnx:arcface.onnx -o encoder --std 128
    --detector insightface:buffalo_l --licence MIT

    Attributes:
        encoder: As `lorasynth encoders list` spells it.
        out: Folder to write.
        name: Name that files which depend on it have.
        licence: Of the weights, where they do not say it.
        detector: What finds faces: dlib, insightface:PACK.
        mean: What is subtracted from the pixels (0 to 255) of an ONNX file's input.
        std: What they are then divided by.
        image_size: Side in pixels of the squares that it looks at.
    """

    group: ClassVar[str] = "Encoders"

    encoder: Positional[str]
    out: Out
    name: str | None = None
    licence: str | None = None
    detector: str | None = None
    mean: float | None = None
    std: float | None = None
    image_size: Annotated[int, Field(ge=8)] | None = None

    def run(self) -> Path:
        """Write the folder."""
        import torch

        from lorasynth.condition import NAMED
        from lorasynth.core.atomic import make_parent
        from lorasynth.core.config import from_dict, to_dict

        kind, _, argument = self.encoder.partition(":")
        named = NAMED.get(kind)
        config: Any = named.configure(argument)
        options = ("name", "licence", "detector", "mean", "std", "image_size")
        asked = {one: getattr(self, one) for one in options if getattr(self, one) is not None}
        config = from_dict(type(config), to_dict(config) | asked)
        make_parent(self.out)
        made = named.build(config, torch.device("cpu"))
        made.save(self.out)
        print(
            f"{self.out}: {made.name}, {made.image_size} pixels to {made.width} dimensions, "
            f"licence of the weights: {made.licence}"
        )
        return self.out


@dataclass(frozen=True, kw_only=True)
class MakeAttributes(Command):
    """Make an encoder of attributes in words, alone or beside what images show.

    Example: lorasynth encoders attributes library --column glasses --column top
    --identity bundle/encoders/avatar -o encoder, then lorasynth library embed, train, and
    lorasynth synth photo.png --attribute glasses=round -o me.safetensors

    Attributes:
        library: Library whose table has them.
        out: Folder to write.
        column: Column of the table; repeatable.
        identity: Encoder of images beside the attributes: a folder or a name.
    """

    group: ClassVar[str] = "Encoders"

    library: Positional[Path]
    out: Out
    column: Repeated = ()
    identity: str | None = None

    def run(self) -> Path:
        """Write the folder."""
        from lorasynth.condition import AttributeEncoder, AttributesConfig, load_encoder
        from lorasynth.library import Library

        config = AttributesConfig.of(Library.open(self.library).table.to_pylist(), self.column)
        identity = None if self.identity is None else load_encoder(self.identity)
        encoder = AttributeEncoder(config, identity)
        encoder.save(self.out)
        stated = "; ".join(f"{name}: {', '.join(v)}" for name, v in config.attributes.items())
        print(f"{self.out}: {encoder.width} dimensions; {stated}")
        return self.out


@dataclass(frozen=True, kw_only=True)
class JoinEncoders(Command):
    """Make one encoder of several: who it is, and what its images show.

    Example: lorasynth encoders join insightface:buffalo_l clip:hub:openai/clip-vit-base-patch32
    -o encoder

    Attributes:
        parts: Two encoders or more: folders or names.
        out: Folder to write.
    """

    group: ClassVar[str] = "Encoders"

    parts: Positional[tuple[str, ...]]
    out: Out

    def run(self) -> Path:
        """Write the folder."""
        from lorasynth.condition import JoinedEncoder, load_encoder

        encoder = JoinedEncoder([load_encoder(part) for part in self.parts])
        encoder.save(self.out)
        print(
            f"{self.out}: {encoder.name}, {encoder.width} dimensions, licences: {encoder.licence}"
        )
        return self.out


@dataclass(frozen=True, kw_only=True)
class TrainEncoder(Command, OfSubjects, Resumed, OnDevice):
    """Train an encoder that tells subjects apart, on images of many; run again to resume.

    Some subjects are held out; how well it identifies these by a second image is written to
    report.json in its folder. Its loss is ArcFace's (Deng et al. 2019).

    Example: lorasynth encoders train cats -o encoder --name cats --domain "portraits of cats"

    Attributes:
        out: Folder to write.
        encoder: What is trained.
        training: How.
        others: Images that show no subject, given as the subjects are, to learn when to refuse a
            photo; beside patterns and shuffled images, which are always among them.
        held_out: Share of the subjects that it is not trained on, but measured on.
        workers: Processes that read or draw images.
    """

    group: ClassVar[str] = "Encoders"

    out: Out
    encoder: Annotated[TrainedConfig, Flat] = field(default_factory=TrainedConfig)
    training: Annotated[ArcFaceConfig, Flat] = field(default_factory=ArcFaceConfig)
    others: str | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    workers: Annotated[int, Field(ge=1)] = os.cpu_count() or 1

    def run(self) -> dict[str, Any]:
        """Train and write the encoder, and its report, which is returned."""
        import torch

        from lorasynth.core.atomic import make_parent, write_json
        from lorasynth.core.config import to_dict
        from lorasynth.core.device import pick_device
        from lorasynth.engine.arcface import Squares, draw_negatives, train_encoder
        from lorasynth.images import subjects_in

        make_parent(self.out, self.run_folder)
        size, seed = self.encoder.image_size, self.training.optimisation.seed
        source = self.load_images(size)
        known, strangers = self._divided(source.ids)
        squares, left_out = Squares.read(source, known, size, self.workers)
        negatives = draw_negatives(squares.images, self.training.negatives, seed)
        if self.others is not None:
            beside = subjects_in(self.others, size=size)
            more, _ = Squares.read(beside, beside.ids, size, self.workers)
            negatives = torch.cat([negatives, more.images])
        seen, unread = Squares.read(source, strangers, size, self.workers)
        pairs = _pairs(seen)
        checkpoint = self.run_folder / f"{self.encoder.name}.safetensors"
        made = train_encoder(
            squares, negatives, self.encoder, self.training, checkpoint, pick_device(self.device)
        )
        report = {
            "images": self.images,
            "subjects": int(squares.subject.max()) + 1,
            "held_out": _identified(made, pairs),
            "left_out": left_out | unread,
            "training": to_dict(self.training),
        }
        made.cpu().save(self.out)
        write_json(self.out / "report.json", report)
        self._say(report)
        return report

    def _divided(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Those to train on, and those held out: drawn by their names, so the same each time."""
        from lorasynth.core.splits import held_out

        if len(ids) < _LEAST_SUBJECTS:
            raise ImageError(
                f"an encoder learns to tell subjects apart, so it needs images of at least "
                f"{_LEAST_SUBJECTS} subjects, but {self.images} has {len(ids)}: bring more, or use "
                "an encoder that comes trained (lorasynth encoders list)"
            )
        chosen = set(held_out(ids, self.held_out, _MOST_HELD_OUT))
        return [name for name in ids if name not in chosen], sorted(chosen)

    def _say(self, report: dict[str, Any]) -> None:
        found, left_out = report["held_out"], report["left_out"]
        print(
            f"{self.out}: trained on {report['subjects']} subjects; of {found['n']} held out, it "
            f"identifies {found['rank1']:.0%} by a second image (cosine of two images of one "
            f"subject {found['same']:.2f}, of two subjects {found['different']:.2f})"
        )
        for name, reason in left_out.items():
            print(f"left out {name}: {reason}")


def _pairs(squares: "Squares") -> "Tensor":
    """The first two images (n 2 h w 3) of each subject that has as many."""
    import torch

    subjects = [squares.images[squares.subject == i] for i in squares.subject.unique()]
    pairs = [images[:2] for images in subjects if len(images) > 1]
    if len(pairs) < 2:
        raise ImageError(
            "an encoder is measured on held-out subjects with two images or more, but "
            f"{len(pairs)} of {len(subjects)} have as many: bring more images, or hold out more"
        )
    return torch.stack(pairs)


def _identified(encoder: "TrainedEncoder", pairs: "Tensor") -> dict[str, Any]:
    """Rank-1 identification of subjects by their second image."""
    from lorasynth.evaluation.identification import identification

    first, second = (encoder.embed(images) for images in pairs.unbind(dim=1))
    return asdict(identification(first, second))
