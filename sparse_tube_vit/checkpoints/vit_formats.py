"""Files of image ViTs' weights: array names by library, and reading."""

import dataclasses
import itertools
import re
from collections.abc import Mapping

import numpy as np
import safetensors

from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.storage import UnreachableStorage


class UnreadableWeights(TubeViTError, ValueError):
    """A file that is missing, damaged, or not a known kind of weights."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A library's names of a ViT's arrays, and the settings of its models.

    Attributes:
        name: The library.
        gelu, norm_epsilon: Options of its models, see `EncoderOptions`.
        layers: Its name of every layer outside the blocks, by our name.
        block: Its name of block {i}.
        block_layers: Its name of every layer of a block, by our name.
        class_token, positions: Its names of the two arrays that belong to no layer.
        leaves: Its suffixes for a layer's kernel, scale and bias.
        torch: Whether kernels are (out, in) and patch kernels (D, 3, h, w).
        before_head: Layers between trunk and classifier, which TubeViT lacks. They are
            dropped together with the classifier.
        unused: Arrays without a part in classification, which are dropped.
    """

    name: str
    gelu: str
    norm_epsilon: float
    layers: Mapping[str, str]
    block: str
    block_layers: Mapping[str, str]
    class_token: str
    positions: str
    leaves: Mapping[str, str]
    torch: bool
    before_head: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def recognizes(self, names) -> bool:
        """Returns whether a file with arrays of these names has this format."""
        signature = (
            self.name_of("patch", "kernel"),
            self.name_of("encoder/block_0/attention/query", "kernel"),
        )
        return all(name in names for name in signature)

    def name_of(self, layer: str, leaf: str) -> str:
        """Returns the name in the file of our layer's kernel, scale or bias."""
        if block := re.fullmatch(r"encoder/block_(\d+)/(.*)", layer):
            theirs = self.block.format(i=block[1]) + self.block_layers[block[2]]
        else:
            theirs = self.layers[layer]
        return theirs + self.leaves[leaf]

    def names(self, depth: int) -> dict[str, str]:
        """Returns the names in the file of a ViT's arrays, by our names."""
        layers = [*self.layers] + [
            f"encoder/block_{i}/{layer}"
            for i in range(depth)
            for layer in self.block_layers
        ]
        return {"class_token": self.class_token, "positions": self.positions} | {
            f"{layer}/{leaf}": self.name_of(layer, leaf)
            for layer in layers
            for leaf in ("scale" if "norm" in layer else "kernel", "bias")
        }

    def patch(self, file: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Returns the size of a file's patches in pixels, (h, w)."""
        shape = file[self.name_of("patch", "kernel")].shape
        return shape[2:] if self.torch else shape[:2]

    def depth(self, names) -> int:
        """Returns the number of blocks in a file."""
        return next(
            i
            for i in itertools.count()
            if not any(name.startswith(self.block.format(i=i)) for name in names)
        )


_TORCH = {
    "leaves": {"kernel": ".weight", "scale": ".weight", "bias": ".bias"},
    "torch": True,
    "gelu": "erf",
}


#: Names of a block's layers: those that `save_pretrained` writes, and those of the
#: modules since transformers 5.
_HUGGING_FACE_BLOCK = {
    "norm_1": ("layernorm_before", "layernorm_before"),
    "attention/query": ("attention.attention.query", "attention.q_proj"),
    "attention/key": ("attention.attention.key", "attention.k_proj"),
    "attention/value": ("attention.attention.value", "attention.v_proj"),
    "attention/out": ("attention.output.dense", "attention.o_proj"),
    "norm_2": ("layernorm_after", "layernorm_after"),
    "mlp/up": ("intermediate.dense", "mlp.fc1"),
    "mlp/down": ("output.dense", "mlp.fc2"),
}


def _hugging_face(prefix, column):
    """Names with a prefix, which files without a classifier lack, by a table column."""
    return Format(
        name="Hugging Face",
        norm_epsilon=1e-12,
        layers={
            "patch": f"{prefix}embeddings.patch_embeddings.projection",
            "encoder/norm": f"{prefix}layernorm",
            "head": "classifier",
        },
        block=prefix + ("encoder.layer.{i}.", "layers.{i}.")[column],
        block_layers={k: names[column] for k, names in _HUGGING_FACE_BLOCK.items()},
        class_token=f"{prefix}embeddings.cls_token",
        positions=f"{prefix}embeddings.position_embeddings",
        unused=(
            f"{prefix}pooler.dense.weight",
            f"{prefix}pooler.dense.bias",
            f"{prefix}embeddings.mask_token",
        ),
        **_TORCH,
    )


FORMATS = (
    Format(
        name="AugReg",
        gelu="tanh",
        norm_epsilon=1e-6,
        layers={
            "patch": "embedding",
            "encoder/norm": "Transformer/encoder_norm",
            "head": "head",
        },
        block="Transformer/encoderblock_{i}/",
        block_layers={
            "norm_1": "LayerNorm_0",
            "attention/query": "MultiHeadDotProductAttention_1/query",
            "attention/key": "MultiHeadDotProductAttention_1/key",
            "attention/value": "MultiHeadDotProductAttention_1/value",
            "attention/out": "MultiHeadDotProductAttention_1/out",
            "norm_2": "LayerNorm_2",
            "mlp/up": "MlpBlock_3/Dense_0",
            "mlp/down": "MlpBlock_3/Dense_1",
        },
        class_token="cls",
        positions="Transformer/posembed_input/pos_embedding",
        leaves={"kernel": "/kernel", "scale": "/scale", "bias": "/bias"},
        torch=False,
        before_head=("pre_logits/kernel", "pre_logits/bias"),
    ),
    Format(
        name="timm",
        norm_epsilon=1e-6,
        layers={"patch": "patch_embed.proj", "encoder/norm": "norm", "head": "head"},
        block="blocks.{i}.",
        block_layers={
            "norm_1": "norm1",
            "attention/query": "attn.q",  # three parts of attn.qkv
            "attention/key": "attn.k",
            "attention/value": "attn.v",
            "attention/out": "attn.proj",
            "norm_2": "norm2",
            "mlp/up": "mlp.fc1",
            "mlp/down": "mlp.fc2",
        },
        class_token="cls_token",
        positions="pos_embed",
        before_head=("fc_norm.weight", "fc_norm.bias"),
        **_TORCH,
    ),
    *(_hugging_face(prefix, i) for prefix in ("vit.", "") for i in (0, 1)),
)


def read_vit(path) -> tuple[Format, dict[str, np.ndarray]]:
    """Reads an image ViT's weights: returns the format, and all arrays by name.

    Args:
        path: An `.npz` or `.safetensors` file; local, or at gs:// or hf://.

    Raises:
        UnreadableWeights, UnreachableStorage: As `read_arrays`, or the names are of no
            known format.
    """
    file = read_arrays(path)
    kind = next((f for f in FORMATS if f.recognizes(file)), None)
    if kind is None:
        some = ", ".join(sorted(file)[:5])
        raise UnreadableWeights(
            f"{path} is not a ViT by AugReg's, timm's or Hugging Face's names: it has "
            f"{len(file)} arrays, the first {some}."
        )
    return kind, file


def read_arrays(path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file in float32, timm's qkv split in three.

    Args:
        path: As for `read_vit`.

    Raises:
        UnreadableWeights: The file is missing, damaged or of another kind.
        UnreachableStorage: The storage does not answer.
    """
    try:
        with stored.on_disk(stored.open_path(path)) as local:
            if local.name.endswith(".npz"):
                with np.load(local, allow_pickle=False) as arrays:
                    file = dict(arrays)
            else:
                with safetensors.safe_open(local, "np") as arrays:
                    names = arrays.keys()
                    file = {name: arrays.get_tensor(name) for name in names}
        file = {name: x.astype(np.float32) for name, x in file.items()}
        for name in [n for n in file if re.search(r"\battn\.qkv\.(weight|bias)$", n)]:
            parts = np.split(file.pop(name), 3)
            for letter, part in zip("qkv", parts, strict=True):
                file[name.replace("qkv", letter)] = part
        return file
    except UnreachableStorage:
        raise
    except Exception as error:  # each reader has its own for a damaged file
        raise UnreadableWeights(f"{path} cannot be read: {error}") from error
