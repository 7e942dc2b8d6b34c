"""Every codec keeps the contract; one row each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorasynth.codec import CODECS, Budget, Codec, ScaledConfig, fit_codec, fit_into, load_codec
from lorasynth.codec.config import CONFIGS
from lorasynth.core.config import from_dict
from lorasynth.core.errors import BundleError, ConfigError, LayoutError, LibraryError
from lorasynth.library.blocks import BlockSource, row_blocks

N, D, RANK = 60, 40, 8
TRAINING = {"beta": 0.1, "epochs": 200, "batch": 16, "lr": 0.3}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "scaled-parameter": ("scaled", {}),
    "scaled-global": ("scaled", {"scale": "global"}),
    "scaled-none": ("scaled", {"scale": "none"}),
    "pca": ("pca", {"latents": RANK}),
    "pca-whitened": ("pca", {"latents": RANK, "whiten": True, "scale": "parameter"}),
    "vae-linear": ("vae", {"latents": RANK, **TRAINING}),
    "vae-deep": ("vae", {"latents": RANK, "depth": 3, "hidden": 32, **TRAINING}),
}
rows = pytest.mark.parametrize("row", ROWS)
#: The share of the vectors' variance that may be lost: they have RANK directions and 1 % noise.
LOSS = {"scaled": 1e-10, "pca": 0.01, "vae": 0.15}


def vectors(n: int = N, seed: int = 0) -> Tensor:
    """Adapter-like vectors: small values, few directions, one parameter that never varies."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(RANK, D, generator=torch.Generator().manual_seed(99))
    x = torch.randn(n, RANK, generator=generator) * torch.linspace(3, 1, RANK) @ basis
    x = 1e-3 * (x + 0.2 * torch.randn(n, D, generator=generator) + 5)
    x[:, 7] = 1e-3
    return x


_fitted: dict[str, Codec] = {}


def fitted(row: str) -> Codec:
    if row not in _fitted:
        name, options = ROWS[row]
        _fitted[row] = fit_codec(name, vectors(), options)
    return _fitted[row]


def _lost(codec: Codec, x: Tensor) -> float:
    error = codec.decode(codec.encode(x)) - x
    return float(error.square().sum() / (x - x.mean(0)).square().sum())


def test_every_codec_has_a_row() -> None:
    assert {name for name, _ in ROWS.values()} == set(CODECS.names())


@rows
def test_shapes_and_precision(row: str) -> None:
    codec = fitted(row)
    z = codec.encode(vectors(5, seed=1).double())
    assert z.shape == (5, codec.latents)
    assert codec.decode(z).shape == (5, D)
    assert codec.width == D
    assert z.dtype == codec.decode(z).dtype == torch.float32


@rows
def test_rebuilds_what_it_was_fitted_to(row: str) -> None:
    codec = fitted(row)
    assert _lost(codec, vectors()) < LOSS[ROWS[row][0]]
    assert codec.decode(codec.encode(vectors(5, seed=1))).isfinite().all()


@rows
def test_latents_have_unit_scale_overall(row: str) -> None:
    if row == "scaled-none":
        pytest.skip("leaves the vectors as they are, as it says")
    square = float(fitted(row).encode(vectors()).square().mean())
    low, high = (0.3, 4) if "vae" in row else (0.95, 1.05)
    assert low < square < high


@rows
def test_encode_and_decode_are_deterministic_row_by_row(row: str) -> None:
    codec, x = fitted(row), vectors()
    torch.testing.assert_close(codec.encode(x)[10:20], codec.encode(x[10:20]), atol=1e-5, rtol=1e-4)


@rows
def test_decode_is_differentiable(row: str) -> None:
    codec = fitted(row)
    z = torch.randn(2, codec.latents, requires_grad=True)
    codec.decode(z).square().sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert float(z.grad.abs().sum()) > 0


@rows
def test_save_and_load(row: str, tmp_path: Path) -> None:
    codec, x = fitted(row), vectors()
    codec.save(tmp_path / "whole")
    whole = load_codec(tmp_path / "whole")
    assert type(whole) is type(codec)
    assert whole.config == codec.config
    assert whole.report == codec.report
    assert whole.encode(x).equal(codec.encode(x))
    assert whole.decode(codec.encode(x)).equal(codec.decode(codec.encode(x)))
    codec.save(tmp_path / "half", half=True)
    half = load_codec(tmp_path / "half")
    again = half.decode(codec.encode(x))
    error = (again - codec.decode(codec.encode(x))).norm() / (x - x.mean(0)).norm()
    assert float(error) < 2e-3


@rows
def test_moves_to_another_precision(row: str, tmp_path: Path) -> None:
    fitted(row).save(tmp_path / "codec")
    codec = load_codec(tmp_path / "codec").double()
    assert codec.encode(vectors()).dtype == torch.float64


class Blocks:
    """A source that holds nothing, as another package may write one."""

    width, fingerprint = D, "made"

    def __len__(self) -> int:
        return N

    def read_block(self, row: int, column: int, out: Tensor, less: Tensor | None = None) -> None:
        n, w = out.shape
        out.copy_(vectors()[row : row + n, column : column + w])
        if less is not None:
            out -= less


@rows
def test_fit_takes_blocks_and_a_tensor_alike(row: str) -> None:
    name, options = ROWS[row]
    options = options | ({"epochs": 2} if name == "vae" else {})
    expected = fit_codec(name, vectors(), options).encode(vectors())
    assert fit_codec(name, Blocks(), options).encode(vectors()).equal(expected)


@rows
def test_it_is_written_with_its_figures_and_nothing_is_left(row: str, tmp_path: Path) -> None:
    name, options = ROWS[row]
    config = from_dict(
        CODECS.get(name).config_class, options | ({"epochs": 2} if name == "vae" else {})
    )
    budget = Budget(run=tmp_path / "run")
    codec = fit_into(tmp_path / "codec", name, Blocks(), config, budget)
    files = {"config.json", "codec.safetensors", *codec.figures}
    assert {path.name for path in (tmp_path / "codec").iterdir()} == files
    assert not list(tmp_path.glob("run/*.safetensors"))


class Centred(Codec):
    """A codec of another package, which reads its vectors in blocks."""

    config_class = ScaledConfig

    def __init__(self, config: ScaledConfig, width: int, latents: int) -> None:
        super().__init__(config, width, latents)
        self.register_buffer("mean", torch.zeros(width))

    @classmethod
    def _fit(cls, source: BlockSource, config: ScaledConfig, _budget: Budget) -> "Centred":
        codec = cls(config, source.width, source.width)
        for _, block in row_blocks(source, 7, torch.device("cpu")):
            codec.mean += block.sum(0) / len(source)
        return codec

    def _encode(self, x: Tensor) -> Tensor:
        return x - self.mean

    def _decode(self, z: Tensor) -> Tensor:
        return z + self.mean


@pytest.mark.parametrize("source", [vectors(), Blocks()], ids=["tensor", "blocks"])
def test_a_codec_of_another_package_streams_too(source: Tensor | Blocks) -> None:
    codec = Centred.fit(source)
    assert codec.config == ScaledConfig()
    torch.testing.assert_close(codec.encode(vectors()).mean(0), torch.zeros(D), atol=1e-6, rtol=0)
    with pytest.raises(LibraryError, match="two or more"):
        Centred.fit(vectors(1))


def test_configs_are_those_of_the_kinds() -> None:
    assert {name: CODECS.get(name).config_class for name in CODECS.names()} == CONFIGS


@rows
def test_identical_vectors_give_finite_latents_or_one_clear_error(row: str) -> None:
    name, options = ROWS[row]
    same = vectors(1).expand(4, D)
    if name == "pca":
        with pytest.raises(ConfigError, match="components"):
            fit_codec(name, same, options)
        return
    codec = fit_codec(name, same, options | ({"epochs": 2} if name == "vae" else {}))
    assert codec.decode(codec.encode(same)).isfinite().all()


@rows
def test_bad_vectors_are_refused(row: str) -> None:
    name, options = ROWS[row]
    with pytest.raises(LibraryError, match="two or more adapters, but got 1"):
        fit_codec(name, vectors(1), options)
    broken = vectors()
    broken[3, 2] = float("nan")
    with pytest.raises(LibraryError, match="adapter 3 of 60"):
        fit_codec(name, broken, options)
    with pytest.raises(ConfigError, match="has no option 'wdth'"):
        fit_codec(name, vectors(), {"wdth": 3})


@rows
def test_vectors_of_another_layout_are_refused(row: str) -> None:
    with pytest.raises(LayoutError, match=r"shape \(n, 40\), but got \(2, 41\)"):
        fitted(row).encode(torch.zeros(2, D + 1))
    with pytest.raises(LayoutError, match="latents"):
        fitted(row).decode(torch.zeros(2, D + 1))


@rows
def test_a_damaged_folder_is_told(row: str, tmp_path: Path) -> None:
    fitted(row).save(tmp_path / "codec")
    weights = tmp_path / "codec" / "codec.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(BundleError, match="intact"):
        load_codec(tmp_path / "codec")
    (tmp_path / "codec" / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="must describe a codec"):
        load_codec(tmp_path / "codec")
