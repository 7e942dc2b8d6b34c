"""InsightFace's packs: the package itself, with a pack of the right shape that is made here."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lorasynth.condition import FaceConfig, FaceEncoder, load_encoder
from lorasynth.condition.faces import NETWORKS, insightface
from lorasynth.core.errors import BundleError, ConfigError

from .onnx_files import BOX, POINTS, write_pack

pytest.importorskip("insightface", reason="needs lorasynth[insightface]")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("packs") / "tiny_l")


def bright(size: int = 64) -> torch.Tensor:
    return torch.full((size, size, 3), 220, dtype=torch.uint8)


def test_detections_come_back_as_they_are(pack: Path) -> None:
    encoder = load_encoder(f"insightface:{pack}")
    assert isinstance(encoder, FaceEncoder)
    assert (encoder.name, encoder.image_size, encoder.width) == ("insightface-tiny-l", 112, 16)
    assert "non-commercial" in encoder.licence
    [face] = encoder.faces(bright())
    assert face.box == pytest.approx(BOX, abs=0.5)
    np.testing.assert_allclose(face.points, POINTS, atol=0.5)
    assert 0.5 < face.score < 1
    assert encoder.faces(torch.zeros(64, 64, 3, dtype=torch.uint8)) == []


def test_a_pack_is_loaded_once_for_a_device(pack: Path) -> None:
    spec, cpu = f"insightface:{pack}", torch.device("cpu")
    loaded = insightface._pack(str(pack), cpu)
    network = NETWORKS.get("insightface")(str(pack), FaceConfig(name="x", network=spec), pack, cpu)
    assert network._session is loaded.models["recognition"].session  # type: ignore[attr-defined]
    assert network._session.get_providers() == ["CPUExecutionProvider"]  # type: ignore[attr-defined]


def test_a_saved_encoder_names_the_pack_and_copies_nothing(pack: Path, tmp_path: Path) -> None:
    encoder = load_encoder(f"insightface:{pack}")
    encoder.save(tmp_path / "encoder")
    assert [path.name for path in (tmp_path / "encoder").iterdir()] == ["config.json"]
    assert load_encoder(tmp_path / "encoder").fingerprint == encoder.fingerprint


def test_a_pack_must_be_named() -> None:
    with pytest.raises(ConfigError, match="insightface:buffalo_l"):
        load_encoder("insightface")


def test_a_pack_that_cannot_be_fetched_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: object, **__: object) -> None:
        print("download_path: somewhere")
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr("insightface.app.face_analysis.ensure_available", no_network)
    with pytest.raises(BundleError, match=r"'buffalo_x' is none \(ConnectionError: no n") as caught:
        load_encoder("insightface:buffalo_x")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("missing", ["recognition", "detection"])
def test_a_pack_that_is_not_whole_is_refused(tmp_path: Path, missing: str) -> None:
    pack = write_pack(tmp_path / "half")
    (pack / f"{missing}.onnx").unlink()
    with pytest.raises(BundleError, match="insightface pack"):
        load_encoder(f"insightface:{pack}")
