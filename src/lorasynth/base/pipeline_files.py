"""The files of a diffusers pipeline: its JSON descriptions, and its parts in memory as stored."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from diffusers import pipelines
from diffusers.utils import logging as of_diffusers
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging as of_transformers

from lorasynth.core.config import read_json
from lorasynth.core.errors import BaseModelError, reason_of
from lorasynth.core.places import folder_of, repository
from lorasynth.core.weights import require_small_header

#: Dtypes in the headers of safetensors files.
_FORMATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def read_description(name: str, file: str) -> dict[str, Any]:
    """Read a JSON object of a pipeline, such as `model_index.json`.

    Args:
        name: folder of the pipeline, or hub:owner/name.
        file: path inside it.

    Raises:
        BaseModelError: there is no such file, or it holds something else.
    """
    on_hub = repository(name)
    folder = Path() if on_hub else folder_of(name, "a base model", BaseModelError)
    try:
        return read_json(hf_hub_download(on_hub, file) if on_hub else folder / file)
    except Exception as error:
        raise BaseModelError(
            f"a base model must be a pipeline folder or hub:owner/name with {file}, but {name} "
            f"cannot be loaded ({reason_of(error)})"
        ) from error


def weights_here(name: str, part: str) -> list[Path]:
    """The safetensors files of a pipeline's network that are on this disk, without asking the hub.

    Args:
        name: folder of the pipeline, or hub:owner/name.
        part: the network's name in it.
    """
    on_hub = repository(name)
    if on_hub is None:
        return _weight_files(folder_of(name, "a base model", BaseModelError) / part)
    found = try_to_load_from_cache(on_hub, f"{part}/config.json")
    return _weight_files(Path(found).parent) if isinstance(found, str) else []


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the bars of diffusers and transformers; downloads keep theirs."""
    shown = [part for part in (of_diffusers, of_transformers) if part.is_progress_bar_enabled()]
    downloads = not are_progress_bars_disabled()
    for part in shown:
        part.disable_progress_bar()
    if downloads:  # transformers has turned them off, too
        enable_progress_bars()
    try:
        yield
    finally:
        for part in shown:
            part.enable_progress_bar()


def _weight_files(folder: Path) -> list[Path]:
    # Variants, such as model.fp16.safetensors, are not what is loaded.
    return sorted(path for path in folder.glob("*.safetensors") if path.name.count(".") == 1)


def load_pipeline(name: str, pipeline_class: type[Any], left_out: Mapping[str, Any]) -> Any:
    """Load a pipeline, every part in the dtype that it is stored in.

    So nothing is lost before a fingerprint is taken, and no more memory is used than the files.

    Args:
        name: folder, or hub:owner/name.
        pipeline_class: of diffusers.
        left_out: arguments that say which parts are not loaded.

    Raises:
        BaseModelError: a part is missing or damaged, or parts do not fit each other.
    """
    try:
        with without_bars():
            if on_hub := repository(name):
                folder = Path(pipeline_class.download(on_hub, use_safetensors=True, **left_out))
            else:
                folder = folder_of(name, "a base model", BaseModelError)
            _refuse_own_code(folder)
            return pipeline_class.from_pretrained(
                folder,
                dtype={"default": torch.float32, **_stored_formats(folder)},
                local_files_only=True,
                use_safetensors=True,
                **left_out,
            )
    except BaseModelError:
        raise
    except Exception as error:
        raise BaseModelError(
            f"a base model must be a whole {pipeline_class.__name__} (folder or hub:owner/name), "
            f"but {name} cannot be loaded ({reason_of(error)})"
        ) from error


def classes_of(name: str) -> dict[str, tuple[str, str]]:
    """The library and the class of each part that a pipeline has, as `model_index.json` states.

    Raises:
        BaseModelError: a part is of another library than diffusers and transformers: diffusers
            would import whatever module is named.
    """
    found = {}
    for part, kind in read_description(name, "model_index.json").items():
        if part.startswith("_") or not isinstance(kind, list) or kind[:1] in ([], [None]):
            continue
        library = str(kind[0])
        own = library in ("diffusers", "transformers") or hasattr(pipelines, library)
        if not own or len(kind) != 2:
            raise BaseModelError(
                f"parts of a base model must be of diffusers or transformers, but {part} of {name} "
                f"is of {library}, which is not imported: use another model"
            )
        found[part] = (library, str(kind[1]))
    return found


def _refuse_own_code(folder: Path) -> None:
    """Refuse code that comes with a model: the Auto classes of transformers may offer to run it."""
    for part, (_, kind) in classes_of(str(folder)).items():
        for path in sorted((folder / part).glob("*.json")) if kind.startswith("Auto") else ():
            if "auto_map" in read_json(path):
                raise BaseModelError(
                    f"a base model's own code is never run, but {path} has auto_map: use a model "
                    "that transformers knows"
                )


def _stored_formats(folder: Path) -> dict[str, torch.dtype]:
    """Part -> the one dtype of its tensors; parts of several are left to the default."""
    formats = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = set().union(*map(_formats_in, _weight_files(part)))
        if len(found) == 1 and (stated := found.pop()) in _FORMATS:
            formats[part.name] = _FORMATS[stated]
    return formats


def _formats_in(path: Path) -> set[str]:
    require_small_header(path)
    with safetensors.safe_open(path, framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
