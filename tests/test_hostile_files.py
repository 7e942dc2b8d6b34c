"""100,000 damaged files: each is read or refused in one line, within a time and memory.

The readers run in processes of their own, without the checks of shapes that the other tests have.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
#: Files for each reader.
FILES = {
    "images": 30_000,
    "loras": 20_000,
    "peft": 5_000,
    "weights": 10_000,
    "configs": 10_000,
    "tars": 10_000,
    "parquet": 5_000,
    "torch_files": 5_000,
    "vectors": 5_000,
}


@pytest.mark.parametrize("reader", FILES)
def test_no_file_does_more_than_be_refused(tmp_path: Path, reader: str) -> None:
    script, count = Path(__file__).with_name("fuzz.py"), FILES[reader]
    words = [sys.executable, "-W", "ignore", script, reader, str(count), "0"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] == count
    assert found["wrong"] == 0, found["first"]
    assert found["refused"] > 0.1 * count
