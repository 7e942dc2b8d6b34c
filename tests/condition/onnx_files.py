"""Small ONNX files of the shapes of ArcFace and of InsightFace's packs, with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

#: Side of what the detector of `write_pack` looks at.
DETECTOR_SIDE = 64


def write_arcface(
    path: Path,
    *,
    size: int | str = 112,
    batch: int | str = "batch",
    width: int = 16,
    first: str = "",
    outputs: int = 1,
    channels: int = 3,
    seed: int = 0,
) -> Path:
    """A network that pools squares to 4 x 4 cells (1, where it takes any size), times a matrix.

    Args:
        path: where.
        size: of its squares; a name for any.
        batch: a name for any number, or 1.
        width: of an embedding.
        first: "itself": it normalises its input, as mxnet's ArcFace does.
        outputs: how many embeddings.
        channels: of its input.
        seed: of the weights.
    """
    onnx = pytest.importorskip("onnx", reason="needs lorasynth[face]")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    shape = [batch, channels, size, size]
    given = helper.make_tensor_value_info("input", float32, shape)
    cells = 16 if isinstance(size, int) else 1
    matrix = np.random.default_rng(seed).normal(size=(channels * cells, width)).astype(np.float32)
    constants = [onnx.numpy_helper.from_array(matrix, "matrix")]
    nodes, last = [], "input"
    if first:
        constants += [
            onnx.numpy_helper.from_array(np.float32(value), name)
            for name, value in (("mean", 127.5), ("scale", 1 / 128))
        ]
        nodes += [
            helper.make_node("Sub", ["input", "mean"], ["centred"]),
            helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
        ]
        last = "scaled"
    if isinstance(size, int):
        cell = size // 4
        pool = {"kernel_shape": [cell, cell], "strides": [cell, cell]}
        nodes.append(helper.make_node("AveragePool", [last], ["pooled"], **pool))
    else:
        nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes += [
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
    ]
    names = ["embedding", *(f"more{i}" for i in range(outputs - 1))]
    nodes += [helper.make_node("Relu", ["embedding"], [name]) for name in names[1:]]
    results = [helper.make_tensor_value_info(name, float32, [batch, width]) for name in names]
    return _write(onnx, path, helper.make_graph(nodes, "arcface", [given], results, constants))


def write_pack(folder: Path, *, seed: int = 0) -> Path:
    """An InsightFace pack: a recognition file, and a detector shaped like SCRFD.

    The detector sees one face in every bright image, always at the same place.
    """
    folder.mkdir(parents=True)
    write_arcface(folder / "recognition.onnx", seed=seed)
    onnx = pytest.importorskip("onnx", reason="needs lorasynth[face]")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    side = DETECTOR_SIDE
    given = helper.make_tensor_value_info("input.1", float32, [1, 3, side, side])
    nodes = [helper.make_node("ReduceMean", ["input.1"], ["mean"], keepdims=0)]
    nodes.append(helper.make_node("Sigmoid", ["mean"], ["bright"]))
    constants, results = [], []
    kinds = {"score": _scores, "box": _boxes, "points": _points}
    for kind, values in kinds.items():
        for stride in (8, 16, 32):
            anchors, name = (side // stride) ** 2 * 2, f"{kind}{stride}"
            constants.append(onnx.numpy_helper.from_array(values(anchors, stride), f"{name}.value"))
            factor = [f"{name}.value", "bright"] if kind == "score" else [f"{name}.value"]
            node = "Mul" if kind == "score" else "Identity"
            nodes.append(helper.make_node(node, factor, [name]))
            width = constants[-1].dims[1]
            results.append(helper.make_tensor_value_info(name, float32, [anchors, width]))
    graph = helper.make_graph(nodes, "scrfd", [given], results, constants)
    _write(onnx, folder / "detection.onnx", graph)
    return folder


#: The one face that the detector of `write_pack` sees: the anchor at (32, 32) of stride 32.
BOX = (16.0, 16.0, 48.0, 48.0)
POINTS = np.array([[24.0, 26.0], [40.0, 26.0], [32.0, 34.0], [26.0, 42.0], [38.0, 42.0]])


def _scores(anchors: int, stride: int) -> np.ndarray:
    values = np.zeros((anchors, 1), np.float32)
    if stride == 32:
        values[6] = 1.0  # two anchors for each cell; the fourth cell is at (32, 32)
    return values


def _boxes(anchors: int, stride: int) -> np.ndarray:
    return np.full((anchors, 4), 16 / stride, np.float32)


def _points(anchors: int, stride: int) -> np.ndarray:
    return np.tile((POINTS - 32).ravel() / stride, (anchors, 1)).astype(np.float32)


def _write(onnx: Any, path: Path, graph: Any) -> Path:
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path
