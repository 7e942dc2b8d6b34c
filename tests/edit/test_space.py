"""Edits are differences: they work on any adapter of the base model, and lose nothing of it."""

from dataclasses import replace

import pytest
import torch

from lorasynth.adapter import (
    Adapter,
    AdapterMetadata,
    Factor,
    Factors,
    Layout,
    Slot,
    canonicalise,
    project,
    stack,
)
from lorasynth.codec import PCA, PCAConfig
from lorasynth.core.errors import LayoutError
from lorasynth.edit import PATHS, LatentLibrary, LatentSpace

LAYOUT = Layout((Slot("a", 6, 5, 2), Slot("b", 4, 7, 2)))
GAUGES = ("shared", "procrustes", "sign")


def factors(seed: int, ranks: dict[str, int], a: Factors | None = None) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    widths = {slot.module: (slot.in_features, slot.out_features) for slot in LAYOUT.slots}
    widths["c"] = (3, 3)

    def one(name: str, rank: int) -> Factor:
        width, out = widths[name]
        rows = torch.randn(rank, width, generator=generator)
        return Factor(a[name].A if a else rows, torch.randn(out, rank, generator=generator))

    return {name: one(name, rank) for name, rank in ranks.items()}


def dense(adapter: Factors) -> dict[str, torch.Tensor]:
    return {name: factor.B @ factor.A for name, factor in adapter.items()}


def space_in(gauge: str) -> tuple[LatentSpace, Factors]:
    """Latents of twelve adapters in a gauge, and the gauge's reference."""
    reference = factors(0, {"a": 2, "b": 2})
    shared = reference if gauge == "shared" else None
    known = stack([factors(seed, {"a": 2, "b": 2}, shared) for seed in range(1, 13)])
    vectors = LAYOUT.flatten(canonicalise(known, gauge, reference))
    codec = PCA.fit(vectors, PCAConfig(latents=3))
    library = LatentLibrary(
        ids=tuple(map(str, range(12))),
        latents=codec.encode(vectors),
        conditions=torch.zeros(12, 0, 0),
        gauge=gauge,
        reference=LAYOUT.flatten(reference),
    )
    return LatentSpace(LAYOUT, codec, library), reference


#: A LoRA of other ranks and another A, with a module that the layout lacks, and without one it has.
FOREIGN = {"a": 3, "c": 1}


@pytest.mark.parametrize("gauge", GAUGES)
def test_a_step_adds_its_decoded_difference_to_any_adapter(gauge: str) -> None:
    space, _ = space_in(gauge)
    given = Adapter(factors(50, FOREIGN))
    step = torch.tensor([1.0, -0.5, 0.0])
    moved, before = dense(space.moved(given, step).factors), dense(given.factors)
    latent = space.latent(given)
    change = dense(space.decode(latent + step))
    for name, update in dense(space.decode(latent)).items():
        expected = before.get(name, torch.zeros_like(update)) + change[name] - update
        torch.testing.assert_close(moved[name], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved["c"], before["c"])


def test_an_adapter_of_the_library_keeps_its_rank() -> None:
    space, reference = space_in("shared")
    given = Adapter(factors(52, {"a": 2, "b": 2}, reference))
    assert space.moved(given, torch.ones(3)).layout == LAYOUT


@pytest.mark.parametrize("strength", [1.0, 1.3])
def test_a_step_has_the_strength_that_the_file_states(strength: float) -> None:
    space, _ = space_in("shared")
    latent, step = torch.tensor([0.3, 0.1, -0.2]), torch.tensor([1.0, 0.0, 0.5])
    [made] = space.adapters(latent[None], AdapterMetadata(), strength)
    assert made.metadata.extra["strength"] == f"{strength:g}"
    [expected] = space.adapters((latent + step)[None], AdapterMetadata(), strength)
    for name, update in dense(space.moved(made, step).factors).items():
        expected_update = dense(expected.factors)[name]
        torch.testing.assert_close(update, expected_update, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("path", PATHS)
def test_the_way_between_two_adapters_meets_both(gauge: str, path: str) -> None:
    space, reference = space_in(gauge)
    start = Adapter(factors(53, FOREIGN), AdapterMetadata(synthesised=True))
    end = Adapter(factors(54, {"a": 2, "b": 2}, reference))
    first, middle, last = space.between(start, end, [0.0, 0.5, 1.0], PATHS[path])
    assert first.factors is start.factors
    assert last.factors is end.factors
    assert middle.metadata.synthesised
    assert middle.metadata.extra == {"interpolated": "0.5"}
    if path == "lerp" and gauge == "shared":  # both linear: the mean of the updates
        ends = dense(start.factors), dense(end.factors)
        for name, update in dense(middle.factors).items():
            both = [one.get(name, torch.zeros_like(update)) for one in ends]
            torch.testing.assert_close(update, sum(both) / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gauge", GAUGES)
def test_projection_keeps_what_the_layout_can_hold(gauge: str) -> None:
    reference = factors(0, {"a": 2, "b": 2})
    inside = factors(55, {"a": 2, "b": 2}, reference if gauge == "shared" else None)
    vector = project(inside, LAYOUT, gauge, reference)
    for name, update in dense(LAYOUT.unflatten(vector)).items():
        torch.testing.assert_close(update, dense(inside)[name], rtol=1e-4, atol=1e-4)


def test_projection_of_a_higher_rank_is_the_nearest_of_the_layouts() -> None:
    high = factors(56, {"a": 4})
    found = dense(LAYOUT.unflatten(project(high, LAYOUT, "sign", factors(0, {"a": 2, "b": 2}))))
    u, s, vh = torch.linalg.svd(dense(high)["a"])
    torch.testing.assert_close(found["a"], u[:, :2] * s[:2] @ vh[:2], rtol=1e-4, atol=1e-4)
    assert not found["b"].any()


def test_adapters_of_another_base_model_are_refused() -> None:
    space, _ = space_in("shared")
    given = Adapter(factors(57, {"a": 2}))
    with pytest.raises(LayoutError, match="must change one of the 2 modules"):
        space.latent(replace(given, factors={"x": given.factors["a"]}))
    with pytest.raises(LayoutError, match="a must be 6 -> 5, but is 6 -> 7"):
        space.latent(replace(given, factors={"a": Factor(torch.ones(1, 6), torch.ones(7, 1))}))
