"""Table of the image ViTs that can be read, by family and codebase.

A file is of the first family whose names and marks it has. Families that several
models share (a timm `ViT` may be AugReg's, DeiT, DINO or MAE) differ in the
normalization of their inputs, which a config beside the file tells.
"""

import dataclasses
import itertools
import re
from collections.abc import Collection, Mapping


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of ViT in one codebase's names, which may stand behind any prefix.

    Attributes:
        name, codebase: As "DINOv2" and "timm".
        layers: Its name of every layer outside the blocks, by our name.
        block: Its name of block {i}.
        block_layers: Its name of every layer of a block, by our name. "scale_1" and
            "scale_2" are LayerScale after attention and MLP; with "mlp/gate" MLPs are
            gated.
        arrays: Its name of every array that belongs to no layer, by our name.
        leaves: Its suffixes for a layer's kernel, scale and bias.
        torch: Whether kernels are (out, in) and patch kernels (D, 3, *size).
        gelu, norm_epsilon: Options of its models, see `EncoderOptions`, where no config
            tells.
        normalization: Normalization of its inputs, where no config tells.
        marks: Layers or arrays, by our name, or a part of some names, also of those
            beside the ViT, without which a file is of another family.
        tubelets: Whether patches have several frames.
        without_bias: Ends of our names of layers that have no bias, which is then 0; as
            are those of queries, keys and values where none of the three has one.
        model_types: Values of `model_type` in Hugging Face's config.json that are of
            this family whatever the marks.
        before_head: Layers between trunk and classifier, which TubeViT lacks. They are
            dropped together with the classifier.
        unused: Reasons by pattern for arrays that are dropped.
        shared: Models of other normalization that have the same names.
        interpolation: Interpolation of position embeddings, as its models resize them:
            see `resizing.positions_at`.
    """

    name: str
    codebase: str
    layers: Mapping[str, str]
    block: str
    block_layers: Mapping[str, str]
    arrays: Mapping[str, str]
    leaves: Mapping[str, str]
    torch: bool
    gelu: str
    norm_epsilon: float
    normalization: str
    marks: tuple[str, ...] = ()
    tubelets: bool = False
    without_bias: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    before_head: tuple[str, ...] = ()
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shared: str = ""
    interpolation: str = "cubic"

    def __str__(self):
        return f"{self.name}, {self.codebase}"

    def recognizes(
        self,
        shapes: Mapping[str, tuple],
        model_type: str | None = None,
        file: Collection[str] = (),
    ) -> bool:
        """Returns whether a ViT in a file is of this family.

        Args:
            shapes: Shapes of its arrays by name.
            model_type: Of the config beside it.
            file: All names in the file.
        """
        names = self.names(1)
        signature = ["patch/kernel"]
        for layer in ("attention/query", "mlp/up"):  # up's tells gated MLPs from others
            signature.append(f"encoder/block_0/{layer}/kernel")
        marks = [] if model_type in self.model_types else self.marks
        return (
            all(names[ours] in shapes for ours in signature)
            and (len(shapes[names["patch/kernel"]]) == 5) == self.tubelets
            and all(self._has(mark, names, shapes, file) for mark in marks)
        )

    def _has(self, mark, names, shapes, file):
        marked = [b for a, b in names.items() if f"{a}/".startswith(f"{mark}/")]
        return any(b in shapes for b in marked) or any(
            re.search(rf"(^|\.){mark}(\.|$)", name) for name in file
        )

    def prefixes(self, names: Collection[str]) -> list[str]:
        """Returns what stands before the name of a patch kernel, as "backbone."."""
        kernel = self.name_of("patch", "kernel")
        before = [n.removesuffix(kernel) for n in names if n.endswith(kernel)]
        return [prefix for prefix in before if prefix[-1:] in ("", ".", "/")]

    def name_of(self, layer: str, leaf: str) -> str:
        """Returns the name in the file of our layer's kernel, scale or bias."""
        if block := re.fullmatch(r"encoder/block_(\d+)/(.*)", layer):
            theirs = self.block.format(i=block[1]) + self.block_layers[block[2]]
        else:
            theirs = self.layers[layer]
        return theirs + self.leaves[leaf]

    def names(self, depth: int) -> dict[str, str]:
        """Returns the names in the file of a ViT's arrays, by our names."""
        blocks = [f"encoder/block_{i}/" for i in range(depth)]
        scales = [k for k in self.block_layers if k.startswith("scale")]
        layers = [*self.layers] + [
            f"{block}{layer}"
            for block in blocks
            for layer in self.block_layers
            if layer not in scales
        ]
        return (
            dict(self.arrays)
            | {
                f"encoder/block_{i}/{scale}": self.block.format(i=i)
                + self.block_layers[scale]
                for i in range(depth)
                for scale in scales
            }
            | {
                f"{layer}/{leaf}": self.name_of(layer, leaf)
                for layer in layers
                for leaf in ("scale" if "norm" in layer else "kernel", "bias")
            }
        )

    def depth(self, names: Collection[str]) -> int:
        """Returns the number of blocks in a file."""
        return next(
            i
            for i in itertools.count()
            if not any(name.startswith(self.block.format(i=i)) for name in names)
        )


#: Layers that a file keeps as one array: its name, and those of the equal parts.
FUSED = {
    "attn.qkv": ("attn.q", "attn.k", "attn.v"),
    "attn_pool.kv": ("attn_pool.k", "attn_pool.v"),
    "mlp.weights_in": ("mlp.gate", "mlp.up"),
    "attention.in_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
}

#: Arrays that are never read: reasons by pattern.
ELSEWHERE = {
    r"text_model\.|text\.|params/txt/|txt/|text_projection": "of the text encoder",
    r"(.*\.)?language_model\.|lm_head\.": "of the language model",
    r"decoder\.|encoder_to_decoder\.|decoder_": "of the decoder",
    r"logit_scale|logit_bias|params/[tb]$|visual_projection\.": "compares with texts",
    r"opt/(?!target/)|opt_state/": "state of the optimizer",
}

_MASK = {r"(embeddings\.)?mask_token$": "for inputs with masked patches"}

# ---- google-research: vision_transformer (AugReg) and big_vision

_JAX = {
    "leaves": {"kernel": "/kernel", "scale": "/scale", "bias": "/bias"},
    "torch": False,
    "gelu": "tanh",
    "norm_epsilon": 1e-6,
    "normalization": "half",
    "before_head": ("pre_logits/kernel", "pre_logits/bias"),
    "interpolation": "linear",
}
_JAX_LAYERS = {
    "patch": "embedding",
    "encoder/norm": "Transformer/encoder_norm",
    "head": "head",
}


def _jax_block(norm_2, mlp, attention):
    return {
        "norm_1": "LayerNorm_0",
        "attention/query": f"{attention}/query",
        "attention/key": f"{attention}/key",
        "attention/value": f"{attention}/value",
        "attention/out": f"{attention}/out",
        "norm_2": norm_2,
        "mlp/up": f"{mlp}/Dense_0",
        "mlp/down": f"{mlp}/Dense_1",
    }


AUGREG = Family(
    name="ViT",
    codebase="AugReg",
    layers=_JAX_LAYERS,
    block="Transformer/encoderblock_{i}/",
    block_layers=_jax_block(
        "LayerNorm_2", "MlpBlock_3", "MultiHeadDotProductAttention_1"
    ),
    arrays={
        "class_token": "cls",
        "positions": "Transformer/posembed_input/pos_embedding",
    },
    **_JAX,
)
_MAP = "MAPHead_0/MultiHeadDotProductAttention_0"
BIG_VISION = Family(
    name="ViT or SigLIP",
    codebase="big_vision",
    layers=_JAX_LAYERS
    | {
        "pooling/attention/query": f"{_MAP}/query",
        "pooling/attention/key": f"{_MAP}/key",
        "pooling/attention/value": f"{_MAP}/value",
        "pooling/attention/out": f"{_MAP}/out",
        "pooling/norm": "MAPHead_0/LayerNorm_0",
        "pooling/mlp/up": "MAPHead_0/MlpBlock_0/Dense_0",
        "pooling/mlp/down": "MAPHead_0/MlpBlock_0/Dense_1",
    },
    block="Transformer/encoderblock_{i}/",
    block_layers=_jax_block(
        "LayerNorm_1", "MlpBlock_0", "MultiHeadDotProductAttention_0"
    ),
    arrays={
        "class_token": "cls",
        "positions": "pos_embedding",
        "pooling/probe": "MAPHead_0/probe",
    },
    **_JAX,
)

# ---- timm

_TORCH = {
    "leaves": {"kernel": ".weight", "scale": ".weight", "bias": ".bias"},
    "torch": True,
    "gelu": "erf",
}
_TIMM = Family(
    name="ViT",
    codebase="timm",
    norm_epsilon=1e-6,
    normalization="half",
    layers={
        "patch": "patch_embed.proj",
        "encoder/pre_norm": "norm_pre",
        "encoder/norm": "norm",
        "head": "head",
        "pooling/attention/query": "attn_pool.q",
        "pooling/attention/key": "attn_pool.k",  # two parts of attn_pool.kv
        "pooling/attention/value": "attn_pool.v",
        "pooling/attention/out": "attn_pool.proj",
        "pooling/norm": "attn_pool.norm",
        "pooling/mlp/up": "attn_pool.mlp.fc1",
        "pooling/mlp/down": "attn_pool.mlp.fc2",
    },
    block="blocks.{i}.",
    block_layers={
        "norm_1": "norm1",
        "attention/query": "attn.q",  # three parts of attn.qkv
        "attention/key": "attn.k",
        "attention/value": "attn.v",
        "attention/out": "attn.proj",
        "scale_1": "ls1.gamma",
        "norm_2": "norm2",
        "mlp/up": "mlp.fc1",
        "mlp/down": "mlp.fc2",
        "scale_2": "ls2.gamma",
    },
    arrays={
        "class_token": "cls_token",
        "distillation_token": "dist_token",
        "registers": "reg_token",
        "positions": "pos_embed",
        "pooling/probe": "attn_pool.latent",
    },
    before_head=("fc_norm.weight", "fc_norm.bias"),
    unused={r"head_dist\.": "the classifier of the distillation token"} | _MASK,
    interpolation="smoothed_cubic",
    **_TORCH,
)
_TIMM_DINOV2 = dataclasses.replace(
    _TIMM,
    name="DINOv2 or DeiT-III",
    shared="timm's own ViTs (wee, little, so150m)",
    normalization="imagenet",
    marks=("encoder/block_0/scale_1",),
)
TIMM = (
    dataclasses.replace(
        _TIMM,
        name="EVA",
        normalization="clip",
        marks=("q_bias",),
        without_bias=("attention/key",),
    ),
    dataclasses.replace(
        _TIMM, name="MAE", normalization="imagenet", marks=("decoder_embed",)
    ),
    dataclasses.replace(
        _TIMM,
        name="distilled DeiT",
        normalization="imagenet",
        marks=("distillation_token",),
    ),
    dataclasses.replace(
        _TIMM,
        name="CLIP",
        norm_epsilon=1e-5,
        normalization="clip",
        marks=("encoder/pre_norm",),
        without_bias=("patch", "head"),
    ),
    dataclasses.replace(_TIMM, name="SigLIP", marks=("pooling/probe",)),
    dataclasses.replace(
        _TIMM_DINOV2,
        name="DINOv2",
        block_layers=_TIMM.block_layers
        | {"mlp/gate": "mlp.gate", "mlp/up": "mlp.up"},  # two parts of mlp.fc1
    ),
    _TIMM_DINOV2,
    dataclasses.replace(_TIMM, shared="DeiT, DINO and MAE"),
)

# ---- Hugging Face transformers

#: Names of a block's layers: those that `save_pretrained` writes, and those of the
#: modules since transformers 5.
_VIT_BLOCK = {
    "norm_1": ("layernorm_before", "layernorm_before"),
    "attention/query": ("attention.attention.query", "attention.q_proj"),
    "attention/key": ("attention.attention.key", "attention.k_proj"),
    "attention/value": ("attention.attention.value", "attention.v_proj"),
    "attention/out": ("attention.output.dense", "attention.o_proj"),
    "norm_2": ("layernorm_after", "layernorm_after"),
    "mlp/up": ("intermediate.dense", "mlp.fc1"),
    "mlp/down": ("output.dense", "mlp.fc2"),
}
_DINOV2_BLOCK = _VIT_BLOCK | {
    "norm_1": ("norm1", "norm1"),
    "scale_1": ("layer_scale1.lambda1", "layer_scale1.lambda1"),
    "norm_2": ("norm2", "norm2"),
    "mlp/up": ("mlp.fc1", "mlp.fc1"),
    "mlp/down": ("mlp.fc2", "mlp.fc2"),
    "scale_2": ("layer_scale2.lambda1", "layer_scale2.lambda1"),
}
_GATED_MLP = {
    "mlp/gate": ("mlp.gate", "mlp.gate_proj"),  # with up two parts of mlp.weights_in
    "mlp/up": ("mlp.up", "mlp.up_proj"),
    "mlp/down": ("mlp.weights_out", "mlp.down_proj"),
}
_VIDEOMAE_BLOCK = _VIT_BLOCK | {
    "attention/key": ("attention.attention.key", "attention.attention.key"),
    "attention/query": ("attention.attention.query", "attention.attention.query"),
    "attention/value": ("attention.attention.value", "attention.attention.value"),
}


def _hugging_face(column, block, block_layers, **changes):
    """Returns a family of ViT's names outside the blocks, which `changes` replace."""
    values = {
        "codebase": "Hugging Face",
        "norm_epsilon": 1e-12,
        "layers": {
            "patch": "embeddings.patch_embeddings.projection",
            "encoder/norm": "layernorm",
            "head": "classifier",
        },
        "block": block[column],
        "block_layers": {k: names[column] for k, names in block_layers.items()},
        "arrays": {
            "class_token": "embeddings.cls_token",
            "distillation_token": "embeddings.distillation_token",
            "registers": "embeddings.register_tokens",
            "positions": "embeddings.position_embeddings",
        },
        "unused": {r"pooler\.": "has no part in a TubeViT"} | _MASK,
    }
    return Family(**values | changes, **_TORCH)


def _hugging_face_vits(column):
    block = ("encoder.layer.{i}.", "layers.{i}.")
    vit = _hugging_face(
        column,
        block,
        _VIT_BLOCK,
        name="ViT",
        normalization="half",
        model_types=("vit",),
    )
    dinov2 = _hugging_face(
        column,
        ("encoder.layer.{i}.",) * 2,
        _DINOV2_BLOCK,
        name="DINOv2",
        norm_epsilon=1e-6,
        normalization="imagenet",
        model_types=("dinov2",),
        marks=("encoder/block_0/scale_1",),
        layers={k: v for k, v in vit.layers.items() if k != "head"},
        unused={r"classifier\.": "reads class token and mean of the patches together"}
        | _MASK,
    )
    distilled = {
        r"distillation_classifier\.": "the classifier of the distillation token"
    }
    registers = dataclasses.replace(
        dinov2,
        name="DINOv2 with registers",
        model_types=("dinov2_with_registers",),
        marks=("encoder/block_0/scale_1", "registers"),
        interpolation="smoothed_cubic",
    )
    gated = {k: names[column] for k, names in (_DINOV2_BLOCK | _GATED_MLP).items()}
    deit = dataclasses.replace(
        vit,
        name="distilled DeiT",
        normalization="imagenet",
        model_types=(),
        marks=("distillation_token",),
    )
    return (
        # Fine-tuned without its teacher, with one classifier, and as it was trained.
        dataclasses.replace(deit, marks=(*deit.marks, "head")),
        dataclasses.replace(
            deit,
            layers=deit.layers | {"head": "cls_classifier"},
            unused=deit.unused | distilled,
        ),
        dataclasses.replace(registers, block_layers=gated),
        dataclasses.replace(dinov2, block_layers=gated),
        registers,
        dinov2,
        dataclasses.replace(
            vit,
            name="MAE",
            normalization="imagenet",
            model_types=("vit_mae",),
            marks=("decoder_embed",),
        ),
        dataclasses.replace(vit, shared="DeiT, DINO and MAE"),
        # Behind ViT, whose names these have: a config alone tells them.
        dataclasses.replace(
            vit,
            name="MSN",
            norm_epsilon=1e-6,
            normalization="imagenet",
            model_types=("vit_msn",),
        ),
        dataclasses.replace(
            vit, name="I-JEPA", normalization="imagenet", model_types=("ijepa",)
        ),
    )


VIDEOMAE = tuple(
    _hugging_face(
        column,
        ("encoder.layer.{i}.", "layers.{i}."),
        layers,
        name="VideoMAE",
        normalization="imagenet",
        model_types=("videomae",),
        tubelets=True,
        without_bias=("attention/key",),
        before_head=("fc_norm.weight", "fc_norm.bias"),
    )
    for column, layers in ((0, _VIDEOMAE_BLOCK), (1, _VIT_BLOCK))
)

_CLIP = _hugging_face(
    0,
    ("encoder.layers.{i}.",),
    {
        "norm_1": ("layer_norm1",),
        "attention/query": ("self_attn.q_proj",),
        "attention/key": ("self_attn.k_proj",),
        "attention/value": ("self_attn.v_proj",),
        "attention/out": ("self_attn.out_proj",),
        "norm_2": ("layer_norm2",),
        "mlp/up": ("mlp.fc1",),
        "mlp/down": ("mlp.fc2",),
    },
    name="CLIP",
    norm_epsilon=1e-5,
    normalization="clip",
    layers={
        "patch": "embeddings.patch_embedding",
        "encoder/pre_norm": "pre_layrnorm",
        "encoder/norm": "post_layernorm",
    },
    arrays={
        "class_token": "embeddings.class_embedding",
        "positions": "embeddings.position_embedding.weight",
    },
    model_types=("clip", "clip_vision_model"),
    marks=("encoder/pre_norm",),
    without_bias=("patch",),
    unused={
        r"embeddings\.position_ids": "counts from 0",
        r"classifier\.": "reads the mean of the patches, not the pooled features",
    },
)
CLIP = dataclasses.replace(_CLIP, gelu="quick")
SIGLIP = dataclasses.replace(
    _CLIP,
    name="SigLIP",
    norm_epsilon=1e-6,
    gelu="tanh",
    normalization="half",
    layers={
        "patch": "embeddings.patch_embedding",
        "encoder/norm": "post_layernorm",
        "pooling/attention/query": "head.attention.q_proj",
        "pooling/attention/key": "head.attention.k_proj",
        "pooling/attention/value": "head.attention.v_proj",
        "pooling/attention/out": "head.attention.out_proj",
        "pooling/norm": "head.layernorm",
        "pooling/mlp/up": "head.mlp.fc1",
        "pooling/mlp/down": "head.mlp.fc2",
    },
    arrays={
        "positions": "embeddings.position_embedding.weight",
        "pooling/probe": "head.probe",
    },
    model_types=("siglip", "siglip_vision_model"),
    marks=(),
    without_bias=(),
)

FAMILIES = (
    AUGREG,
    BIG_VISION,
    *TIMM,
    *(family for column in (0, 1) for family in _hugging_face_vits(column)),
    *VIDEOMAE,
    CLIP,
    SIGLIP,
)


#: Heads by timm's architecture, where they are not those of the width.
HEADS = {"test_vit": 2, "test_vit2": 2, "vit_base_patch16_gap_224": 16}

#: Widths of ViTs with 16 heads: so400m, H, g, giant-opt and G.
_SIXTEEN_HEADS = (1152, 1280, 1408, 1536, 1664)

#: Widths of known ViTs; all others than those above have width / 64 heads.
WIDTHS = (192, 256, 320, 384, 512, 640, 768, 832, 896, 1024, *_SIXTEEN_HEADS)


def heads_of(width: int, gated: bool, architecture: str = "") -> int:
    """Returns the number of heads by width; a guess for widths not in `WIDTHS`.

    Args:
        width: Its width.
        gated: Whether its MLPs are gated: DINOv2's giant has giant-opt's width, but 24
            heads, not 16.
        architecture: timm's name.
    """
    if architecture in HEADS:
        return HEADS[architecture]
    sixteen = width in _SIXTEEN_HEADS and not (gated and width == 1536)
    return 16 if sixteen else max(width // 64, 1)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A kind of ViT that the model cannot compute.

    Attributes:
        names: Patterns of names that together give it away; () for none.
        model_types: Pattern of Hugging Face's `model_type` and timm's `architecture`;
            "" for none.
        why: The reason, and what to take.
    """

    names: tuple[str, ...]
    model_types: str
    why: str

    def evidence(self, names: Collection[str]) -> str:
        """Returns the names of a file that give it away, in words; "" for none."""
        found = [next((n for n in names if re.search(p, n)), "") for p in self.names]
        return " and ".join(found) if all(found) else ""


_ROTARY = Refusal(
    (r"\brope\b|rope_embed|rotary|class_pos_emb|^(model\.)?layer\.\d+\.",),
    r"dinov3|eva02|vit_.*_rope|rope_vit|vit_pe_|lingbot|sapiens2|vjepa",
    "has rotary positions (DINOv3, EVA-02, Perception Encoder, V-JEPA 2), which turn "
    "queries and keys in every block; here positions are added to the tokens once. "
    "Take DINOv2, say hf://facebook/dinov2-small.",
)
VIVIT = Refusal(
    (r"^vivit\.",),
    r"\bvivit",
    "is a model of clips with a class token or learned positions (ViViT), which "
    "VideoMAE, the one that is read, has not. Take hf://MCG-NJU/videomae-base.",
)
_NO_PLAIN_VIT = (
    "is no plain ViT of square patches. Take a ViT, DINOv2, CLIP or SigLIP (SigLIP 2 "
    "of a fixed size, not NaFlex)."
)
REFUSED = (
    VIVIT,
    Refusal(
        (r"relative_position_bias|rel_pos",),
        r"beit(?!3)|data2vec|swin",
        "adds a bias of relative positions to its attention (BEiT, data2vec, Swin), "
        "which does not go with tubes. Take a ViT, DINOv2, CLIP or SigLIP.",
    ),
    _ROTARY,
    # timm's Perception Encoder has CLIP's names; its rotary positions are no arrays.
    dataclasses.replace(_ROTARY, names=(r"\bnorm_pre\.", r"\battn_pool\.latent$")),
    Refusal(
        (r"blocks\.\d+\.gamma_1$",),
        r"\bcait_|xcit",
        "scales its layers by gamma_1, as timm's models with rotary positions (DINOv3) "
        "and CaiT do, which are no plain ViTs. Take a ViT, DINOv2, CLIP or SigLIP.",
    ),
    Refusal(
        (r"mlp\.w12\b",),
        "",
        "has the names of Meta's own file of DINOv2's giant. Take Hugging Face's or "
        "timm's, say hf://facebook/dinov2-giant.",
    ),
    Refusal(
        (r"\bencoder_layer_\d+\.self_attention\.",),
        "",
        "has torchvision's names. Take Hugging Face's or timm's, say "
        "hf://timm/vit_base_patch16_224.augreg_in21k.",
    ),
    Refusal(
        (r"\bresblocks\.\d+\.",),
        "",
        "has the names of OpenAI's and OpenCLIP's own files of CLIP. Take Hugging "
        "Face's or timm's, say hf://openai/clip-vit-base-patch32.",
    ),
    Refusal(
        (
            r"\.(q_norm|k_norm)\.|mlp\.fc1_g\b|patch_embed\.backbone\."
            r"|\battn\.(norm\.|lambda_)|\bblocks\.\d+\.proj\.|detection_tokens"
            r"|\btemporal_attention\.|\bpre_layernorm\.|\bmessage_attn\.",
        ),
        r"beit3|siglip2_vision_model|siglip2$|aimv2|convnext|resnet|_rpn_|_xp_|x2_224$"
        r"|hiera|yolos|timesformer|intern_?vit|internvl|vit_d(wee|little)_|owl|xclip"
        r"|pixio",
        _NO_PLAIN_VIT,
    ),
    Refusal(
        (),
        r"\btest_vit3$",
        "pools its register together with the patches, which no pooling here does.",
    ),
)

#: NaFlex, whose patches are a linear layer: by the array's two dimensions.
NAFLEX = Refusal((r"embeddings\.patch_embedding\.weight$",), "", _NO_PLAIN_VIT)
