"""What a library's table says of its subjects."""

import pytest
import torch

from lorasynth.adapter import Factor, Layout, Slot
from lorasynth.collect.described import DescribedSubjects, facts_of
from lorasynth.core.errors import LibraryError
from lorasynth.library import Library


@pytest.fixture
def library(tmp_path, source):
    library = Library.create(
        tmp_path / "library", Layout.from_slots([Slot("module", 3, 4, 1)]), gauge="none"
    )
    rows = [
        {"id": name, "hat": "top", "male": True, "age": index, "tags": ["a"], "loss": 0.5}
        for index, name in enumerate(source.ids[:2])
    ]
    rows[1]["hat"] = None
    factors = {"module": Factor(torch.rand(2, 1, 3), torch.rand(2, 4, 1))}
    library.append(factors, rows)
    return library


def test_texts_and_numbers_are_facts_and_what_training_noted_is_not(library):
    first, second = facts_of(library).values()
    assert first == {"hat": "top", "male": 1.0, "age": 0.0}
    assert second == {"male": 1.0, "age": 1.0}


def test_subjects_have_their_facts_with_images_and_without(library, source):
    name = library.ids[0]
    alone = DescribedSubjects(library).load(name)
    assert alone.images.shape == (0, 1, 1, 3)
    assert alone.attributes == facts_of(library)[name]
    seen = DescribedSubjects(library, source).load(name)
    assert seen.images.equal(source.load(name).images)
    assert seen.attributes.items() >= alone.attributes.items()
    assert DescribedSubjects(library).ids == library.ids
    with pytest.raises(LibraryError, match="'nobody'"):
        DescribedSubjects(library).load("nobody")
