"""Section `model` of a config, and the encoder's part of it as one value."""

import dataclasses
import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from sparse_tube_vit.config.keys import (
    COUNT,
    DTYPE,
    POSITIVE,
    RATE,
    SWITCH,
    Key,
    Rule,
    one_of,
    whole,
)


def _option(default, meaning, rule=None, value_type=None):
    key = Key(default, meaning, rule, value_type)
    return dataclasses.field(default=default, metadata={"key": key})


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """Options of the ViT encoder; the default sizes are those of B.

    Meanings and allowed values of the fields are those of `ENCODER`, the keys of
    `config.model` of the same names.

    Attributes:
        frozen_layers: Number of first blocks without a gradient, those that
            `optimizer.trained_layers` leaves. With `scan` they run in a loop of their
            own, because differentiating a loop differentiates all of it.
    """

    depth: int = _option(12, "Number of blocks, `block_<i>`.", whole(1, 1000))
    width: int = _option(768, "Channels of a token.", whole(1, 2**16))
    mlp_dim: int = _option(3072, "Hidden units of the MLPs.", whole(1, 2**20))
    heads: int = _option(12, "Attention heads; they divide the width.", COUNT)
    dropout: float = _option(0.0, "Dropout rate in training.", RATE)
    stochastic_depth: float = _option(
        0.0,
        "Stochastic depth rate of the last block; it grows linearly from 0 "
        "(Huang et al., 2016).",
        RATE,
    )
    new_layers: int = _option(
        0,
        "Number of fresh blocks on top of a pretrained trunk, `new_block_<i>` "
        "(paper table 8).",
        whole(0, 1000),
    )
    gate_after: int | None = _option(
        None,
        "Number of blocks after which the encoder's input is added again, times tanh "
        "of a learned scalar that starts at 0 (paper 3.6, eq. 8). None: no gate.",
        value_type=int,
    )
    gelu: str = _option(
        "tanh",
        "GELU by its tanh approximation, as in ViTs of JAX, exact by erf, as in those "
        "of PyTorch, or quick, by a sigmoid, as in OpenAI's CLIP.",
        one_of("tanh", "erf", "quick"),
    )
    gated_mlp: bool = _option(
        False,
        "All MLPs with SwiGLU (Shazeer, 2020), as in DINOv2's giant; `gelu` then has "
        "no effect.",
        SWITCH,
    )
    norm_epsilon: float = _option(1e-6, "Epsilon of the LayerNorms.", POSITIVE)
    pre_norm: bool = _option(
        False, "A LayerNorm before the first block, as in CLIP.", SWITCH
    )
    dtype: str = _option(
        "float32", "Dtype of the computation; parameters are float32.", DTYPE
    )
    attention: str = _option(
        "auto",
        "Implementation of attention; auto chooses by device, dtype and tokens.",
        one_of("auto", "heads_first", "head_by_head", "xla", "cudnn", "splash"),
    )
    scan: bool = _option(
        False, "Run the blocks in a loop, which compiles only once.", SWITCH
    )
    remat: str = _option(
        "none",
        "Rematerialization: activations of a block are kept for its gradient (none), "
        "only the outputs of dense layers and attention are (dots), or none are "
        "(full).",
        one_of("none", "full", "dots"),
    )
    frozen_layers: int = 0

    @classmethod
    def of(cls, config: ConfigDict) -> "EncoderOptions":
        """Returns the options of a config."""
        options = cls(**{name: config.model[name] for name in ENCODER})
        if (trained := config.optimizer.trained_layers) is None:
            return options
        return dataclasses.replace(options, frozen_layers=options.layers - trained)

    @property
    def layers(self) -> int:
        """Number of blocks, fresh ones included."""
        return self.depth + self.new_layers

    def conflicts(self, prefix: str = "") -> Iterator[str]:
        """Yields which options do not go together.

        Args:
            prefix: Put before the options' names, such as "model.".
        """
        if self.width % self.heads:
            yield (
                f"{prefix}width {self.width} is not a multiple of {prefix}heads "
                f"{self.heads}."
            )
        if self.gate_after is not None and not 0 < self.gate_after < self.layers:
            yield (
                f"{prefix}gate_after is {self.gate_after}: the gate stands between two "
                f"blocks, so that it must be 1 to {self.layers - 1} of {self.layers} "
                "layers."
            )


#: The keys of section `model` that are options of the encoder.
ENCODER = {
    field.name: field.metadata["key"]
    for field in dataclasses.fields(EncoderOptions)
    if "key" in field.metadata
}

#: The keys of section `model`.
MODEL = {
    "tubes": Key(
        "main",
        "Tubes: the name of a set, a sum of table 14's tubes such as "
        "a.iv+d.v+e.iv+f.v, or a tuple of dicts with the attributes of Tube.",
        value_type=object,
    ),
    "kernels": Key(
        "separate",
        "A kernel for every tube (separate), or one of 8x8x8 that is resized to each "
        "(interpolated, paper 3.4).",
        one_of("separate", "interpolated"),
    ),
    "positions": Key(
        "fixed",
        "Position embeddings (paper 3.3): sines and cosines of a token's centre "
        "(fixed) or of its index (fixed_no_stride), learned, or none.",
        one_of("fixed", "fixed_no_stride", "learned", "none"),
    ),
    "position_gain": Key(
        None,
        "Initial value of a learned scalar that fixed positions are multiplied by; to "
        "learned ones, fixed ones are added times it. Pretrained trunks have small "
        "positions of their own. None: no scalar, 1.",
        Rule(lambda x: x is None or abs(x) < math.inf, "None, or a finite number"),
        value_type=float,
    ),
    "pooling": Key(
        "attention",
        "Pooling of the tokens: attention by a learned probe, mean, class_token, or "
        "map, attention followed by an MLP, as in SigLIP.",
        one_of("attention", "mean", "class_token", "map"),
    ),
    "registers": Key(
        0,
        "Learned tokens without a place that join a clip's and are not pooled "
        "(Darcet et al., ICLR 2024); a distilled DeiT's second token is one.",
        whole(0, 1000),
    ),
    **ENCODER,
}
