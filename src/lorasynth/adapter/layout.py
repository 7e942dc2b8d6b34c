"""Which slice of an adapter's flat vector belongs to which module.

Modules lie in the order of their names; within a module A comes before B, each row-major.  This is
the order of the weights2weights data set (Dravid et al. 2024), so its vectors can be read as they
are.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.adapter.factors import Factor, Factors, pad_rank
from lorasynth.core.errors import LayoutError

#: Version of the JSON form.
VERSION = 1


#: Height and width of a convolution's kernel; of one over time, its frames before.
Kernel: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """One adapted module: its name, its widths and the rank of its update.

    A convolution counts as the matrix that it applies to each patch: `in_features` is its input
    channels times the area of its `kernel` (height, width), which is None for a linear layer.
    """

    module: str
    in_features: int
    out_features: int
    rank: int
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        if min(self.in_features, self.out_features, self.rank) < 1:
            raise LayoutError(
                f"widths and rank must be at least 1, but {self.module} has in "
                f"{self.in_features}, out {self.out_features}, rank {self.rank}"
            )
        if self.kernel is not None and self.in_features % math.prod(self.kernel):
            raise LayoutError(
                f"the input of a convolution must be whole channels, but {self.module} has in "
                f"{self.in_features} with a kernel of {' x '.join(map(str, self.kernel))}"
            )

    @property
    def size(self) -> int:
        """Numbers in A and B together."""
        return self.rank * (self.in_features + self.out_features)

    def zeros(self) -> Factor:
        """An update of zero."""
        return Factor(
            torch.zeros(self.rank, self.in_features), torch.zeros(self.out_features, self.rank)
        )

    def factor_of(self, factors: Factors) -> Factor:
        """What an adapter does to the module, at this rank: zeros stand for what it lacks."""
        if self.module in factors:
            return pad_rank(factors[self.module], self.rank)
        like = next(iter(factors.values())).A
        return Factor(*(part.to(like) for part in self.zeros()))


@dataclass(frozen=True)
class Layout:
    """The slots of a flat vector, sorted by module name.

    Raises:
        LayoutError: there are no slots, or a module occurs twice, or they are not sorted.
    """

    slots: tuple[Slot, ...]

    def __post_init__(self) -> None:
        names = [slot.module for slot in self.slots]
        if not names:
            raise LayoutError("a layout must have at least one module, but has none")
        for before, after in itertools.pairwise(names):
            if before >= after:
                raise LayoutError(
                    f"modules of a layout must be sorted by name and occur once, but {after!r} "
                    f"follows {before!r}"
                )

    @classmethod
    def from_slots(cls, slots: Iterable[Slot]) -> "Layout":
        """Sort the slots and make a layout of them."""
        return cls(tuple(sorted(slots, key=lambda slot: slot.module)))

    @classmethod
    def from_factors(
        cls, factors: Factors, kernels: Mapping[str, Kernel] | None = None
    ) -> "Layout":
        """The layout that factors (with or without batch axes) are in.

        Args:
            factors: module name -> factor.
            kernels: of the modules that are convolutions.
        """
        found = kernels or {}
        return cls.from_slots(
            Slot(module, one.in_features, one.out_features, one.rank, found.get(module))
            for module, one in factors.items()
        )

    @classmethod
    def from_linears(cls, linears: Mapping[str, nn.Linear], rank: int) -> "Layout":
        """The layout of adapters of one rank on `linears` (module name -> module)."""
        return cls.from_slots(
            Slot(module, linear.in_features, linear.out_features, rank)
            for module, linear in linears.items()
        )

    @cached_property
    def size(self) -> int:
        """Width D of the flat vector."""
        return sum(slot.size for slot in self.slots)

    @property
    def modules(self) -> tuple[str, ...]:
        """Module names in order."""
        return tuple(slot.module for slot in self.slots)

    @cached_property
    def kernels(self) -> dict[str, Kernel]:
        """Module name -> kernel, of the modules that are convolutions."""
        return {slot.module: slot.kernel for slot in self.slots if slot.kernel is not None}

    @cached_property
    def offsets(self) -> dict[str, tuple[int, int]]:
        """Module name -> where its A and its B start in the flat vector."""
        offsets, start = {}, 0
        for slot in self.slots:
            offsets[slot.module] = (start, start + slot.rank * slot.in_features)
            start += slot.size
        return offsets

    def flatten(self, factors: Factors) -> Float[Tensor, "*n D"]:
        """Concatenate all factors; leading batch axes stay.

        Raises:
            LayoutError: modules or shapes of `factors` are not those of this layout.
        """
        self.require(factors)
        ordered = [tensor for module in self.modules for tensor in factors[module]]
        return torch.cat([tensor.flatten(-2) for tensor in ordered], dim=-1)

    def unflatten(self, vectors: Float[Tensor, "*n D"]) -> Factors:
        """Cut vectors into factors, as views; the inverse of `flatten`.

        Raises:
            LayoutError: the vectors are not D wide.
        """
        if vectors.shape[-1] != self.size:
            raise LayoutError(
                f"a vector of this layout must be {self.size} wide, but is {vectors.shape[-1]}: "
                "use the layout that it was saved with"
            )
        batch = vectors.shape[:-1]
        factors = {}
        for slot in self.slots:
            a, b = self.offsets[slot.module]
            end = b + slot.out_features * slot.rank
            factors[slot.module] = Factor(
                vectors[..., a:b].view(*batch, slot.rank, slot.in_features),
                vectors[..., b:end].view(*batch, slot.out_features, slot.rank),
            )
        return factors

    def require(self, factors: Factors) -> None:
        """Check that `factors` are in this layout.

        Raises:
            LayoutError: names the first module that is missing, unknown or of another shape.
        """
        odd = sorted(factors.keys() ^ self.offsets.keys())
        if odd:
            state = "missing" if odd[0] in self.offsets else "not in the layout"
            raise LayoutError(
                f"an adapter must have the {len(self.slots)} modules of its layout, but {odd[0]} "
                f"is {state}"
            )
        for slot in self.slots:
            a, b = factors[slot.module]
            expected = ((slot.rank, slot.in_features), (slot.out_features, slot.rank))
            found = (tuple(a.shape[-2:]), tuple(b.shape[-2:]))
            if found != expected:
                raise LayoutError(
                    f"A and B of {slot.module} must have the layout's shapes {expected[0]} and "
                    f"{expected[1]}, but have {found[0]} and {found[1]}"
                )

    def groups(
        self, key: Callable[[Slot], Hashable] = attrgetter("out_features", "in_features", "rank")
    ) -> list[tuple[str, ...]]:
        """Modules of equal `key` (shape and rank), which one batched operation can treat."""
        groups: dict[Hashable, list[str]] = {}
        for slot in self.slots:
            groups.setdefault(key(slot), []).append(slot.module)
        return [tuple(group) for group in groups.values()]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the offsets are there for readers in other languages."""
        fields = ("module", "in", "out", "rank", "A_offset", "B_offset")
        slots: list[dict[str, Any]] = []
        for slot in self.slots:
            widths = (slot.in_features, slot.out_features, slot.rank)
            values = (slot.module, *widths, *self.offsets[slot.module])
            slots.append(dict(zip(fields, values, strict=True)))
            if slot.kernel is not None:
                slots[-1]["kernel"] = list(slot.kernel)
        return {"version": VERSION, "size": self.size, "slots": slots}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Layout":
        """Build a layout from JSON values.

        Raises:
            LayoutError: the version is unknown, a field is missing, or the offsets contradict.
        """
        if value.get("version") != VERSION:
            raise LayoutError(
                f"a layout must have version {VERSION}, but has {value.get('version')!r}: "
                "read it with the release that wrote it"
            )
        try:
            slots = tuple(
                Slot(
                    str(slot["module"]),
                    int(slot["in"]),
                    int(slot["out"]),
                    int(slot["rank"]),
                    tuple(map(int, kernel)) if (kernel := slot.get("kernel")) else None,
                )
                for slot in value["slots"]
            )
            stated = [(slot["A_offset"], slot["B_offset"]) for slot in value["slots"]]
        except (KeyError, TypeError, ValueError) as error:
            raise LayoutError(f"a layout's slots must be complete, but {error!r} failed") from error
        layout = cls(slots)
        if stated != list(layout.offsets.values()) or value.get("size") != layout.size:
            raise LayoutError("a layout's offsets must follow from its shapes, but they do not")
        return layout

    @cached_property
    def fingerprint(self) -> str:
        """Short hash that two layouts share exactly if they are equal."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
