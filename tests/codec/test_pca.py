"""PCA: the same codec by either way, within memory, whatever kills it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example as always
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorasynth.codec import PCA, Budget, PCAConfig, load_codec
from lorasynth.codec.plan import Plan, make_plan
from lorasynth.codec.sources import bytes_left
from lorasynth.core.checkpoint import forget
from lorasynth.core.errors import BundleError, ConfigError, LibraryError
from lorasynth.library.vectors import VectorFile, write_vectors
from synthetic_vectors import SyntheticConfig, SyntheticVectors

GB = 10**9
ROWS, WIDTH = 150, 120
HERE = Path(__file__).parent


def plans(monkeypatch: pytest.MonkeyPatch, **sizes: object) -> None:
    """Plan for small blocks."""
    stated = {"cost": 1.0, "peak": 0, "rows": 17, "columns": 23, "block": 8, "capacity": 100}
    plan = Plan(**(stated | sizes))
    monkeypatch.setattr("lorasynth.codec.pca.make_plan", lambda *_args: plan)


def how(**options: object) -> Budget:
    return Budget(**({"memory": 4 * GB, "checkpoint_seconds": 0.0} | options))


def on_disk(vectors: Tensor, folder: Path) -> VectorFile:
    write_vectors(folder / "vectors.npy", vectors)
    return VectorFile(folder / "vectors.npy")


def example(rows: int = ROWS, width: int = WIDTH, decay: float = 1.2) -> Tensor:
    """Vectors far from zero, whose numbers differ in spread."""
    config = SyntheticConfig(rows=rows, width=width, decay=decay, spread=1.0)
    spread = torch.linspace(0.5, 2, width)
    return SyntheticVectors(config).rows(0, rows) * spread + 30


def agree(found: PCA, x: Tensor) -> None:
    """The codec is what a singular value decomposition gives, to the precision of float32."""
    deviation = x.double().std(0, correction=0)
    overall = deviation.square().mean().sqrt()
    unit = {"parameter": deviation, "global": overall, "none": torch.ones(())}[found.config.scale]
    scaled = (x.double() - x.double().mean(0)) / unit
    _, singular, components = torch.linalg.svd(scaled, full_matrices=False)
    components = components[: found.latents].float()
    variances = singular.square() / len(x)
    # cosines have several entries of the largest size, so signs may be fixed by another of them
    turned = (found.components * components).sum(1, keepdim=True).sign()
    torch.testing.assert_close(found.components * turned, components, atol=1e-3, rtol=0)
    kept = variances[: found.latents]
    expected = (kept if found.config.whiten else kept.mean().expand_as(kept)).sqrt().float()
    torch.testing.assert_close(found.unit, expected, atol=0, rtol=1e-4)
    shares = torch.tensor(found.report["explained_variance"])
    expected = (kept.cumsum(0) / variances.sum()).float()
    torch.testing.assert_close(shares, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [ROWS, 90], ids=["tall", "wide"])
@pytest.mark.parametrize("scale", ["global", "parameter", "none"])
@pytest.mark.parametrize("way", ["gram", "krylov"])
def test_the_codec_is_that_of_a_decomposition_of_the_whole(
    tmp_path: Path, monkeypatch, way: str, scale: str, rows: int
) -> None:
    x = example(rows)
    config = PCAConfig(latents=6, scale=scale, whiten=scale == "parameter")
    plans(monkeypatch, way=way)
    found = PCA.fit(on_disk(x, tmp_path), config, how(tolerance=1e-7))
    agree(found, x)
    assert found.report["computation"]["way"] == way


def test_equal_vectors_have_no_components(tmp_path: Path, monkeypatch) -> None:
    for way in ("gram", "krylov"):
        plans(monkeypatch, way=way)
        with pytest.raises(ConfigError, match="from 1 to 0 components"):
            PCA.fit(on_disk(torch.full((5, 9), 0.3), tmp_path), PCAConfig(latents=1), how())


def test_all_components_of_repeated_vectors(tmp_path: Path, monkeypatch) -> None:
    x = example(12).repeat(5, 1)
    for rows in (x, x.T.contiguous()):
        plans(monkeypatch, way="gram")
        found = PCA.fit(on_disk(rows, tmp_path), PCAConfig(), how())
        assert found.latents == torch.linalg.matrix_rank((rows - rows.mean(0)).double(), rtol=1e-5)
        with pytest.raises(ConfigError, match=f"from 1 to {found.latents} components, but got"):
            PCA.fit(on_disk(rows, tmp_path), PCAConfig(latents=13), how())
    plans(monkeypatch, way="krylov")
    found = PCA.fit(on_disk(x, tmp_path), PCAConfig(latents=11), how())
    assert found.report["computation"]["missing"] == 0
    with pytest.raises(ConfigError, match="from 1 to 11 components, but got latents=12"):
        PCA.fit(on_disk(x, tmp_path), PCAConfig(latents=12), how())


@settings(deadline=None, max_examples=8)
@given(latents=st.integers(1, 30), decay=st.floats(0.2, 3), tolerance=st.sampled_from([0.03, 1e-3]))
@always(latents=21, decay=0.75, tolerance=1e-3)  # gains that fall fast, then slowly after a restart
def test_krylov_captures_what_it_promises(
    tmp_path_factory: pytest.TempPathFactory, latents: int, decay: float, tolerance: float
) -> None:
    vectors = SyntheticVectors(SyntheticConfig(rows=300, width=260, decay=decay))
    source = on_disk(vectors.rows(0, 300), tmp_path_factory.mktemp("vectors"))
    capacity = latents + 2 * max(8, -(-latents // 4))  # so little that it must restart
    with pytest.MonkeyPatch.context() as patch:
        plans(patch, way="krylov", block=max(8, -(-latents // 4)), capacity=capacity, rows=64)
        codec = PCA.fit(source, PCAConfig(latents=latents), how(tolerance=tolerance))
    components = codec.components.double()
    identity = torch.eye(latents, dtype=torch.float64)
    torch.testing.assert_close(components @ components.T, identity, atol=1e-5, rtol=0)
    best = float(vectors.variances[:latents].sum())
    loss = 1 - vectors.captured(components) / best
    assert loss < 2 * tolerance
    stated = codec.report["explained_variance"][-1] * float(vectors.variances.sum())
    assert stated == pytest.approx(vectors.captured(components), rel=1e-4)


def test_signs_are_fixed(tmp_path: Path, monkeypatch) -> None:
    for way in ("gram", "krylov"):
        plans(monkeypatch, way=way)
        codec = PCA.fit(on_disk(example(), tmp_path), PCAConfig(latents=5), how())
        largest = codec.components.gather(1, codec.components.abs().argmax(1, keepdim=True))
        assert (largest > 0).all()


# Choosing


@pytest.mark.parametrize(
    ("sizes", "memory", "way"),
    [
        ((2_000, 30_000, 128), 8, "gram"),
        ((8_192, 99_648, 256), 8, "krylov"),
        ((8_192, 99_648, 256), 1, "krylov"),
        ((8_192, 99_648, 8_000), 8, "gram"),
        ((8_192, 99_648, None), 8, "gram"),
        ((64_974, 99_648, 256), 2, "krylov"),
        ((64_974, 99_648, 10_000), 20, "krylov"),
        ((500_000, 3_000, None), 4, "gram"),
    ],
)
def test_the_way_follows_from_sizes_and_memory(
    sizes: tuple[int, int, int | None], memory: float, way: str
) -> None:
    plan = make_plan(*sizes, int(memory * GB) - (512 << 20))
    assert plan.way == way
    assert plan.peak <= memory * GB
    if way == "krylov":
        assert plan.capacity >= (sizes[2] or 0) + 2 * plan.block


@pytest.mark.parametrize("memory", [14, 20])
def test_krylov_is_planned_only_where_its_blocks_suffice(memory: float) -> None:
    plan = make_plan(64_974, 99_648, 10_000, int(memory * GB))
    assert 200 * plan.block >= 2.25 * 10_000
    with pytest.raises(ConfigError, match="ask for fewer latents"):
        make_plan(100_000, 2_000_000, 10_000, 85 * GB)


def test_ending_early_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("lorasynth.codec.krylov.MOST_BLOCKS", 6)
    plans(monkeypatch, way="krylov")
    codec = PCA.fit(on_disk(example(), tmp_path), PCAConfig(latents=20), how(tolerance=0.0))
    assert codec.report["computation"]["missing"] > 0
    assert "PCA ended after 6 blocks with" in capsys.readouterr().err


def test_a_gpu_with_less_memory_decides(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (3 * GB, 80 * GB))
    step = 256 << 20
    assert bytes_left(Budget(memory=8 * GB, device="cuda")) == 3 * GB // step * step
    left = bytes_left(Budget(memory=2 * GB, device="cuda"))
    assert left == bytes_left(Budget(memory=2 * GB)) < 2 * GB


def test_what_does_not_fit_is_refused_with_what_it_would_take() -> None:
    with pytest.raises(ConfigError, match=r"takes at least \d\.\d\d GB .* but 1\.00 GB are left"):
        make_plan(64_974, 99_648, 10_000, GB)
    with pytest.raises(ConfigError, match="with all latents"):
        make_plan(64_974, 99_648, None, 8 * GB)


# Memory


@pytest.mark.long
def test_memory_is_obeyed(tmp_path: Path) -> None:
    """In a process of its own: 0.6 GB of vectors with 0.25 GB beside what Python and torch take."""
    config = SyntheticConfig(rows=6_000, width=24_576)
    path = tmp_path / "vectors.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (config.rows, config.width))
    some = SyntheticVectors(SyntheticConfig(rows=600, width=24_576)).rows(0, 600).numpy()
    for start in range(0, config.rows, 600):
        array[start : start + 600] = some * (1 + start / config.rows)
    del array
    program = [
        sys.executable,
        HERE / "fitted.py",
        path,
        tmp_path / "run",
        str(int(0.75 * GB)),
        "pca",
    ]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    way, peak = done.stdout.split()
    assert way == "krylov"
    assert int(peak) < 0.75 * GB
    assert path.stat().st_size > 0.58 * GB


#: In a process of its own: how much its peak grows by making a codec of 0.4 GB of components.
ASSEMBLED = """
import torch
from pathlib import Path
from lorasynth.codec import PCA, PCAConfig, Scaled, ScaledConfig

def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

components, width = torch.ones(1_000, 100_000), 100_000
scaled = Scaled.of(ScaledConfig(scale="global"), torch.zeros(width), torch.ones(width))
before = peak()
codec = PCA.of(PCAConfig(), scaled, components, torch.ones(1_000))
assert codec.components.data_ptr() == components.data_ptr()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_components_are_not_in_memory_twice() -> None:
    program = [sys.executable, "-c", ASSEMBLED]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000_000


# Kills


@pytest.mark.parametrize("way", ["gram", "krylov"])
@pytest.mark.parametrize("rows", [ROWS, 90], ids=["tall", "wide"])
def test_interrupted_after_any_checkpoint_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch, way: str, rows: int
) -> None:
    """Stop at every other checkpoint, in one run of many starts."""
    from lorasynth.core.checkpoint import Checkpoint

    source, config = on_disk(example(rows), tmp_path), PCAConfig(latents=20)
    plans(monkeypatch, way=way, capacity=36)  # so that the basis is restarted too
    expected = PCA.fit(source, config, how(tolerance=1e-6))
    save, chance = Checkpoint.save, np.random.default_rng(0)
    stops = 0

    def stopped(self: Checkpoint, *args: object, **more: object) -> None:
        save(self, *args, **more)
        if chance.random() < 0.5:
            raise KeyboardInterrupt

    for _ in range(400):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", stopped)
            try:
                found = PCA.fit(source, config, how(tolerance=1e-6, run=tmp_path / "run"))
                break
            except KeyboardInterrupt:
                stops += 1
    assert stops > 2
    assert found.components.equal(expected.components)
    assert found.unit.equal(expected.unit)
    assert found.report == expected.report


def test_a_checkpoint_of_another_computation_is_refused(tmp_path: Path, monkeypatch) -> None:
    source, run = on_disk(example(), tmp_path), tmp_path / "run"
    plans(monkeypatch, way="krylov")
    PCA.fit(source, PCAConfig(latents=6), how(run=run))
    with pytest.raises(ConfigError, match="holds the checkpoint of another computation"):
        PCA.fit(source, PCAConfig(latents=7), how(run=run))
    with pytest.raises(ConfigError, match="another computation"):
        PCA.fit(on_disk(example() + 1, tmp_path), PCAConfig(latents=6), how(run=run))
    forget(run, "*")
    assert not run.exists()
    PCA.fit(source, PCAConfig(latents=7), how(run=run))
    (run / "moments.safetensors").write_bytes(b"short")
    with pytest.raises(BundleError, match="must be an intact checkpoint"):
        PCA.fit(source, PCAConfig(latents=7), how(run=run))


# Bad vectors


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [3, 77])
def test_vectors_that_are_not_finite_are_named(
    tmp_path: Path, monkeypatch, bad: float, row: int
) -> None:
    x = example()
    x[row, 11] = bad
    for way in ("gram", "krylov"):
        plans(monkeypatch, way=way)
        with pytest.raises(LibraryError, match=f"adapter {row} of 150 has NaN or infinity"):
            PCA.fit(on_disk(x, tmp_path), PCAConfig(latents=6), how())


def test_a_codec_of_many_components_is_stored_and_read_in_half(tmp_path: Path, monkeypatch) -> None:
    plans(monkeypatch, way="gram")
    x = example()
    codec = PCA.fit(on_disk(x, tmp_path), PCAConfig(latents=100), how())
    codec.save(tmp_path / "half", half=True)
    again = load_codec(tmp_path / "half")
    assert (tmp_path / "half/codec.safetensors").stat().st_size < 2.2 * 100 * WIDTH + 3000
    torch.testing.assert_close(again.encode(x), codec.encode(x), atol=2e-2, rtol=1e-2)
