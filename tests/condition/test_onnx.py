"""ArcFace networks in ONNX files: read, fed and refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lorasynth.condition import load_encoder
from lorasynth.condition.faces.onnx import OnnxNetwork, providers, session_of
from lorasynth.core.errors import BundleError, ConfigError, LorasynthError
from lorasynth.core.randomness import torch_stream

from .onnx_files import write_arcface

onnx = pytest.importorskip("onnx", reason="needs lorasynth[face]")
pytest.importorskip("onnxruntime", reason="needs lorasynth[face]")


def squares(count: int = 3, size: int = 112) -> Tensor:
    shape = (count, size, size, 3)
    return torch.randint(0, 256, shape, generator=torch_stream(0, "squares")).to(torch.uint8)


def network(path: Path, **options: float) -> OnnxNetwork:
    session = session_of(path, torch.device("cpu"))
    return OnnxNetwork(path, licence="MIT", session=session, **options)


@pytest.mark.parametrize("there", [("CUDAExecutionProvider", "CPUExecutionProvider"), ()])
def test_the_device_that_was_chosen_runs_it(
    monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...]
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: list(there))
    assert providers(torch.device("cpu")) == ["CPUExecutionProvider"]
    second = [("CUDAExecutionProvider", {"device_id": 1})] if there else []
    assert providers(torch.device("cuda:1")) == [*second, "CPUExecutionProvider"]


def by_hand(path: Path, images: Tensor, mean: float, std: float) -> Tensor:
    """What the file computes."""
    [matrix] = [one for one in onnx.load(path).graph.initializer if one.name == "matrix"]
    weights = torch.from_numpy(onnx.numpy_helper.to_array(matrix).copy())
    unit = (images.permute(0, 3, 1, 2).float() - mean) / std
    return functional.avg_pool2d(unit, images.shape[1] // 4).flatten(1) @ weights


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize("size", [112, 128])
def test_pixels_are_fed_as_rgb_and_normalised_as_arcface_expects(
    tmp_path: Path, size: int, batch: int | str
) -> None:
    path = write_arcface(tmp_path / "a.onnx", size=size, batch=batch)
    made = network(path)
    assert (made.size, made.width) == (size, 16)
    images = squares(size=size)
    expected = by_hand(path, images, 127.5, 127.5)
    torch.testing.assert_close(made(images), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("first", "given", "fed", "expected"),
    [
        ("itself", {}, (0.0, 1.0), (127.5, 128.0)),  # which normalises in its graph
        ("plain", {"mean": 0.0, "std": 255.0}, (0.0, 255.0), (0.0, 255.0)),
    ],
)
def test_what_normalises_pixels(
    tmp_path: Path, first: str, given: dict[str, float], fed: object, expected: tuple[float, float]
) -> None:
    options = {"first": first} if first == "itself" else {}
    path = write_arcface(tmp_path / "a.onnx", **options)
    made = network(path, **given)
    assert (made.mean, made.std) == fed
    torch.testing.assert_close(
        made(squares()), by_hand(path, squares(), *expected), atol=1e-3, rtol=1e-4
    )


def test_a_file_that_takes_any_size_gets_that_of_arcface(tmp_path: Path) -> None:
    made = network(write_arcface(tmp_path / "a.onnx", size="side"))
    assert made.size == 112
    assert made(squares()).shape == (3, 16)


@pytest.mark.parametrize(
    ("options", "word"), [({"channels": 1}, "inputs"), ({"outputs": 9}, "outputs")]
)
def test_a_network_of_another_shape_is_refused(
    tmp_path: Path, options: dict[str, int], word: str
) -> None:
    path = write_arcface(tmp_path / "a.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"one output \(b, m\), but .*a\.onnx has not.*{word}"):
        network(path)


def test_a_map_instead_of_an_embedding_is_refused(tmp_path: Path) -> None:
    model = onnx.load(write_arcface(tmp_path / "a.onnx"))
    del model.graph.node[1:]
    model.graph.output[0].name = "pooled"
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for value in (1, 3, 4, 4):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = value
    onnx.save(model, tmp_path / "map.onnx")
    with pytest.raises(ConfigError, match=r"its outputs are \[\(1, 3, 4, 4\)\]"):
        network(tmp_path / "map.onnx")


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    model = onnx.load(write_arcface(tmp_path / "a.onnx"))
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(ConfigError, match="keeps weights in others"):
        network(tmp_path / "b.onnx")


@pytest.mark.parametrize("content", [None, b"PREFIX", b"no network", b""])
def test_a_file_that_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, content: bytes | None
) -> None:
    path = write_arcface(tmp_path / "a.onnx")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200] if content == b"PREFIX" else content)
    with pytest.raises(LorasynthError, match=r"a\.onnx") as caught:
        load_encoder(f"onnx:{path}")
    assert "\n" not in str(caught.value)


def test_a_saved_encoder_has_the_file_with_it(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="needs lorasynth[face]")
    path = write_arcface(tmp_path / "Arc Face.onnx")
    encoder = load_encoder(f"onnx:{path}")
    assert encoder.name == "Arc-Face"
    encoder.save(tmp_path / "encoder")
    path.unlink()
    (tmp_path / "encoder").rename(tmp_path / "elsewhere")
    loaded = load_encoder(tmp_path / "elsewhere")
    assert loaded.fingerprint == encoder.fingerprint
    write_arcface(tmp_path / "elsewhere" / "model.onnx", seed=1)
    with pytest.raises(BundleError, match="sha256"):
        load_encoder(tmp_path / "elsewhere")
