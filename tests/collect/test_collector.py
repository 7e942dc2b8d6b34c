"""Whole collections: resume, kill -9, failures, memory, Ctrl-C."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from collecting import collect
from mean_predictor import MeanPredictor
from PIL import Image

from lorasynth.adapter import Factor
from lorasynth.base import BaseModel
from lorasynth.collect import Verdict, collector, worker
from lorasynth.core.errors import CollectionError, ImageError, LibraryError
from lorasynth.core.randomness import numpy_stream
from lorasynth.engine import Fleet, Recipe
from lorasynth.images import FolderSubjects
from lorasynth.library import Library

RECIPE = Recipe(steps=3, rank=2, targets=("to_q", "to_v"), images_per_step=2)


def vectors(path):
    """Subject id -> raw factors in one vector, after a check of every file."""
    library = Library.open(path)
    assert not library.check().damages
    raw = library.layout.flatten(library.factors(range(len(library))))
    return dict(zip(library.ids, raw, strict=True))


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-6, atol=1e-9)


def test_every_subject_once_with_what_is_known_of_it(tmp_path, base, source):
    report = collect(base, source, tmp_path / "lib", RECIPE, fleet=2)
    library = Library.open(tmp_path / "lib")
    assert report.collected == list(library.ids) == source.ids
    assert not report.failed
    row = library.table.to_pylist()[3]
    assert row["redness"] == source.load("subject-003").attributes["redness"]
    assert row["recipe"] == RECIPE.fingerprint
    assert row["seed"] == RECIPE.seed
    assert 0 < row["loss"] < 3
    assert row["attempt"] == 1
    assert len(row["losses"]) == RECIPE.steps, "each step's, as there are less than 20"
    assert row["losses"][-1] == pytest.approx(row["loss"])
    assert "seconds" not in row, "two equal runs give equal libraries"


def test_each_image_and_caption_is_encoded_once(tmp_path, base, source, monkeypatch):
    encode, images, captions = base.vae.encode, [], []

    def counted(batch):
        images.append(len(batch))
        return encode(batch)

    monkeypatch.setattr(base.vae, "encode", counted)
    hook = base.text_encoders["text_encoder"].register_forward_hook(
        lambda _, __, found: captions.append(len(found[0]))
    )
    with hook:
        collect(base, source, tmp_path / "lib", replace(RECIPE, steps=9), fleet=2)
    assert sum(images) == 5 * source.images
    assert sum(captions) == 5 * source.images + 3  # and the empty caption, once for each fleet


def test_goes_on_where_it_stopped(tmp_path, base, source):
    collect(base, replace(source, count=3), tmp_path / "lib", RECIPE, fleet=2)
    before = vectors(tmp_path / "lib")
    report = collect(base, source, tmp_path / "lib", RECIPE, fleet=2)
    assert report.collected == source.ids[3:]
    after = vectors(tmp_path / "lib")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert collect(base, source, tmp_path / "lib", RECIPE).collected == []


def test_a_prediction_is_where_adapters_start_and_part_of_the_recipe(tmp_path, base, source):
    still = replace(RECIPE, learning_rate=1e-12, alpha=6.0)
    start = MeanPredictor(base, still)
    collect(base, source, tmp_path / "lib", still, init_from=start)
    library = Library.open(tmp_path / "lib")
    assert library.info.recipe["init_from"] == "mean"
    predicted = start.predict([source.load(name) for name in library.ids])
    for name, factor in library.factors(range(len(library))).items():
        torch.testing.assert_close(factor.B, predicted[name].B.float())
    with pytest.raises(CollectionError, match="has init_from='mean' and this run init_from=None"):
        collect(base, source, tmp_path / "lib", still)
    other = replace(start, fingerprint="other")
    with pytest.raises(CollectionError, match="init_from='mean' and this run init_from='other'"):
        collect(base, source, tmp_path / "lib", still, init_from=other)


def test_subject_that_the_predictor_cannot_read_does_not_stop_the_others(tmp_path, base, source):
    class Choosy(MeanPredictor):
        def predict(self, subjects):
            if any(subject.id == source.ids[1] for subject in subjects):
                raise ImageError("an image must show a face, but this one does not")
            return super().predict(subjects)

    report = collect(base, source, tmp_path / "lib", RECIPE, init_from=Choosy(base, RECIPE))
    assert report.collected == [source.ids[0], *source.ids[2:]]
    assert report.failed == {source.ids[1]: "an image must show a face, but this one does not"}


def test_images_of_another_size_are_another_recipe(tmp_path, folder, source):
    small = BaseModel.load(folder, image_size=8)
    collect(small, source, tmp_path / "lib", RECIPE)
    assert Library.open(tmp_path / "lib").info.recipe["image_size"] == 8
    with pytest.raises(CollectionError, match="has image_size=8 and this run image_size=None"):
        collect(BaseModel.load(folder), source, tmp_path / "lib", RECIPE)


def test_other_recipe_or_base_is_refused(tmp_path, base, source, make_pipeline):
    collect(base, replace(source, count=1), tmp_path / "lib", RECIPE)
    with pytest.raises(CollectionError, match="has seed=0 and this run seed=1"):
        collect(base, source, tmp_path / "lib", replace(RECIPE, seed=1))
    other = BaseModel.load(make_pipeline(tmp_path / "other"))
    other.fingerprint = "0123456789abcdef"
    with pytest.raises(CollectionError, match="base model"):
        collect(other, source, tmp_path / "lib", RECIPE)
    assert list(Library.open(tmp_path / "lib").ids) == source.ids[:1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
@pytest.mark.long
def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path, folder, base):
    for subject in range(3):
        place = tmp_path / "subjects" / f"{subject}"
        place.mkdir(parents=True)
        for image in range(3):
            noise = numpy_stream(3, subject, image).integers(0, 256, (16, 16, 3))
            Image.fromarray(noise.astype(np.uint8)).save(place / f"{image}.png")
    script = Path(__file__).with_name("killed.py")
    arguments = [str(folder), str(tmp_path / "subjects"), str(tmp_path / "killed")]
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    libraries = sorted((tmp_path / "killed").glob("[0-9]*"))
    assert len(libraries) >= 4
    assert int(done.stdout) >= len(libraries)
    source = FolderSubjects(tmp_path / "subjects")
    collect(base, source, tmp_path / "whole", RECIPE)
    for library in libraries:
        assert sorted(Library.open(library).ids) == ["0", "1", "2"]
        assert_same(vectors(library), vectors(tmp_path / "whole"))


def test_one_collection_at_a_time(tmp_path, base, source):
    collect(base, replace(source, count=1), tmp_path / "lib", RECIPE)
    with (
        Library.open(tmp_path / "lib").locked(),
        pytest.raises(LibraryError, match="another process is writing"),
    ):
        collect(base, source, tmp_path / "lib", RECIPE)


def test_folder_of_something_else_is_left_alone(tmp_path, base, source):
    (tmp_path / "photo.png").write_bytes(b"precious")
    with pytest.raises(LibraryError, match="must be a library"):
        collect(base, source, tmp_path, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_fleet_halves_itself_when_memory_runs_out(tmp_path, base, source, monkeypatch):
    real = worker.train_fleet

    def small(base, recipe, subjects, **options):
        if len(subjects) > 2:
            torch.empty(1 << 60, dtype=torch.uint8)
        return real(base, recipe, subjects, **options)

    monkeypatch.setattr(worker, "train_fleet", small)
    report = collect(base, source, tmp_path / "lib", RECIPE, fleet=16)
    assert report.collected == source.ids
    assert report.fleet_size == 2


def test_memory_for_not_even_one(tmp_path, base, source, monkeypatch):
    def never(*arguments, **options):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(worker, "train_fleet", never)
    with pytest.raises(CollectionError, match=r"fleet of one adapter.*lorasynth plan"):
        collect(base, source, tmp_path / "lib", RECIPE, fleet=4)


def refuse_reddest(factors, subjects):
    redness = [subject.attributes["redness"] for subject in subjects]
    limit = 150
    return Verdict(
        passed=torch.tensor([value < limit for value in redness]), metrics={"seen": redness}
    )


def test_gate_keeps_failures_out_and_lists_them(tmp_path, base, source):
    red = {name: source.load(name).attributes["redness"] for name in source.ids}
    good = [name for name in source.ids if red[name] < 150]
    bad = [name for name in source.ids if red[name] >= 150]
    assert good
    assert bad
    report = collect(base, source, tmp_path / "lib", RECIPE, fleet=2, gate=refuse_reddest)
    assert report.collected == list(Library.open(tmp_path / "lib").ids) == good
    assert sorted(report.failed) == bad
    listed = json.loads((tmp_path / "lib.failures.json").read_text())
    assert listed[bad[0]]["seen"] == red[bad[0]]
    row = Library.open(tmp_path / "lib").table.to_pylist()[0]
    assert row["seen"] == red[good[0]]

    again = collect(base, source, tmp_path / "lib", RECIPE, gate=refuse_reddest)
    assert again.collected == []
    assert not again.failed
    assert listed[bad[0]]["attempt"] == 2
    retried = collect(base, source, tmp_path / "lib", RECIPE, retry_failed=True)
    assert retried.collected == bad
    assert json.loads((tmp_path / "lib.failures.json").read_text()) == {}
    assert Library.open(tmp_path / "lib").table["attempt"].to_pylist()[-len(bad) :] == [3] * len(
        bad
    )


class RefuseOnce:
    """Refuses the first adapter of each of some subjects, and remembers all that it saw."""

    def __init__(self, ids):
        self.ids = set(ids)
        self.seen = {}

    def __call__(self, factors, subjects):
        passed = []
        for row, subject in enumerate(subjects):
            self.seen.setdefault(subject.id, []).append(
                torch.cat([factor.B[row].flatten() for factor in factors.values()])
            )
            passed.append(subject.id not in self.ids or len(self.seen[subject.id]) > 1)
        return Verdict(passed=torch.tensor(passed))


@pytest.mark.parametrize("fleet", [2, 16])
def test_a_refused_adapter_is_trained_again_with_other_numbers(tmp_path, base, source, fleet):
    first, second = source.ids[1], source.ids[3]
    gate = RefuseOnce([first, second])
    report = collect(base, source, tmp_path / "lib", RECIPE, fleet=fleet, gate=gate)
    others = [name for name in source.ids if name not in gate.ids]
    library = Library.open(tmp_path / "lib")
    assert library.ids == report.collected == [*others, first, second]
    assert report.failed == {}
    assert library.table["attempt"].to_pylist() == [1] * len(others) + [2, 2]
    assert json.loads((tmp_path / "lib.failures.json").read_text()) == {}
    for name in (first, second):
        one, two = gate.seen[name]
        assert not torch.allclose(one, two, rtol=0.1)
    assert all(len(gate.seen[name]) == 1 for name in others)


def test_another_attempt_is_made_after_a_kill_too(tmp_path, base, source, monkeypatch):
    undisturbed, killed = RefuseOnce(source.ids[:2]), RefuseOnce(source.ids[:2])
    collect(base, source, tmp_path / "whole", RECIPE, gate=undisturbed)
    real = collector.train_and_judge

    def interrupted(worker, task, job):
        if max(task.values()) == 2:
            raise KeyboardInterrupt
        return real(worker, task, job)

    with monkeypatch.context() as patch:
        patch.setattr(collector, "train_and_judge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(base, source, tmp_path / "lib", RECIPE, gate=killed)
    report = collect(base, source, tmp_path / "lib", RECIPE, gate=killed)
    assert report.collected == source.ids[:2]
    assert_same(vectors(tmp_path / "lib"), vectors(tmp_path / "whole"))


def test_one_attempt_can_be_all(tmp_path, base, source):
    gate = RefuseOnce(source.ids[:1])
    report = collect(base, source, tmp_path / "lib", RECIPE, gate=gate, attempts=1)
    assert list(report.failed) == source.ids[:1]


def test_adapters_are_judged_in_halves_when_memory_runs_out(tmp_path, base, source):
    sizes = []

    def gate(factors, subjects):
        sizes.append(len(subjects))
        if len(subjects) > 2:
            torch.empty(1 << 60, dtype=torch.uint8)
        return refuse_reddest(factors, subjects)

    report = collect(base, source, tmp_path / "lib", RECIPE, gate=gate, attempts=1)
    whole = collect(base, source, tmp_path / "all", RECIPE, gate=refuse_reddest, attempts=1)
    assert max(sizes) > 2
    assert report.collected == whole.collected
    assert report.failed == whole.failed
    tables = [Library.open(tmp_path / name).table["seen"] for name in ("lib", "all")]
    assert tables[0] == tables[1]

    def never(factors, subjects):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(CollectionError, match="judge one adapter"):
        collect(base, source, tmp_path / "none", RECIPE, gate=never)


def test_adapter_that_diverged_does_not_join(tmp_path, base, source, monkeypatch):
    real = worker.train_fleet

    def diverging(base, recipe, subjects, **options):
        fleet = real(base, recipe, subjects, **options)
        [row] = [i for i, subject in enumerate(subjects) if source.ids[1] in subject.id]
        broken = {}
        for name, factor in fleet.factors.items():
            B = factor.B.clone()
            B[row, 0, 0] = float("nan")
            broken[name] = Factor(factor.A, B)
        return Fleet(broken, fleet.losses)

    monkeypatch.setattr(worker, "train_fleet", diverging)
    report = collect(base, source, tmp_path / "lib", RECIPE)
    assert list(report.failed) == [source.ids[1]]
    assert "diverged" in report.failed[source.ids[1]]
    assert report.collected == [source.ids[0], *source.ids[2:]]


def test_subject_that_cannot_be_read_does_not_stop_the_others(tmp_path, base, source, monkeypatch):
    real = type(source).load

    def load(self, name):
        if name == source.ids[2]:
            raise ImageError("an image must be whole, but subject-002/1.png is cut off")
        return real(self, name)

    monkeypatch.setattr(type(source), "load", load)
    report = collect(base, source, tmp_path / "lib", RECIPE, fleet=1)
    assert report.collected == [*source.ids[:2], *source.ids[3:]]
    assert report.failed == {
        source.ids[2]: "an image must be whole, but subject-002/1.png is cut off"
    }


def test_failures_of_a_library_that_was_deleted_are_forgotten(tmp_path, base, source):
    (tmp_path / "lib.failures.json").write_text(json.dumps({source.ids[0]: {"reason": "old"}}))
    report = collect(base, source, tmp_path / "lib", RECIPE)
    assert report.collected == source.ids
    assert not (tmp_path / "lib.failures.json").exists()


def test_id_that_occurs_twice(tmp_path, base, source, monkeypatch):
    monkeypatch.setattr(type(source), "ids", ["a", "b", "a"])
    with pytest.raises(CollectionError, match="'a' occurs twice"):
        collect(base, source, tmp_path / "lib", RECIPE)
