"""A Ray cluster of two nodes on this machine: workers die, the head dies, the library is whole."""

import os
import subprocess
import sys
import time
from pathlib import Path

import cluster_parts
import numpy as np
import pytest
import torch
from collecting import collect as collect_here
from colours import Colours
from PIL import Image
from test_parts import assert_same_library

from lorasynth.base import BaseModel
from lorasynth.collect import CollectConfig, collect
from lorasynth.collect.cluster import connected
from lorasynth.collect.embedding import embed_library
from lorasynth.collect.worker import embed_over
from lorasynth.core.errors import CollectionError, LibraryError
from lorasynth.core.randomness import numpy_stream
from lorasynth.images import FolderSubjects
from lorasynth.library import Library

pytest.importorskip("ray", reason="needs lorasynth[cluster]")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]

RECIPE = cluster_parts.RECIPE


@pytest.fixture(scope="module")
def subjects(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("spread") / "subjects"
    for subject in range(7):
        (root / f"{subject}").mkdir(parents=True)
        for image in range(3):
            noise = numpy_stream(3, subject, image).integers(0, 256, (16, 16, 3))
            Image.fromarray(noise.astype(np.uint8)).save(root / f"{subject}/{image}.png")
    return root


@pytest.fixture(scope="module")
def whole(subjects, folder, tmp_path_factory) -> Path:
    """What one process collects."""
    path = tmp_path_factory.mktemp("spread") / "whole"
    source, base = FolderSubjects(subjects), BaseModel.load(folder, dtype=torch.float64)
    collect_here(base, source, path, RECIPE, fleet=2)
    embed_library(Library.open(path), source, Colours())
    return path


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, one CPU each, whose workers can import what the tests send them."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        here = str(Path(__file__).parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        found = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        found.add_node(**node)
        yield found
        found.shutdown()


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path, cluster, folder, subjects, whole):
    loads = cluster_parts.Loads(folder, tmp_path / "killed", victim="3")
    source, out = FolderSubjects(subjects), tmp_path / "lib"
    with connected(cluster.address, loads) as workers:
        given = (loads.load_worker(), source, out, RECIPE, CollectConfig(fleet=2), workers)
        report = collect(*given)
        assert (tmp_path / "killed").exists()
        assert report.collected == Library.open(out).ids == source.ids
        assert collect(*given).collected == []
        assert len(list(tmp_path.glob("class-*"))) == 1
        embed_library(Library.open(out), source, Colours(), embed_over(workers, source))
        with pytest.raises(CollectionError, match="begins with a letter"):
            list(workers.map(refuse, [1]))
    assert_same_library(out, whole)


def refuse(worker: object, item: int) -> None:
    raise CollectionError("a name begins with a letter")


def test_a_lost_head_ends_in_one_line_and_the_same_command_goes_on(
    tmp_path, cluster, folder, subjects, whole
):
    out = tmp_path / "lib"
    arguments = [cluster.address, str(folder), str(subjects), str(out)]
    command = [sys.executable, cluster_parts.__file__, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as driver:
        wait_for_a_shard(out)
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        said, _ = driver.communicate(timeout=55)
    assert driver.returncode == 2, said
    # Where the head was on the command's own machine, Ray may first print its daemon's log.
    *before, line = said.decode().splitlines()
    assert not before or "(raylet)" in before[0]
    assert "Traceback" not in said.decode()
    assert "its head has not answered" in line
    assert "run the same command to go on" in line
    ids = FolderSubjects(subjects).ids
    assert 0 < len(Library.open(out)) < len(ids)
    with (
        pytest.raises(CollectionError, match="cannot be reached"),
        connected(cluster.address, cluster_parts.Loads(folder, out)),
    ):
        pass
    base = BaseModel.load(folder, dtype=torch.float64)
    collect_here(base, FolderSubjects(subjects), out, RECIPE, fleet=2)
    embed_library(Library.open(out), FolderSubjects(subjects), Colours())
    assert_same_library(out, whole)


def wait_for_a_shard(path: Path) -> None:
    for _ in range(1200):  # a busy machine takes a minute to start the workers
        try:
            if len(Library.open(path)):
                return
        except LibraryError:
            pass
        time.sleep(0.1)
    pytest.fail("nothing was collected")
