"""The node pack as the registry wants it, without ComfyUI."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PACK = ROOT / "integrations" / "comfyui"
SOURCE = "".join(path.read_text(encoding="utf-8") for path in PACK.glob("*.py"))
WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
OURS = set(re.findall(r'_schema\(\s*"(\w+)"', SOURCE))


def test_the_project_file_has_what_the_registry_requires() -> None:
    stated = tomllib.loads((PACK / "pyproject.toml").read_text())
    project, comfy = stated["project"], stated["tool"]["comfy"]
    assert "comfyui" not in project["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert (PACK / project["license"]["file"]).read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert project["urls"]["Repository"].startswith("https://github.com/")
    assert comfy["PublisherId"]
    assert comfy["DisplayName"]
    icon = PACK / comfy["Icon"].rpartition("/")[2]
    with Image.open(icon) as image:
        assert max(image.size) <= 400
    requirements = (PACK / "requirements.txt").read_text().split()
    assert project["dependencies"] == requirements


def test_the_code_does_nothing_that_the_registry_forbids() -> None:
    assert not re.search(r"\b(eval|exec|subprocess|os\.system|pip)\b", SOURCE)
    assert "NODE_CLASS_MAPPINGS" not in SOURCE, "then the V3 nodes would be passed over"
    assert SOURCE.count("\n") <= 410


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_whole(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    workflow = json.loads(text)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, start, slot, end, into, kind in workflow["links"]:
        assert number in nodes[start]["outputs"][slot]["links"]
        assert nodes[end]["inputs"][into]["link"] == number
        assert nodes[end]["inputs"][into]["type"] == nodes[start]["outputs"][slot]["type"] == kind
    used = {node["type"].removeprefix("Lorasynth") for node in nodes.values()}
    assert used & OURS
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    assert path.stem in readme


def test_the_readme_names_all_nodes() -> None:
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    titles = re.findall(r'_schema\(\s*"\w+", "([^"]+)"', SOURCE)
    assert len(titles) == len(OURS) == 10
    for title in titles:
        assert title in readme
