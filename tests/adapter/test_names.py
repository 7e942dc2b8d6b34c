"""Published and diffusers' names of the layers of real architectures: each has one, both ways."""

import pytest
import torch
from architectures import ROWS, layers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from lorasynth.adapter import Layout, Slot
from lorasynth.adapter.families import FAMILIES, TEXT_TABLES, family_of, stated_family
from lorasynth.adapter.families.contract import CLIP, T5


@pytest.mark.parametrize("family", ROWS)
def test_every_layer_has_one_published_name_and_comes_back(family: str) -> None:
    table, found = FAMILIES[family].table, layers(family)
    owners = {name: table.layer_of(name) for name in found}
    assert [name for name, layer in owners.items() if layer is None] == []
    published: dict[str, set[str]] = {}
    for name, layer in owners.items():
        published.setdefault(layer.name, set()).add(name)
        for dotted in (True, False):
            own = name if dotted else name.replace(".", "_")
            assert table.find(own, dotted).modules == (name,)
            theirs = layer.name if dotted else layer.name.replace(".", "_")
            assert name in table.find(theirs, dotted).modules
    for layer in owners.values():
        assert published[layer.name] == set(layer.modules)
        heights = [found[module].weight.shape[0] for module in layer.modules]
        assert layer.rows(sum(heights)) == heights


@pytest.mark.parametrize("family", ROWS)
def test_a_family_is_told_by_all_of_its_layers(family: str) -> None:
    slots = [
        Slot(name, layer.weight[0].numel(), layer.weight.shape[0], 1)
        for name, layer in layers(family).items()
    ]
    assert family_of(Layout.from_slots(slots)).family is FAMILIES[family]


#: Family -> names of its attention alone, which others share; and whose they can be.
SHARED = {
    "flux1": {"flux1", "chroma", "flux2", "qwen-image"},
    "sd3": {"sd3"},
    "qwen-image": {"flux1", "chroma", "flux2", "qwen-image"},
    "pixart": {"pixart", "sana"},
}


@pytest.mark.parametrize("family", SHARED)
def test_attention_alone_is_told_by_widths_as_far_as_these_go(family: str) -> None:
    attention = (".attn.to_q", ".attn.add_q_proj", ".attn1.to_q", ".attn1.to_k")
    slots = [
        Slot(name, layer.in_features, layer.out_features, 1)
        for name, layer in layers(family).items()
        if name.endswith(attention) and name.startswith("transformer_blocks.0")
    ]
    layout = Layout.from_slots(slots)
    verdict = family_of(layout)
    assert set(verdict.candidates) == {FAMILIES[name] for name in SHARED[family]}
    own = stated_family({"modelspec.architecture": FAMILIES[family].architecture})
    assert family_of(layout, own).family is FAMILIES[family]


def test_a_deep_block_is_no_flux() -> None:
    slot = Slot("transformer_blocks.57.attn.to_q", 3072, 3072, 4)
    assert family_of(Layout.from_slots([slot])).name == "Qwen-Image"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_part_is_in_no_table(family: str) -> None:
    table = FAMILIES[family].table
    layer = table.layers[-1].filled(["0", "1", "2"])
    for name in (f"{layer.name}.odd", f"odd.{layer.name}", layer.name[:-1], f"{layer.name}.0"):
        for dotted in (True, False):
            assert table.find(name if dotted else name.replace(".", "_"), dotted) is None
    underscored = layer.name.replace(".", "_")
    if underscored != layer.name:
        assert table.find(underscored, dotted=True) is None


#: From kohya's own files for SDXL.
SDXL_EXAMPLES = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_4_1_"
    "transformer_blocks_0_attn1_to_q",
    "down_blocks.2.attentions.1.proj_in": "input_blocks_8_1_proj_in",
    "down_blocks.0.resnets.1.conv1": "input_blocks_2_0_in_layers_2",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
    "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj": "middle_block_1_"
    "transformer_blocks_9_ff_net_0_proj",
    "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0": "output_blocks_2_1_"
    "transformer_blocks_9_attn2_to_out_0",
    "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
    "up_blocks.2.resnets.2.conv2": "output_blocks_8_0_out_layers_3",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
}


@pytest.mark.parametrize("module", SDXL_EXAMPLES)
def test_examples_of_sdxl(module: str) -> None:
    layer = FAMILIES["sdxl"].table.layer_of(module)
    assert layer.name.replace(".", "_") == SDXL_EXAMPLES[module]


def names_of(network: nn.Module) -> list[str]:
    return [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]


def test_names_of_text_encoders_are_restored() -> None:
    with torch.device("meta"):
        clip = names_of(CLIPTextModel(CLIPTextConfig(num_hidden_layers=2)))
        t5 = names_of(T5EncoderModel(T5Config(num_layers=2, feed_forward_proj="gated-gelu")))
    clip = [f"text_model.{name.removeprefix('text_model.')}" for name in clip]
    assert (len(clip), len(t5)) == (12, 14)
    for kind, names in ((CLIP, clip), (T5, t5)):
        table = TEXT_TABLES[kind]
        assert [table.find(n.replace(".", "_"), dotted=False).name for n in names] == names
