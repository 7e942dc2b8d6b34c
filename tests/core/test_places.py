"""Names of folders, of the shipped models, and of the hub."""

from pathlib import Path

import pytest

from lorasynth.core import places
from lorasynth.core.errors import BundleError, LorasynthError


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here/mine").mkdir(parents=True)
    (tmp_path / "here/file").touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_a_folder_is_where_it_is(elsewhere: Path) -> None:
    assert places.folder_of("mine", "a thing", BundleError) == Path("mine")
    assert places.folder_of(Path.cwd(), "a thing", BundleError) == elsewhere / "here"


@pytest.mark.parametrize("name", ["owner/name", "bundle/synthesizr", "none", "/none", "a/b/c"])
def test_what_is_not_there_is_never_asked_of_the_hub(elsewhere: Path, name: str) -> None:
    assert places.repository(name) is None
    with pytest.raises(BundleError, match="is not there") as caught:
        places.folder_of(name, "a thing", BundleError)
    assert (f"write hub:{name}" in str(caught.value)) == (name.count("/") == 1 and name[0] != "/")
    if not name.startswith("bundle"):
        assert str((elsewhere / "here" / name).absolute()) in str(caught.value)


def test_a_file_is_no_folder(elsewhere: Path) -> None:
    with pytest.raises(BundleError, match="must be a folder, but file is a file"):
        places.folder_of("file", "a thing", BundleError)


def test_the_hub_is_asked_for_by_its_name() -> None:
    assert places.repository("hub:owner/na.me-1") == "owner/na.me-1"
    for name in ("hub:", "hub:one", "hub:a/b/c", "hub:../x", "hub:a/..", "hub:a/b?c", "hub:a b/c"):
        with pytest.raises(LorasynthError, match="is written hub:owner/name"):
            places.repository(name)


def test_a_default_is_found_beside_the_package_and_after_that_in_the_installed_one(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in ("checkout/bundle", "site/lorasynth_avatars"):
        (elsewhere / root / "base").mkdir(parents=True)
        (elsewhere / root / "MANIFEST.json").write_text("{}")
    (elsewhere / "site/lorasynth_avatars/__init__.py").touch()
    module = "src/lorasynth/core/places.py"
    monkeypatch.setattr(places, "__file__", str(elsewhere / "checkout" / module))
    found = places.folder_of("bundle/base", "a base model", BundleError)
    assert found == elsewhere / "checkout/bundle/base"
    assert places.local("bundle") == elsewhere / "checkout/bundle"
    monkeypatch.setattr(places, "__file__", str(elsewhere / "lib/src/lorasynth/core/places.py"))
    with pytest.raises(BundleError, match="beside the package and in the package lorasynth_ava"):
        places.folder_of("bundle/base", "a base model", BundleError)
    monkeypatch.syspath_prepend(elsewhere / "site")
    found = places.folder_of("bundle/base", "a base model", BundleError)
    assert found == elsewhere / "site/lorasynth_avatars/base"
    Path("bundle/base").mkdir(parents=True)
    assert places.folder_of("bundle/base", "a base model", BundleError) == Path("bundle/base")


def test_files_say_no_more_of_a_path_than_its_last_name() -> None:
    assert places.public_name("hub:owner/name") == "owner/name"
    assert places.public_name("/home/alice/models/sd15/") == "sd15"
    assert places.public_name(Path("models/../sd15")) == "sd15"
