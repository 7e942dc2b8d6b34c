import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lorasynth.adapter import Factor, Layout, Slot
from lorasynth.core.errors import LayoutError

widths = st.integers(1, 6)
slots = st.dictionaries(st.sampled_from("abcdef"), st.tuples(widths, widths, widths), min_size=1)


@settings(deadline=None)
@given(slots)
def test_flatten_and_unflatten_are_inverse(shapes: dict[str, tuple[int, int, int]]) -> None:
    layout = Layout.from_slots(Slot(module, *shape) for module, shape in shapes.items())
    vectors = torch.arange(2.0 * layout.size).view(2, layout.size)
    factors = layout.unflatten(vectors)
    assert torch.equal(layout.flatten(factors), vectors)
    assert Layout.from_factors(factors) == layout
    first = factors[layout.modules[0]]
    assert first.A.data_ptr() == vectors.data_ptr(), "unflatten must give views"
    assert torch.equal(layout.flatten(layout.unflatten(vectors[1])), vectors[1])


def test_a_comes_before_b_row_major() -> None:
    layout = Layout((Slot("m", 2, 1, 2),))
    factor = Factor(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]]))
    assert layout.flatten({"m": factor}).tolist() == [1, 2, 3, 4, 5, 6]


@settings(deadline=None)
@given(slots)
def test_json_form_keeps_the_layout(shapes: dict[str, tuple[int, int, int]]) -> None:
    layout = Layout.from_slots(Slot(module, *shape) for module, shape in shapes.items())
    again = Layout.from_dict(layout.to_dict())
    assert again == layout
    assert again.fingerprint == layout.fingerprint


def test_fingerprint_tells_layouts_apart() -> None:
    assert Layout((Slot("m", 2, 3, 1),)).fingerprint != Layout((Slot("m", 3, 2, 1),)).fingerprint


def test_from_linears_reads_widths() -> None:
    layout = Layout.from_linears({"b": nn.Linear(3, 5), "a": nn.Linear(2, 4)}, rank=2)
    assert layout.slots == (Slot("a", 2, 4, 2), Slot("b", 3, 5, 2))
    assert layout.size == 2 * (6 + 8)


def test_groups_join_equal_shapes(make_factors) -> None:
    groups = Layout.from_factors(make_factors()).groups()
    assert [len(group) for group in groups] == [2, 1, 1]


def broken_json(change: str) -> dict:
    value = copy.deepcopy(Layout((Slot("a", 2, 3, 1), Slot("b", 2, 3, 1))).to_dict())
    if change == "version":
        value["version"] = 99
    elif change == "offset":
        value["slots"][1]["A_offset"] += 1
    elif change == "missing":
        del value["slots"][0]["out"]
    elif change == "order":
        value["slots"].reverse()
    elif change == "rank":
        value["slots"][0]["rank"] = 0
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("version", "must have version 1, but has 99"),
        ("offset", "offsets must follow from its shapes"),
        ("missing", "must be complete"),
        ("order", "must be sorted by name and occur once"),
        ("rank", "must be at least 1, but a has in 2, out 3, rank 0"),
    ],
)
def test_broken_json_is_refused(change: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout.from_dict(broken_json(change))


def test_misfits_are_named(make_factors) -> None:
    factors = make_factors()
    layout = Layout.from_factors(factors)
    with pytest.raises(LayoutError, match=f"must be {layout.size} wide, but is 3"):
        layout.unflatten(torch.zeros(1, 3))
    partial = dict(list(factors.items())[1:])
    with pytest.raises(LayoutError, match=r"attn1\.to_q is missing"):
        layout.flatten(partial)
    with pytest.raises(LayoutError, match="extra is not in the layout"):
        layout.flatten({**factors, "extra": factors["mid_block.attentions.0.proj_in"]})
    with pytest.raises(LayoutError, match="must have the layout's shapes"):
        layout.flatten(make_factors(rank=1))
    with pytest.raises(LayoutError, match="at least one module"):
        Layout(())
