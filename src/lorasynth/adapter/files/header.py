"""What is written into the header of a LoRA file beside its tensors, and what is read from one."""

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lorasynth.adapter.adapter import AdapterMetadata
from lorasynth.adapter.families import SD2, Family
from lorasynth.adapter.files.container import HASHES

_PREFIX = "lorasynth."
_EXTRA = _PREFIX + "extra."
#: diffusers' configuration of a LoRA.
CONFIG_KEY = "lora_adapter_metadata"
#: Modules whose names cannot be told from their underscored spelling.
MODULES_KEY = _PREFIX + "modules"

#: Entries that say what the file itself is, so they are made anew and never kept.
_OWN = {"format", CONFIG_KEY, "ss_network_dim", "ss_network_alpha", "modelspec.sai_model_spec"}
_OWN |= {"modelspec.implementation", *HASHES}
#: The folders of a local path that is all of a text, and of one inside a text, which no URL is.
_ABSOLUTE = re.compile(r"\A(?:file:/|/|~[/\\]|[A-Za-z]:[/\\]|\\\\)[^\n]*[/\\]")
_INSIDE = re.compile(
    r"(?<![\w/:.~\\])(?:file:/|~?/|[A-Za-z]:[/\\]|\\\\)(?:[^\s/\\\"'<>|,;]*[/\\])+"
)


def to_header(metadata: AdapterMetadata) -> dict[str, str]:
    """Metadata as header entries: ours, and those of the file that it was read from."""
    return {
        **{key: _without_paths(value) for key, value in metadata.header.items()},
        _PREFIX + "created_by": metadata.created_by,
        _PREFIX + "base_fingerprint": metadata.base_fingerprint,
        _PREFIX + "trigger_phrase": metadata.trigger_phrase,
        _PREFIX + "synthesised": str(metadata.synthesised).lower(),
        **{_EXTRA + key: _without_paths(value) for key, value in metadata.extra.items()},
    }


def _without_paths(value: str) -> str:
    """A text, or the texts of a JSON value, without the folders of local paths.

    These say where something lies on somebody's disk, often with a name of theirs.
    """
    if not any(mark in value for mark in ("/", "\\")):
        return value
    try:
        tree = json.loads(value)
        cleaned = _in_tree(tree)
        return value if cleaned == tree else json.dumps(cleaned)
    except (ValueError, RecursionError):
        return _without_folders(value)


def _without_folders(text: str) -> str:
    if text.startswith("data:"):  # a picture in base64
        return text
    return _INSIDE.sub("", _ABSOLUTE.sub("", text))


def _in_tree(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_folders(str(key)): _in_tree(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_tree(inner) for inner in value]
    return _without_folders(value) if isinstance(value, str) else value


def from_header(header: Mapping[str, str]) -> AdapterMetadata:
    """Metadata from header entries; what a foreign file lacks stays empty."""
    phrase = header.get("modelspec.trigger_phrase", "")
    return AdapterMetadata(
        base_fingerprint=header.get(_PREFIX + "base_fingerprint", ""),
        trigger_phrase=header.get(_PREFIX + "trigger_phrase", "") or phrase,
        synthesised=header.get(_PREFIX + "synthesised", "false") == "true",
        created_by=header.get(_PREFIX + "created_by", ""),
        extra={
            key.removeprefix(_EXTRA): value
            for key, value in header.items()
            if key.startswith(_EXTRA)
        },
        header={
            key: value
            for key, value in header.items()
            if not key.startswith(_PREFIX) and key not in _OWN
        },
    )


def described(metadata: AdapterMetadata, family: Family | None, rank: int) -> dict[str, str]:
    """Entries that other programs look for, under those that the adapter came with.

    Args:
        metadata: of the adapter.
        family: that it is for, if that is known.
        rank: the highest in the file, which is alpha too.
    """
    title = metadata.trigger_phrase or metadata.extra.get("subject", "") or "LoRA"
    entries = {
        "format": "pt",
        "ss_network_module": family.network_module if family else "networks.lora",
        "ss_output_name": title,
        "modelspec.title": title,
        "modelspec.date": _today(),
    }
    if metadata.synthesised:
        entries["modelspec.description"] = "Made from reference images by lorasynth, not trained"
        entries["modelspec.tags"] = "synthetic"
    if family:
        entries["ss_base_model_version"] = family.base_version
        entries["modelspec.architecture"] = family.architecture
        entries["modelspec.resolution"] = family.resolution
        entries["ss_v2"] = str(family is SD2)
    fixed = {
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
    }
    if metadata.trigger_phrase:
        fixed["modelspec.trigger_phrase"] = metadata.trigger_phrase
    return {**entries, **to_header(metadata), **fixed}


def _today() -> str:
    """The date, or that of SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs)."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return now.date().isoformat()
