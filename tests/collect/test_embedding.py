"""Embeddings beside a library's adapters, in the order of its rows."""

from dataclasses import dataclass, replace

import pytest
import torch
from colours import Colours

from lorasynth.adapter import Factor, Layout, Slot
from lorasynth.collect import embedding
from lorasynth.collect.embedding import column_of, embed_library
from lorasynth.core.errors import LibraryError
from lorasynth.library import Library

LAYOUT = Layout.from_slots([Slot("module", 3, 4, 1)])


def append(library, ids):
    factors = {"module": Factor(torch.rand(len(ids), 1, 3), torch.rand(len(ids), 4, 1))}
    library.append(factors, [{"id": name} for name in ids])


@pytest.fixture
def library(tmp_path, source):
    library = Library.create(tmp_path / "library", LAYOUT, gauge="none")
    append(library, source.ids[3:0:-1])
    return library


def test_rows_are_in_the_librarys_order(library, source):
    encoder = Colours()
    embeddings = embed_library(library, source, encoder)
    expected = [encoder.embed(source.load(name).images) for name in library.ids]
    assert embeddings.shape == (3, 3, 3)
    torch.testing.assert_close(embeddings, torch.stack(expected))
    torch.testing.assert_close(library.column("mean_colour_0123"), embeddings)


def test_the_smallest_number_of_images_is_taken_of_all(library, source):
    @dataclass
    class Uneven:
        ids: list[str]

        def load(self, subject_id):
            subject = source.load(subject_id)
            few = 2 if subject_id == library.ids[1] else 3
            return replace(subject, photos=subject.images[:few], captions=subject.captions[:few])

    assert embed_library(library, Uneven(source.ids), Colours()).shape == (3, 2, 3)


def test_a_whole_column_is_kept_and_a_short_one_made_again(library, source):
    encoder = Colours()
    embed_library(library, source, encoder)
    embed_library(library, source, encoder)
    assert encoder.calls == 3
    append(library, [source.ids[0]])
    assert embed_library(library, source, encoder).shape == (4, 3, 3)


def test_an_empty_library_is_refused(tmp_path, source):
    library = Library.create(tmp_path / "empty", LAYOUT, gauge="none")
    with pytest.raises(LibraryError, match="collect some"):
        embed_library(library, source, Colours())


def test_an_encoder_of_other_weights_has_a_column_of_its_own(library, source):
    embed_library(library, source, Colours())
    retrained = Colours(stated="4567")
    assert column_of(retrained) == "mean_colour_4567"
    embed_library(library, source, retrained)
    assert retrained.calls == 3


def test_any_name_of_an_encoder_makes_a_column(library, source):
    for name in ("112-arcface", "my encoder.v2"):
        encoder = Colours(name=name)
        embed_library(library, source, encoder)
        assert column_of(encoder) in library.columns
    assert column_of(Colours(name="112-arcface")) == "encoder_112_arcface_0123"


def test_a_killed_run_goes_on_with_the_next_part(library, source, monkeypatch):
    monkeypatch.setattr(embedding, "_PART", 1)

    class Killed(Colours):
        def embed(self, images):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().embed(images)

    with pytest.raises(KeyboardInterrupt):
        embed_library(library, source, Killed())
    encoder = Colours()
    embeddings = embed_library(library, source, encoder)
    assert encoder.calls == 1
    expected = [encoder.embed(source.load(name).images) for name in library.ids]
    torch.testing.assert_close(embeddings, torch.stack(expected))
    assert [path.name for path in library.path.glob(".mean*")] == []
    assert library.check().damages == ()
