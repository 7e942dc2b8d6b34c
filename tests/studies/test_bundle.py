import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorasynth.avatars.bundle import MANIFEST, Bundle, verify
from lorasynth.avatars.make_bundle import BundleMaker, measure_bundle
from lorasynth.core.errors import BundleError, ConfigError
from lorasynth.library import Library

from .conftest import tiny_config


def test_the_manifest_covers_every_file(bundle_run: Path) -> None:
    bundle = bundle_run / "bundle"
    manifest = json.loads((bundle / MANIFEST).read_text())
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert files - {MANIFEST} == set(manifest["files"])
    assert manifest["bytes"] == sum((bundle / name).stat().st_size for name in manifest["files"])
    stated = {"command", "date", "config", "seconds", "measured", "parts", "evaluation"}
    assert stated <= set(manifest)


def test_a_bundle_is_measured_again_in_its_place(bundle_run: Path, tmp_path: Path) -> None:
    copy, device = tmp_path / "bundle", torch.device("cpu")
    shutil.copytree(bundle_run / "bundle", copy)
    stated = json.loads((copy / MANIFEST).read_text())
    measures = tiny_config().measures
    other = replace(measures, evaluation=replace(measures.evaluation, subjects=2))
    measure_bundle(copy, other, bundle_run / "evaluation", device, "lorasynth bundle measure")
    again = json.loads((copy / MANIFEST).read_text())
    changed = {name for name in again if again[name] != stated[name]}
    assert changed == {"measured", "evaluation"}
    assert again["measured"]["command"] == "lorasynth bundle measure"
    assert [row["n"] for row in stated["evaluation"]["rows"]] == [3] * 10
    assert [row["n"] for row in again["evaluation"]["rows"]] == [2] * 10


def test_making_again_changes_no_stage(bundle_run: Path) -> None:
    def stamps() -> dict[str, int]:
        parts = (bundle_run / "out").rglob("*.safetensors")
        return {str(path): path.stat().st_mtime_ns for path in parts}

    before = stamps()
    maker = BundleMaker(tiny_config(), bundle_run, torch.device("cpu"), workers=1)
    maker.make(bundle_run / "bundle")
    assert before
    assert stamps() == before
    assert maker.stages.missing() == []


def test_stages_can_be_made_alone(tmp_path: Path) -> None:
    maker = BundleMaker(tiny_config(), tmp_path, torch.device("cpu"), workers=1)
    maker.stages.make("avatar-second")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["avatar-second"]
    with pytest.raises(
        ConfigError, match=r"a stage must be one of perception, autoencoder, .* but is 'decoder'"
    ):
        maker.stages.make("decoder")


def test_a_run_goes_on_with_its_own_choices_alone(bundle_run: Path) -> None:
    device = torch.device("cpu")
    other = BundleMaker(replace(tiny_config(), library=7, seed=3), bundle_run, device, workers=1)
    told = r"choices\.json, but library was 6 and is now 7; seed was 0 and is now 3: give"
    with pytest.raises(ConfigError, match=told):
        other.stages.make("avatar-second")


@pytest.mark.parametrize("part", ["base/unet", "judge", "synthesizer/codec", "library"])
def test_a_changed_byte_is_found(bundle_run: Path, tmp_path: Path, part: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_run / "bundle", copy)
    path = next(p for p in (copy / part).iterdir() if p.suffix == ".safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="its contents have changed"):
        Bundle.open(copy)


def test_a_missing_file_and_a_missing_manifest_are_found(bundle_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_run / "bundle", copy)
    (copy / "recipe.json").unlink()
    with pytest.raises(BundleError, match=r"must hold recipe\.json"):
        verify(copy)
    with pytest.raises(BundleError, match="make bundle"):
        verify(tmp_path)


def test_the_sample_holds_raw_adapters_of_the_library(bundle_run: Path) -> None:
    library, sample = (
        Library.open(bundle_run / "out/library"),
        Library.open(bundle_run / "bundle/sample"),
    )
    assert sample.check().damages == ()
    assert sample.ids == library.ids[:2]
    first, second = library.factors([0]), sample.factors([0])
    for module, factor in first.items():
        torch.testing.assert_close(factor.B, second[module].B)
