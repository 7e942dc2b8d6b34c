"""Networks like ArcFace's in ONNX files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from lorasynth.condition.faces.alignment import ARCFACE
from lorasynth.condition.faces.contract import NETWORKS, FaceConfig, need
from lorasynth.core.checksums import file_hash
from lorasynth.core.errors import BundleError, ConfigError, reason_of

#: The file's name in an encoder's folder.
_FILE = "model.onnx"
#: Side of the squares where the file takes any.
_SIZE = 112


class OnnxNetwork:
    """A network like ArcFace's: one input (b, 3, s, s) of RGB, one output (b, m).

    Args:
        path: the file.
        mean: what is subtracted from pixels; None: 127.5, or 0 where the graph itself begins with
            a subtraction and a multiplication or division, as insightface reads it.
        std: what they are then divided by; None: 127.5, or 1.
        licence: of the weights.
        session: what runs it.

    Raises:
        ConfigError: a package is missing, or the network has another shape.
        BundleError: the file is missing or damaged.
    """

    template = ARCFACE
    stored_as = f"onnx:{_FILE}"

    def __init__(
        self,
        path: Path,
        *,
        mean: float | None = None,
        std: float | None = None,
        licence: str,
        session: Any,
    ) -> None:
        self.path = path
        self.licence = licence
        self.sha256 = file_hash(path)
        own = _normalises_itself(path)
        self.mean = mean if mean is not None else 0.0 if own else 127.5
        self.std = std if std is not None else 1.0 if own else 127.5
        self._session = session
        self._batched, self.size = self._input()
        self.width = self._output()

    def _input(self) -> tuple[bool, int]:
        """Whether it takes several squares at once, and their side."""
        shapes = [one.shape for one in self._session.get_inputs()]
        match shapes:
            case [[count, 3, int(height), int(width)]] if height == width:
                return count != 1, height
            case [[count, 3, None | str(), None | str()]]:
                return count != 1, _SIZE
        raise self._unlike(f"its inputs are {shapes}")

    def _output(self) -> int:
        """The width of an embedding, from embedding a grey square."""
        grey = torch.full((1, self.size, self.size, 3), 127, dtype=torch.uint8)
        try:
            outputs = self._session.run(None, self._fed(grey))
        except Exception as error:  # onnxruntime raises its own classes, and RuntimeError
            reason = reason_of(error)
            raise self._unlike(f"it cannot embed {self.size} x {self.size} pixels: {reason}") from (
                error
            )
        if len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[0] != 1:
            raise self._unlike(f"its outputs are {[output.shape for output in outputs]}")
        return int(outputs[0].shape[1])

    def _unlike(self, found: str) -> ConfigError:
        return ConfigError(
            f"an ArcFace network has one input (b, 3, s, s) and one output (b, m), but "
            f"{self.path} has not ({found}): give the recognition file, not a detector's"
        )

    def _fed(
        self, squares: UInt8[Tensor, "b side side 3"]
    ) -> dict[str, Float32[np.ndarray, "..."]]:
        [only] = self._session.get_inputs()
        pixels = (squares.permute(0, 3, 1, 2).float() - self.mean) / self.std
        dtype = np.float16 if only.type == "tensor(float16)" else np.float32
        return {only.name: np.ascontiguousarray(pixels.numpy(), dtype=dtype)}

    def __call__(self, squares: UInt8[Tensor, "b side side 3"]) -> Float[Tensor, "b m"]:
        """See `FaceNetwork`."""
        parts = squares.split(len(squares) if self._batched else 1)
        found = [self._session.run(None, self._fed(part))[0] for part in parts]
        return torch.from_numpy(np.concatenate(found)).float()

    def save(self, folder: Path) -> None:
        """See `FaceNetwork`: a copy of the file."""
        shutil.copyfile(self.path, folder / _FILE)


def providers(device: torch.device) -> list[Any]:
    """What onnxruntime is to compute with: that CUDA device where it can, else the CPU."""
    there = need("onnxruntime").get_available_providers()
    cuda = ("CUDAExecutionProvider", {"device_id": device.index or 0})
    wanted = [cuda] if device.type == "cuda" and cuda[0] in there else []
    return [*wanted, "CPUExecutionProvider"]


def session_of(path: Path, device: torch.device) -> Any:
    """What runs a file.

    Raises:
        BundleError: the file is missing or damaged.
    """
    if not path.is_file():
        raise BundleError(f"a network must be an ONNX file, but {path} is not there: check it")
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=providers(device))
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BundleError:
    reason = reason_of(error)
    return BundleError(f"{path} must be an intact ONNX file, but is not ({reason}): fetch it again")


def _normalises_itself(path: Path) -> bool:
    """Whether the graph begins with a subtraction and a multiplication, as mxnet's ArcFace does."""
    onnx = need("onnx")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own class
        raise _damaged(path, error) from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise ConfigError(
            f"a network must be one file, but {path} keeps weights in others: save it with "
            "onnx.save(..., save_as_external_data=False)"
        )
    first = {node.op_type for node in list(graph.node)[:8]}
    return "Sub" in first and bool(first & {"Mul", "Div"})


@NETWORKS.register("onnx")
def _network(argument: str, config: FaceConfig, folder: Path, device: torch.device) -> OnnxNetwork:
    path = folder / Path(argument).expanduser()
    session = session_of(path, device)
    return OnnxNetwork(
        path, mean=config.mean, std=config.std, licence=config.licence, session=session
    )
