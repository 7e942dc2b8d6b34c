"""Keys of LoRA files: prefix, name of a layer, ending; in every spelling that is in use."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lorasynth.core.errors import FileFormatError

#: What keys begin with -> (format, part of the pipeline), names with dots.  Longer ones come first.
_DOTTED = {
    "model.diffusion_model.": ("comfyui", ""),
    "diffusion_model.": ("comfyui", ""),
    "conditional_transformer.": ("comfyui", ""),
    "base_model.model.": ("peft", ""),
    "transformer.": ("diffusers", ""),
    "unet.": ("diffusers", ""),
    **{
        f"{name}.": ("diffusers", name)
        for name in ("text_encoder", *(f"text_encoder_{n}" for n in (2, 3, 4)))
    },
    "": ("comfyui", ""),
}
#: The same where dots are underscores.
_UNDERSCORED = {
    "lora_unet_": "",
    "lora_transformer_": "",
    "lycoris_": "",
    **{f"lora_{tag}_": tag for tag in ("te1", "te2", "te3", "te")},
}
_COMFYUI_TEXT = re.compile(r"text_encoders\.(\w+)\.transformer\.")
#: What saving a wrapped network puts before the names of its layers.
_NETWORKS = ("base_model.model.", "_orig_mod.", "module.")
_WRAPPERS = (*_NETWORKS, "unet.", "transformer.", "diffusion_model.")

_LORA = {
    "down": r"\.lora_(?:A|down)(?:\.(?P<down_name>\w+))?\.weight"
    r"|[._]lora(?:_linear_layer)?\.down\.weight",
    "up": r"\.lora_(?:B|up)(?:\.(?P<up_name>\w+))?\.weight"
    r"|[._]lora(?:_linear_layer)?\.up\.weight",
    "alpha": r"\.alpha",
}
#: Kind of adapter -> endings of its keys; none of these is B·A alone.
_OTHERS = {
    "DoRA": r"\.(dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?)",
    "LoHa": r"\.(hada_(?:w1_a|w1_b|w2_a|w2_b|t1|t2))",
    "LoKr": r"\.(lokr_(?:w1|w1_a|w1_b|w2|w2_a|w2_b|t1|t2))",
    "a LoRA with a Tucker core": r"\.(lora_mid(?:\.\w+)?\.weight)",
    "BOFT": r"\.(boft_\w+(?:\.\w+)*)",
    "OFT": r"\.(oft_(?!diag)\w+(?:\.\w+)*)",
    "IA3": r"\.(ia3_l(?:\.\w+)?|on_input)",
    "VeRA": r"\.(vera_lambda_\w+(?:\.\w+)?)",
    "PEFT's AdaLoRA": r"\.(lora_E(?:\.\w+)?|ranknum(?:\.\w+)?)",
    "GLoRA": r"\.([ab][12]\.weight|bm|b[12])",
    "a LoRA on embeddings": r"\.(lora_embedding_[AB](?:\.\w+)?)",
    "a LoRA with biases": r"\.(lora_(?:B|up)(?:\.\w+)?\.bias)",
    "a LoRA with trained norms": r"\.([wb]_norm)",
    "a LoRA with whole modules": r"(\.modules_to_save(?:\.\w+)*)",
    "a difference of whole weights": r"\.(diff|set_weight)",
    "a difference of biases": r"\.(diff_b)",
    "a LoRA that reshapes weights": r"\.(reshape_weight)",
}
#: Those that add matrices to the weights, of which a LoRA can be made.
ADDITIVE = ("LoHa", "LoKr", "a LoRA with a Tucker core", "a difference of whole weights")
#: Those that change what is no matrix.
_VECTORS = ("a LoRA with biases", "a LoRA with trained norms", "a difference of biases")
DORA = "DoRA"
_PATTERNS = _LORA | {f"kind{n}": pattern for n, pattern in enumerate(_OTHERS.values())}
_ENDING = re.compile(f"(?:{'|'.join(f'(?P<{name}>{p})' for name, p in _PATTERNS.items())})$")
#: The longest ending, so that a search begins near the end of a long key.
_REACH = 80

#: Names of layers that old versions of diffusers gave to their LoRAs -> names of the layers.
_OLD_NAMES = {
    ".processor.to_out": ".to_out.0",
    ".processor.": ".",
    ".self_attn.to_q": ".self_attn.q_proj",
    ".self_attn.to_k": ".self_attn.k_proj",
    ".self_attn.to_v": ".self_attn.v_proj",
    ".self_attn.to_out": ".self_attn.out_proj",
}


@dataclass(frozen=True)
class Key:
    """One key of a LoRA file.

    Attributes:
        spelled: the layer as the file spells it, with its prefix.
        format: what such keys are called.
        prefix: what it begins with.
        tag: the text encoder that it names, empty for the denoiser.
        name: the layer without prefix and wrappers.
        dotted: whether its name has dots.
        part: `down`, `up`, `alpha`, or the ending of another kind.
        kind: of the adapter that has such an ending; empty for a plain LoRA.
        adapter: the name of the adapter in the key, mostly empty or `default`.
        ending: `AB`, `du` (down and up), `default` (A and B of an adapter of that name) or `old`.
        wrapped: whether its name was that of a layer in a wrapped network.
    """

    spelled: str
    format: str
    prefix: str
    tag: str
    name: str
    dotted: bool
    part: str
    kind: str
    adapter: str
    ending: str
    wrapped: bool


@lru_cache(maxsize=1 << 14)  # the files of a folder have the same keys
def parse(key: str) -> Key | None:
    """Take a key apart; None if it is not spelled as a key of an adapter."""
    start = max(0, len(key) - _REACH)
    found = _ENDING.search(key, start)
    if found is None or found.start() == 0:
        return None
    spelled, part, kind, adapter = key[: found.start()], str(found.lastgroup), "", ""
    if part in _LORA:
        adapter = found.groupdict().get(f"{part}_name") or ""
    else:
        kind = list(_OTHERS)[int(part.removeprefix("kind"))]
        part = found[int(found.lastindex or 0) + 1]
    prefix, form, tag, dotted = _begin(spelled)
    name = _unwrapped(spelled[len(prefix) :], dotted)
    if not name:
        return None
    return Key(
        spelled=spelled,
        format=form,
        prefix=prefix,
        tag=tag,
        name=name,
        dotted=dotted,
        part=part,
        kind=kind,
        adapter=adapter,
        ending=_ending(found[0], adapter),
        wrapped=spelled != prefix + name,
    )


def refusal(path: Path, key: str, kind: str) -> FileFormatError:
    """Why a kind of adapter is not read as a LoRA, by its name, and what to do."""
    remedy = "merge it into the base model and use `lorasynth extract`"
    if kind in ADDITIVE:
        remedy = "`lorasynth convert` makes a LoRA of it"
    elif kind == DORA:
        remedy = f"`lorasynth convert --base` makes a LoRA of it and of the base model, or {remedy}"
    elif kind in _VECTORS:
        remedy = f"no LoRA can hold these; {remedy}, which leaves them out"
    return FileFormatError(
        f"only plain LoRA (B·A) can be read, but {path} is {kind} (key {key[:200]}): {remedy}"
    )


def _ending(ending: str, adapter: str) -> str:
    if adapter:
        return "default" if adapter == "default" else "named"
    if ".lora_A" in ending or ".lora_B" in ending:
        return "AB"
    return "du" if ending in (".lora_down.weight", ".lora_up.weight") else "old"


def _begin(spelled: str) -> tuple[str, str, str, bool]:
    """Prefix, format, text encoder, and whether dots separate the parts of the name."""
    for prefix, tag in _UNDERSCORED.items():
        if spelled.startswith(prefix):
            return prefix, "kohya", tag, False
    if found := _COMFYUI_TEXT.match(spelled):
        return found[0], "comfyui", found[1], True
    prefix = next(begin for begin in _DOTTED if spelled.startswith(begin))
    form, tag = _DOTTED[prefix]
    return prefix, form, tag, True


def _unwrapped(name: str, dotted: bool) -> str:
    if not dotted:
        name = name.lstrip("_") if not name.startswith("_orig_mod_") else name
    wrappers = _WRAPPERS if dotted else tuple(w.replace(".", "_") for w in _NETWORKS)
    while wrapper := next((w for w in wrappers if name.startswith(w)), None):
        name = name[len(wrapper) :]
    for old, new in _OLD_NAMES.items() if dotted else ():
        name = name.replace(old, new)
    return name


def parse_all(path: Path, keys: Iterable[str]) -> dict[str, Key]:
    """All keys of a file.

    Raises:
        FileFormatError: one is not spelled as a key of an adapter, or there is none, or they are in
            two spellings, or of several adapters.
    """
    names = list(keys)
    parsed = {key: found for key in names if (found := parse(key))}
    if not any(found.part != "alpha" for found in parsed.values()):
        layers = sum(name.endswith(".weight") for name in names)
        if layers > max(3, len(names) / 3) and not any("lora" in name for name in names):
            raise FileFormatError(
                f"a LoRA file must hold two factors for each layer, but {path} is a whole "
                f"checkpoint of {len(names)} tensors: `lorasynth extract` makes a LoRA of it and "
                "of the one that it was tuned from"
            )
        first = f"its first key is {min(names)[:200]}" if names else "it has no keys at all"
        raise FileFormatError(
            "a LoRA file must have keys for layers of a model, such as lora_unet_<layer>.lora_down"
            f".weight or <layer>.lora_A.weight, but {path} has none ({first})"
        )
    if len(parsed) < len(names):
        odd = min(key for key in names if key not in parsed)
        raise FileFormatError(
            "every key of a LoRA file must be <layer>.lora_A.weight or lora_down.weight, or their "
            f"partners, but {path} has {odd[:200]}: leave it out, or convert the file where it was "
            "made"
        )
    if any(found.kind for found in parsed.values()):
        return parsed  # which is refused, or made a LoRA, by its kind
    formats = sorted({found.format for found in parsed.values()})
    if len(formats) > 1 and formats != ["comfyui", "diffusers"]:
        raise FileFormatError(
            f"a LoRA file must be in one format, but {path} mixes {' and '.join(formats)}: "
            "write each part into a file of its own"
        )
    adapters = sorted({found.adapter for found in parsed.values() if found.part != "alpha"})
    if len(adapters) > 1:
        raise FileFormatError(
            f"a LoRA file must hold one adapter, but {path} has keys of "
            f"{' and '.join(name[:40] or 'one without a name' for name in adapters[:3])}: write "
            "each into a file of its own"
        )
    return parsed
