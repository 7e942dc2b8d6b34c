"""The families: layers in both names, what programs read of each spelling, and typical widths.

`names` has the language of the tables, `programs` that of what is read.
"""

from collections.abc import Mapping

from lorasynth.adapter.families.contract import Family
from lorasynth.adapter.names import Table

_OUT = ("to_q", "to_k", "to_v", "to_out.0")


def _ratios(end: str, layers: tuple[str, ...] = _OUT) -> dict[str, float | int]:
    """Layers that are as high as wide."""
    return {f"{end}.{layer}": 1 for layer in layers}


# Stable Diffusion 1, 2 and XL: U-Nets, of which XL's published names are kohya's.

_RESNET = """
  {in_layers.2,out_layers.3,emb_layers.1} = {conv1,conv2,time_emb_proj}
  skip_connection = conv_shortcut
"""
_ATTENTION = """
  proj_{in,out}
  transformer_blocks.#.attn{1,2}.to_{q,k,v,out.0}
  transformer_blocks.#.ff.net.{0.proj,2}
"""
_OUTSIDE = """
input_blocks.0.0 = conv_in
time_embed.{0,2} = time_embedding.linear_{1,2}
out.2 = conv_out
"""


def _unet(down: list[int], up: list[int], outside: str = _OUTSIDE) -> Table:
    """The table of a U-Net with 2 residual layers in a down block, and 3 in an up block.

    Args:
        down: whether the block at each resolution on the way down has attention.
        up: the same on the way up.
        outside: rows of the layers outside the blocks.
    """
    blocks = [(f"middle_block.{2 * n} = mid_block.resnets.{n}", _RESNET) for n in (0, 1)]
    blocks.append(("middle_block.1 = mid_block.attentions.0", _ATTENTION))
    for way, attending, first, layers in (("down", down, 1, 2), ("up", up, 0, 3)):
        for level, attends in enumerate(attending):
            block = f"{way}_blocks.{level}"
            side = "input_blocks" if way == "down" else "output_blocks"
            for layer in range(layers):
                place = f"{side}.{3 * level + layer + first}"
                blocks.append((f"{place}.0 = {block}.resnets.{layer}", _RESNET))
                if attends:
                    blocks.append((f"{place}.1 = {block}.attentions.{layer}", _ATTENTION))
            if way == "down":
                place = f"{side}.{3 * level + 3}.0 = {block}.downsamplers.0"
                blocks.append((place, "\n  op = conv\n"))
            else:  # behind the residual layer and its attention
                place = f"{side}.{3 * level + 2}.{1 + attends} = {block}.upsamplers.0"
                blocks.append((place, "\n  conv\n"))
    return Table(outside + "\n".join(f"{names}:{layers}" for names, layers in blocks))


_DIFFUSERS = "unet. {AB,old} diffusers; lora_unet_ du diffusers"
_COMFYUI = (
    "{lora_unet_,lycoris_} * diffusers; {unet.,bare} * diffusers -*.to_q -*.to_k -*.to_v -*.to_out.0"
)
_LINEAR = (*_OUT, "ff.net.0.proj", "ff.net.2", "time_emb_proj")
_PROJECTIONS = (".proj_in", ".proj_out")
_SPATIAL = (".conv1", ".conv2", ".conv_in", ".conv_out", "samplers.0.conv")
_FIRST = _unet([1, 1, 1, 0], [0, 1, 1, 1])


def _stable_diffusion(key: str, name: str, context: int, text: tuple[str, ...], **facts: object) -> Family:
    """A U-Net whose text embeddings have a width."""
    usual: dict[str, object] = {
        "table": _FIRST,
        "kohya": "diffusers",
        "depths": {"transformer_blocks": 1},
        "diffusers_reads": _DIFFUSERS,
        "linear": (*_LINEAR, *_PROJECTIONS),
    }
    return Family(
        **(usual | facts),  # type: ignore[arg-type]
        key=key,
        name=name,
        text=text,
        universal="kohya",
        denoiser="unet",
        comfyui_reads=_COMFYUI,
        widths={"attn2.to_k": (context,), "attn2.to_v": (context,)} if context else {},
        spatial=_SPATIAL,
        programs=("kohya", "a1111", "ai-toolkit") if context else (),
    )


SD1 = _stable_diffusion(
    "sd1",
    "Stable Diffusion 1",
    768,
    ("clip_l",),
    stated="sd_v1",
    modelspec="stable-diffusion-v1",
    resolution="512x512",
    linear=_LINEAR,
    pointwise=_PROJECTIONS,
)
SD2 = _stable_diffusion(
    "sd2",
    "Stable Diffusion 2",
    1024,
    ("clip_h",),
    stated="sd_v2",
    modelspec="stable-diffusion-v2-768-v",
    resolution="768x768",
)
SDXL = _stable_diffusion(
    "sdxl",
    "Stable Diffusion XL",
    2048,
    ("clip_l", "clip_g"),
    table=_unet(
        [0, 1, 1],
        [1, 1, 0],
        f"{_OUTSIDE}label_emb.0.{{0,2}} = add_embedding.linear_{{1,2}}\n",
    ),
    kohya="published",
    diffusers_reads="unet. {AB,old} diffusers; lora_unet_ du {published,diffusers}",
    depths={"transformer_blocks": 10},
    stated="sdxl_base_v1-0",
    modelspec="stable-diffusion-xl-v1-base",
)
#: U-Nets of other shapes, which have no published names: any block may attend, at any depth.
OTHER_UNET = _stable_diffusion(
    "",
    "a U-Net of another family",
    0,
    ("clip_l", "clip_g"),
    table=Table(f"""
conv_{{in,out}}
{{time,add}}_embedding.linear_{{1,2}}
{{down_blocks.#,up_blocks.#,mid_block}}.resnets.#:
  {{conv1,conv2,time_emb_proj,conv_shortcut}}
{{down_blocks.#,up_blocks.#,mid_block}}.attentions.#:{_ATTENTION}  to_{{q,k,v,out.0}}
{{down_blocks.#,up_blocks.#,mid_block}}.{{down,up}}samplers.#:
  conv
"""),
    depths={},
    linear=_LINEAR,
)

SD3 = Family(
    key="sd3",
    name="Stable Diffusion 3",
    table=Table("""
x_embedder.proj = pos_embed.proj
context_embedder
{t,y}_embedder.mlp.{0,2} = time_text_embed.{timestep,text}_embedder.linear_{1,2}
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 ~ norm_out.linear
joint_blocks.# = transformer_blocks.#:
  x_block.adaLN_modulation.1 = norm1.linear
  x_block.attn{,2}.qkv = attn{,2}.(to_q+to_k+to_v)
  x_block.attn{,2}.proj = attn{,2}.to_out.0
  {x,context}_block.mlp.fc{1,2} = {ff,ff_context}.net.{0.proj,2}
  context_block.adaLN_modulation.1 ~ norm1_context.linear
  context_block.attn.qkv = attn.add_(q+k+v)_proj
  context_block.attn.proj = attn.to_add_out
"""),
    comfyui_reads="{transformer.,base_model.model.,lora_transformer_,lycoris_} * diffusers",
    text=("clip_l", "clip_g", "t5xxl"),
    widths={"attn.to_q": (1536, 2432), "attn.add_q_proj": (1536, 2432)},
    ratios={"attn.to_q": 1, "ff.net.0.proj": 4, "ff_context.net.0.proj": 4},
    depths={"transformer_blocks": 38},
    modelspec="stable-diffusion-3",
    network_module="networks.lora_sd3",
    linear=("norm1.linear", "to_q", "to_k", "to_v", "_proj", "to_out.0", ".proj", "net.2"),
)

# FLUX.1, and Chroma, which is FLUX.1 with its modulations in one small network.

_FLUX = """
{img,txt}_in = {x,context}_embedder
final_layer.linear = proj_out
double_blocks.# = transformer_blocks.#:
  img_attn.qkv = attn.(to_q+to_k+to_v)
  txt_attn.qkv = attn.add_(q+k+v)_proj
  {img,txt}_attn.proj = attn.to_{out.0,add_out}
"""
_FLUX1 = _FLUX + """
  {img,txt}_mlp.{0,2} = {ff,ff_context}.net.{0.proj,2}
single_blocks.# = single_transformer_blocks.#:
  linear1 = attn.(to_q+to_k+to_v)+4*proj_mlp
  linear2 = proj_out
"""
_FLUX1_FACTS: Mapping[str, object] = {
    "universal": "kohya",
    "widths": dict.fromkeys(("attn.to_q", "attn.add_q_proj", "attn.to_out.0"), (3072,)),
    "ratios": {
        **_ratios("attn"),
        **{f"{ff}.net.0.proj": 4 for ff in ("ff", "ff_context")},
        **{f"{ff}.net.2": 1 / 4 for ff in ("ff", "ff_context")},
        "proj_mlp": 4,
        "single_transformer_blocks.proj_out": 1 / 5,
    },
    "depths": {"transformer_blocks": 19, "single_transformer_blocks": 38},
    "network_module": "networks.lora_flux",
}
FLUX1 = Family(
    key="flux1",
    name="FLUX.1",
    table=Table(f"""{_FLUX1}
time_in.{{in,out}}_layer = time_text_embed.timestep_embedder.linear_{{1,2}}
vector_in.{{in,out}}_layer = time_text_embed.text_embedder.linear_{{1,2}}
guidance_in.{{in,out}}_layer = time_text_embed.guidance_embedder.linear_{{1,2}}
final_layer.adaLN_modulation.1 ~ norm_out.linear
double_blocks.# = transformer_blocks.#:
  {{img,txt}}_mod.lin = {{norm1,norm1_context}}.linear
single_blocks.# = single_transformer_blocks.#:
  modulation.lin = norm.linear
"""),
    diffusers_reads="transformer. {AB,AB+alpha} diffusers; {lora_unet_,diffusion_model.} du "
    "published -time_text_embed. -x_embedder -context_embedder -norm_out. -proj_out",
    comfyui_reads="{lora_transformer_,lycoris_,transformer.} * diffusers",
    text=("clip_l", "t5xxl"),
    modelspec="flux-1-dev",
    programs=("kohya", "a1111", "ai-toolkit"),
    **_FLUX1_FACTS,  # type: ignore[arg-type]
)
CHROMA = Family(
    key="chroma",
    name="Chroma",
    table=Table(f"""{_FLUX1}
distilled_guidance_layer.{{in,out}}_proj
distilled_guidance_layer.layers.#:
  {{in,out}}_layer = linear_{{1,2}}
"""),
    diffusers_reads="transformer. {AB,AB+alpha} diffusers; {lora_unet_,diffusion_model.} du "
    "published !distilled_guidance_layer -x_embedder -context_embedder -proj_out",
    comfyui_reads="{lora_transformer_,lycoris_} * diffusers; "
    "transformer. * diffusers -distilled_guidance_layer.",
    text=("t5xxl",),
    **_FLUX1_FACTS,  # type: ignore[arg-type]
)

_FLUX2_WIDTHS = (6144, 4096, 3072)  # dev, klein 9B, klein 4B
FLUX2 = Family(
    key="flux2",
    name="FLUX.2",
    table=Table(f"""{_FLUX}
  {{img,txt}}_mlp.{{0,2}} = {{ff,ff_context}}.linear_{{in,out}}
single_blocks.# = single_transformer_blocks.#:
  linear{{1,2}} = attn.to_{{qkv_mlp_proj,out}}
time_in.{{in,out}}_layer = time_guidance_embed.timestep_embedder.linear_{{1,2}}
guidance_in.{{in,out}}_layer = time_guidance_embed.guidance_embedder.linear_{{1,2}}
double_stream_modulation_{{img,txt}}.lin = double_stream_modulation_{{img,txt}}.linear
single_stream_modulation.lin = single_stream_modulation.linear
final_layer.adaLN_modulation.1 ~ norm_out.linear
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; {diffusion_model.,base_model.model.} AB "
    "published -norm_out.; {diffusion_model.,base_model.model.} AB diffusers; "
    "lora_unet_ du published -norm_out. -double_stream -single_stream "
    "-*.guidance_embedder.linear_1 -*.guidance_embedder.linear_2",
    # ComfyUI looks for FLUX.1's names under diffusers' prefixes.
    comfyui_reads="{transformer.,lora_transformer_,lycoris_} * diffusers -*.linear_in "
    "-*.linear_out -single_transformer_blocks. -time_guidance_embed. -double_stream -single_stream",
    text=("mistral3_24b",),
    widths={"attn.to_q": _FLUX2_WIDTHS, "attn.to_qkv_mlp_proj": _FLUX2_WIDTHS},
    ratios={
        **_ratios("attn"),
        **{f"{which}.linear_in": 6 for which in ("ff", "ff_context")},
        **{f"{which}.linear_out": 1 / 3 for which in ("ff", "ff_context")},
        "attn.to_qkv_mlp_proj": 9,
        "attn.to_out": 1 / 4,
    },
    depths={"transformer_blocks": 8, "single_transformer_blocks": 48},
    modelspec="flux-2",
    network_module="networks.lora_flux_2",
)

# Lumina Image 2.0, and Z-Image, which was published under the same names.

LUMINA2 = Family(
    key="lumina2",
    name="Lumina 2",
    table=Table("""
x_embedder
cap_embedder.1 = time_caption_embed.caption_embedder.1
t_embedder.mlp.{0,2} = time_caption_embed.timestep_embedder.linear_{1,2}
final_layer.{adaLN_modulation.1,linear} = norm_out.linear_{1,2}
{layers,noise_refiner,context_refiner}.#:
  attention.qkv = 3*attn.to_q+attn.to_k+attn.to_v
  attention.out = attn.to_out.0
  feed_forward.w{1,2,3} = feed_forward.linear_{1,2,3}
{layers,noise_refiner}.#:
  adaLN_modulation.1 = norm1.linear
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB published blocks !x_embedder "
    "!time_caption_embed. !norm_out.",
    text=("gemma2_2b",),
    widths=dict.fromkeys(("attn.to_q", "attn.to_out.0", "feed_forward.linear_1"), (2304,)),
    ratios={"attn.to_q": 1, "attn.to_k": 1 / 3, "attn.to_v": 1 / 3, "attn.to_out.0": 1},
    depths={"layers": 26, "noise_refiner": 2, "context_refiner": 2},
    modelspec="lumina-2",
    network_module="networks.lora_lumina",
)
Z_IMAGE = Family(
    key="z-image",
    name="Z-Image",
    table=Table("""
x_embedder = all_x_embedder.2-1
cap_embedder.1
t_embedder.mlp.{0,2}
final_layer.{linear,adaLN_modulation.1} = all_final_layer.2-1.{linear,adaLN_modulation.1}
{layers,noise_refiner,context_refiner}.#:
  attention.qkv = attention.(to_q+to_k+to_v)
  attention.out = attention.to_out.0
  feed_forward.w{1,2,3}
{layers,noise_refiner}.#:
  adaLN_modulation.0
"""),
    comfyui="diffusers",
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. {AB,du} diffusers; "
    "lora_unet_ du {diffusers,published} -all_; "
    "diffusion_model. du published -*.to_q -*.to_k -*.to_v; bare {du,default} diffusers",
    comfyui_reads="{diffusion_model.,lycoris_} * diffusers",
    text=("qwen3_4b",),
    widths=dict.fromkeys(("attention.to_q", "attention.to_out.0", "feed_forward.w1"), (3840,)),
    ratios=_ratios("attention"),
    depths={"layers": 30, "noise_refiner": 2, "context_refiner": 2},
    network_module="networks.lora_zimage",
)

QWEN_IMAGE = Family(
    key="qwen-image",
    name="Qwen-Image",
    table=Table("""
{img_in,txt_in,proj_out,norm_out.linear}
time_text_embed.timestep_embedder.linear_{1,2}
transformer_blocks.#:
  {img,txt}_mod.1
  {img,txt}_mlp.net.{0.proj,2}
  attn.{to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out}
"""),
    diffusers_reads="transformer. AB diffusers; diffusion_model. {AB,du} diffusers; "
    "lora_unet_ du diffusers; bare {du,default} diffusers",
    comfyui_reads="{transformer.,lycoris_,bare} * diffusers",
    text=("qwen25_7b",),
    widths={"attn.to_q": (3072,), "attn.add_q_proj": (3072,)},
    ratios={"attn.to_q": 1},
    depths={"transformer_blocks": 60},
    network_module="networks.lora_qwen_image",
)

WAN = Family(
    key="wan",
    name="Wan",
    table=Table("""
patch_embedding
{text,time}_embedding.{0,2} = condition_embedder.{text,time}_embedder.linear_{1,2}
time_projection.1 = condition_embedder.time_proj
img_emb.proj.{1,3} = condition_embedder.image_embedder.ff.net.{0.proj,2}
head.head = proj_out
blocks.#:
  {self,cross}_attn.{q,k,v,o} = attn{1,2}.to_{q,k,v,out.0}
  cross_attn.{k,v}_img = attn2.add_{k,v}_proj
  ffn.{0,2} = ffn.net.{0.proj,2}
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. {AB,du} published; "
    "lora_unet_ du published blocks !condition_embedder. !proj_out !patch_embedding",
    text=("umt5xxl",),
    widths={"attn1.to_q": (1536, 3072, 5120), "attn2.to_q": (1536, 3072, 5120)},
    depths={"blocks": 40},
    stated="wan2.1",
    modelspec="wan-2.1",
    resolution="1280x720",
    network_module="networks.lora_wan",
)

HIDREAM = Family(
    key="hidream",
    name="HiDream",
    table=Table("""
t_embedder.timestep_embedder.linear_{1,2}
p_embedder.pooled_embedder.linear_{1,2}
x_embedder.proj
final_layer.{linear,adaLN_modulation.1}
caption_projection.#.linear
{double,single}_stream_blocks.#:
  block.adaLN_modulation.1
  block.attn1.to_{q,k,v,out}
  block.ff_i.{shared_experts,experts.#}.w{1,2,3}
double_stream_blocks.#:
  block.attn1.to_{q,k,v,out}_t
  block.ff_t.w{1,2,3}
"""),
    diffusers_reads="{transformer.,diffusion_model.} AB diffusers",
    comfyui_reads="{transformer.,lycoris_} * diffusers",
    text=("clip_l", "clip_g", "t5xxl", "llama"),
    modelspec="hidream-i1",
)

# PixArt-alpha and -sigma, and Sana, of which no published names are in use.

PIXART = Family(
    key="pixart",
    name="PixArt",
    table=Table("""
x_embedder.proj = pos_embed.proj
y_embedder.y_proj.fc{1,2} = caption_projection.linear_{1,2}
t_embedder.mlp.{0,2} = adaln_single.emb.timestep_embedder.linear_{1,2}
{csize,ar}_embedder.mlp.{0,2} = adaln_single.emb.{resolution,aspect_ratio}_embedder.linear_{1,2}
t_block.1 = adaln_single.linear
final_layer.linear = proj_out
blocks.# = transformer_blocks.#:
  attn.qkv = attn1.(to_q+to_k+to_v)
  {attn,cross_attn}.proj = attn{1,2}.to_out.0
  cross_attn.q_linear = attn2.to_q
  cross_attn.kv_linear = attn2.(to_k+to_v)
  mlp.fc{1,2} = ff.net.{0.proj,2}
"""),
    diffusers_reads="",
    comfyui_reads="{transformer.,base_model.model.,unet.base_model.model.} * diffusers",
    text=("t5xxl",),
    widths={"attn1.to_q": (1152,), "attn2.to_q": (1152,)},
    depths={"transformer_blocks": 28},
    modelspec="pixart-sigma",
    programs=(),
    linear=(*_OUT, ".net.0.proj", ".net.2"),
)
SANA = Family(
    key="sana",
    name="Sana",
    table=Table("""
patch_embed.proj
time_embed.emb.timestep_embedder.linear_{1,2}
time_embed.linear
caption_projection.linear_{1,2}
proj_out
transformer_blocks.#:
  attn{1,2}.to_{q,k,v,out.0}
  ff.conv_{inverted,depth,point}
"""),
    comfyui_reads=None,
    text=("gemma2_2b",),
    widths={"attn1.to_q": (1152, 2240)},
    depths={"transformer_blocks": 60},
    programs=(),
    linear=_OUT,
    pointwise=("ff.conv_inverted", "ff.conv_point", "patch_embed.proj"),
)

AURAFLOW = Family(
    key="auraflow",
    name="AuraFlow",
    table=Table("""
init_x_linear = pos_embed.proj
cond_seq_linear = context_embedder
t_embedder.mlp.{0,2} = time_step_proj.linear_{1,2}
modF.1 ~ norm_out.linear
final_linear = proj_out
double_layers.# = joint_transformer_blocks.#:
  mod{X,C}.1 = {norm1,norm1_context}.linear
  attn.w2{q,k,v,o} = attn.to_{q,k,v,out.0}
  attn.w1{q,k,v,o} = attn.{add_q_proj,add_k_proj,add_v_proj,to_add_out}
  mlp{X,C}.{c_fc1,c_fc2,c_proj} = {ff,ff_context}.{linear_1,linear_2,out_projection}
single_layers.# = single_transformer_blocks.#:
  modCX.1 = norm1.linear
  attn.w1{q,k,v,o} = attn.to_{q,k,v,out.0}
  mlp.{c_fc1,c_fc2,c_proj} = ff.{linear_1,linear_2,out_projection}
"""),
    comfyui_reads="transformer. * diffusers",
    text=("pile_t5xl",),
    widths={"attn.to_q": (3072,)},
    depths={"joint_transformer_blocks": 4, "single_transformer_blocks": 32},
    programs=(),
)

KREA2 = Family(
    key="krea2",
    name="Krea 2",
    table=Table("""
first = img_in
last.linear = final_layer.linear
tmlp.{0,2} = time_embed.linear_{1,2}
tproj.1 = time_mod_proj
txtmlp.{1,3} = txt_in.linear_{1,2}
txtfusion.projector = text_fusion.projector
{,txtfusion.layerwise_,txtfusion.refiner_}blocks.# = \
{transformer_,text_fusion.layerwise_,text_fusion.refiner_}blocks.#:
  attn.{wq,wk,wv,wo,gate} = attn.{to_q,to_k,to_v,to_out.0,to_gate}
  mlp.{gate,up,down} = ff.{gate,up,down}
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; {diffusion_model.,base_model.model.} AB published",
    text=("qwen3_4b",),
    widths={"transformer_blocks.attn.to_q": (6144,)},
    ratios={"transformer_blocks.attn.to_k": 1 / 4, "transformer_blocks.attn.to_v": 1 / 4},
    depths={"transformer_blocks": 28},
    modelspec="krea-2",
    programs=("ai-toolkit",),
)

# A Cosmos transformer with a text conditioner, of which adapters change the transformer.
ANIMA = Family(
    key="anima",
    name="Anima",
    table=Table("""
x_embedder.proj.1 = patch_embed.proj
t_embedder.1.linear_{1,2} = time_embed.t_embedder.linear_{1,2}
final_layer.adaln_modulation.{1,2} = norm_out.linear_{1,2}
final_layer.linear = proj_out
blocks.# = transformer_blocks.#:
  adaln_modulation_{self_attn,cross_attn,mlp}.{1,2} = norm{1,2,3}.linear_{1,2}
  {self,cross}_attn.{q_proj,k_proj,v_proj,output_proj} = attn{1,2}.to_{q,k,v,out.0}
  mlp.layer{1,2} = ff.net.{0.proj,2}
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB published",
    text=("qwen3_06b",),
    widths={"attn1.to_q": (2048,), "attn2.to_k": (1024,), "attn2.to_v": (1024,)},
    depths={"transformer_blocks": 28},
)

LTX = Family(
    key="ltx",
    name="LTX-Video",
    table=Table("""
patchify_proj = proj_in
adaln_single.emb.timestep_embedder.linear_{1,2} = time_embed.emb.timestep_embedder.linear_{1,2}
adaln_single.linear = time_embed.linear
caption_projection.linear_{1,2}
proj_out
transformer_blocks.#:
  attn{1,2}.to_{q,k,v,out.0}
  ff.net.{0.proj,2}
"""),
    universal="comfyui",
    diffusers_reads="{transformer.,diffusion_model.} AB diffusers",
    text=("t5xxl",),
    widths={f"attn{n}.to_{part}": (2048, 4096) for n in (1, 2) for part in "qkv"},
    depths={"transformer_blocks": 48},
    stated="ltxv",
    modelspec="ltx-video",
    programs=(),
)

IDEOGRAM4 = Family(
    key="ideogram4",
    name="Ideogram 4",
    table=Table("""
{input_proj,llm_cond_proj,adaln_proj}
t_embedding.mlp_{in,out}
final_layer.{linear,adaln_modulation}
layers.#:
  attention.qkv = attention.(to_q+to_k+to_v)
  attention.o = attention.to_out.0
  feed_forward.w{1,2,3}
  adaln_modulation
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. {AB,du} published all "
    "!input_proj !llm_cond_proj !t_embedding !adaln_proj !final_layer",
    text=("qwen",),
    widths=dict.fromkeys(("attention.to_q", "attention.to_out.0", "feed_forward.w1"), (4608,)),
    ratios=_ratios("attention"),
    depths={"layers": 34},
    modelspec="ideogram-4",
    programs=("ai-toolkit",),
)

#: By the names that `--family` takes.
FAMILIES: Mapping[str, Family] = {
    family.key: family
    for family in (
        *(SD1, SD2, SDXL, SD3, FLUX1, CHROMA, FLUX2, Z_IMAGE, LUMINA2, QWEN_IMAGE, WAN, HIDREAM),
        *(PIXART, SANA, AURAFLOW, KREA2, ANIMA, LTX, IDEOGRAM4),
    )
}
