"""Adapters: low-rank factors, the layout of flat vectors, canonical form and gauge, LoRA files."""

from lorasynth.adapter.adapter import Adapter, AdapterMetadata
from lorasynth.adapter.canonical import balance, canonicalise, choose_reference
from lorasynth.adapter.factors import (
    Factor,
    Factors,
    concatenate,
    cosine,
    cosines,
    count,
    inner,
    inner_products,
    map_factors,
    module_norms,
    norm,
    pad_rank,
    require_finite,
    scaled,
    stack,
    unstack,
)
from lorasynth.adapter.gauge import GAUGES, Gauge
from lorasynth.adapter.layout import Kernel, Layout, Slot
from lorasynth.adapter.projection import project

__all__ = [
    "GAUGES",
    "Adapter",
    "AdapterMetadata",
    "Factor",
    "Factors",
    "Gauge",
    "Kernel",
    "Layout",
    "Slot",
    "balance",
    "canonicalise",
    "choose_reference",
    "concatenate",
    "cosine",
    "cosines",
    "count",
    "inner",
    "inner_products",
    "map_factors",
    "module_norms",
    "norm",
    "pad_rank",
    "project",
    "require_finite",
    "scaled",
    "stack",
    "unstack",
]
