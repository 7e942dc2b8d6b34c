"""The package as a whole: version, light import, layers, lock, docstrings, and no pickles."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lorasynth

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "lorasynth"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_stated_alike_everywhere() -> None:
    assert lorasynth.__version__ == PROJECT["project"]["version"] == metadata.version("lorasynth")


@pytest.mark.parametrize("module", ["lorasynth", "lorasynth.commands.main"])
def test_import_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'diffusers'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", lorasynth.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(lorasynth, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="synthesiser"):
        _ = lorasynth.synthesiser


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_and_reads_no_pickle(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert list(pickles(tree)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_pickles_are_found(code: str) -> None:
    assert list(pickles(ast.parse(code)))


def test_safe_loads_are_not_taken_for_pickles() -> None:
    safe = "torch.load(path, weights_only=True); numpy.load(path, allow_pickle=False)"
    assert list(pickles(ast.parse(safe))) == []


def test_every_room_has_a_layer_and_a_line_in_the_docs() -> None:
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    layered = re.findall(r"\w+", " ".join(layers))
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert rooms - {"__init__"} <= set(layered)
    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    table = concepts.partition("| rooms | hold |")[2].partition("\n\n")[0]
    documented = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\|[^|]*\|", table, re.MULTILINE)))
    assert documented == [room for room in layered if room != "__main__"]


def test_the_lock_has_what_the_package_needs() -> None:
    pinned = {}
    text = (ROOT / "requirements.lock").read_text()
    for line in text.replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            name, *hashes = line.partition("#")[0].split(" --hash=")
            pin = Requirement(name)
            pinned[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
            assert hashes, f"{pin.name} has no hash: make lock"
    # Its build depends on the machine, so the Makefile pins it by its version alone.
    [pinned["torch"]] = re.findall(r"^TORCH = (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    installed = [extras[name] for name in ("avatars", "cluster", "face", "dev")]
    for text in sum(installed, project["dependencies"]):
        needed = Requirement(text)
        if needed.name != "lorasynth":
            version = pinned.get(canonicalize_name(needed.name))
            assert version is not None, f"{text} is not pinned: make lock"
            assert needed.specifier.contains(version), f"{text} is pinned to {version}: make lock"


def pickles(tree: ast.AST) -> Iterator[str]:
    """What in a module would load a pickle."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (name for name in names if name in {"pickle", "dill", "shelve", "joblib"})
        elif isinstance(node, ast.Call):
            options = {
                keyword.arg: isinstance(keyword.value, ast.Constant) and keyword.value.value
                for keyword in node.keywords
            }
            call = ast.unparse(node.func)
            if call == "torch.load" and options.get("weights_only") is not True:
                yield call
            if options.get("allow_pickle", False) is not False:
                yield call


def test_every_module_can_be_imported_on_every_system() -> None:
    """What only some systems have may be used where it is guarded, but not imported at the top."""
    only_unix = {"fcntl", "grp", "pwd", "resource", "termios"}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            assert not names & only_unix, path
