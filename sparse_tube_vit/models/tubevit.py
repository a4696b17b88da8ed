"""TubeViT: one ViT for images and videos (Piergiovanni et al., CVPR 2023)."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparse_tube_vit.config import MODEL_CHOICES, ConfigDict
from sparse_tube_vit.distributed.mesh import BATCH, constrain
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.encoder import AttentionPooling, Encoder
from sparse_tube_vit.models.positions import Positions
from sparse_tube_vit.models.tubes import (
    SparseTubes,
    Tube,
    count_tokens,
    kernel_channels,
)
from sparse_tube_vit.models.variants import make_tubes


class InvalidModel(TubeViTError, ValueError):
    """Options that make no model."""


class UnknownHead(TubeViTError, KeyError):
    """The model has no classifier of that name."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


class TubeViT(nn.Module):
    """Tubes, encoder, pooling, and one linear classifier per data set.

    One parameter tree serves images and videos: an image is a clip of one frame and
    goes through the tubes of one frame, a video through all of them.

    Attributes:
      tubes: the tubes that make the tokens.
      classes: number of outputs of every head, by the head's name.
      depth, width, mlp_dim, heads: of the encoder, as in `variants.VARIANTS`.
      kernels: "separate" or "interpolated", as in `SparseTubes`.
      positions: "fixed", "fixed_no_stride", "learned" or "none", as in `positions`.
      clip: (T, H, W) that learned positions are for.
      pooling: "attention" by a learned probe, "mean" of all tokens, or "class_token".
      dropout, stochastic_depth: rates in the encoder, in training.
      new_layers, gate_after, gelu, norm_epsilon, attention, scan, remat, frozen_layers:
        as in `Encoder`.
      dtype: of the computation; parameters, their gradients and logits are float32.

    Raises:
      InvalidModel: an option has no such value.
    """

    tubes: tuple[Tube, ...]
    classes: Mapping[str, int]
    depth: int
    width: int
    mlp_dim: int
    heads: int
    kernels: str = "separate"
    positions: str = "fixed"
    clip: tuple[int, int, int] | None = None
    pooling: str = "attention"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    new_layers: int = 0
    gate_after: int | None = None
    gelu: str = "tanh"
    norm_epsilon: float = 1e-6
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    frozen_layers: int = 0
    dtype: jnp.dtype = jnp.float32

    def _check(self):
        for option, choices in MODEL_CHOICES.items():
            if getattr(self, option) not in choices:
                raise InvalidModel(
                    f"{option} is {getattr(self, option)!r}; it must be one of "
                    f"{', '.join(choices)}."
                )
        layers = self.depth + self.new_layers
        if self.gate_after is not None and not 0 < self.gate_after < layers:
            raise InvalidModel(
                f"gate_after is {self.gate_after}; it must be 1 to {layers - 1} of "
                f"{layers} layers."
            )
        if self.positions == "learned" and self.clip is None:
            raise InvalidModel("Learned positions need clip, the (T, H, W) they fit.")

    def setup(self):
        self._check()
        self.stem = SparseTubes(self.tubes, self.width, self.kernels, self.dtype)
        self.place = Positions(
            self.positions, self.tubes, self.width, self.clip, name="positions"
        )
        if self.pooling == "class_token":
            self.class_token = self.param(
                "class_token", nn.initializers.zeros, (1, 1, self.width)
            )
        if self.pooling == "attention":
            self.attention_pooling = AttentionPooling(
                self.heads, self.dtype, name="pooling"
            )
        self.encoder = Encoder(
            depth=self.depth,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            dropout=self.dropout,
            stochastic_depth=self.stochastic_depth,
            new_layers=self.new_layers,
            gate_after=self.gate_after,
            gelu=self.gelu,
            norm_epsilon=self.norm_epsilon,
            attention=self.attention,
            scan=self.scan,
            remat=self.remat,
            frozen_layers=self.frozen_layers,
            dtype=self.dtype,
        )
        self.head = {
            name: nn.Dense(outputs, kernel_init=nn.initializers.zeros)
            for name, outputs in self.classes.items()
        }

    def restride(self, scale: float) -> "TubeViT":
        """The model with more or fewer tokens (paper table 7d), see `Tube.restride`."""
        return self.clone(tubes=tuple(tube.restride(scale) for tube in self.tubes))

    def features(self, x, train=False):
        """Describes clips or images.

        Args:
          x: videos (B, T, H, W, 3), images (B, H, W, 3) or (B, 1, H, W, 3), uint8 in
            0..255 or floats in [-1, 1]; or a tree of such, as `Encoder` takes tokens.
          train: whether dropout acts.

        Returns:
          {"tokens": (B, N, D), "pooled": (B, D)}, in the model's dtype; each a tree if
          x is.

        Raises:
          ClipTooSmall, NoImageTube: the tubes cannot read such an input.
          PositionsMismatch: learned positions are for clips of another size.
        """
        z = self.encoder(jax.tree.map(self._tokens, x), train)
        if self.pooling == "class_token":
            return {
                "tokens": jax.tree.map(lambda z: z[:, 1:], z),
                "pooled": jax.tree.map(lambda z: z[:, 0], z),
            }
        mean = functools.partial(jnp.mean, axis=1)
        pool = mean if self.pooling == "mean" else self.attention_pooling
        return {"tokens": z, "pooled": jax.tree.map(pool, z)}

    def _tokens(self, x):
        """What the encoder takes of an input as of `features`: (B, N, D)."""
        if x.ndim == 4:
            x = x[:, None]
        if x.ndim != 5 or x.shape[-1] != 3:
            raise ValueError(
                "Expected images (B, H, W, 3) or videos (B, T, H, W, 3), got an array "
                f"of shape {x.shape}."
            )
        z = self.stem(x) + self.place(x.shape[1:4])
        z = constrain(z.astype(self.dtype), BATCH)
        if self.pooling == "class_token":
            token = jnp.broadcast_to(self.class_token, (len(z), 1, self.width))
            z = jnp.concatenate([token.astype(self.dtype), z], axis=1)
        return z

    def __call__(self, x, head, train=False):
        """Logits (B, classes[head]), float32, of `x` as in `features`.

        Of a tree x, `head` is a tree of names, and so are the logits.

        Raises:
          UnknownHead: the model has no such head.
        """
        for name in jax.tree.leaves(head):
            if name not in self.classes:
                raise UnknownHead(
                    f"The model has no head {name!r}; it has {', '.join(self.classes)}."
                )
        pooled = self.features(x, train)["pooled"]
        return jax.tree.map(self._logits, pooled, head)

    def _logits(self, pooled, head):
        pooled = pooled.astype(jnp.float32)
        if self.is_initializing():  # parameters of every head, whichever is asked for
            return {name: dense(pooled) for name, dense in self.head.items()}[head]
        return constrain(self.head[head](constrain(pooled, BATCH)), BATCH)


def init_params(model: TubeViT, key: jax.Array, clip: tuple[int, int, int]):
    """Fresh parameters, a nested dict of float32, for clips of (T, H, W)."""

    @jax.jit  # one program: op by op, as init runs otherwise, takes far longer
    def init(key):
        x = jnp.zeros((1, *clip, 3), jnp.float32)
        return model.init(key, x, next(iter(model.classes)))["params"]

    return init(key)


def make_model(config: ConfigDict, classes: Mapping[str, int]) -> TubeViT:
    """The model of a config, with a head of so many classes for every name.

    Raises:
      UnknownTubes, InvalidTube, ClipTooSmall, NoImageTube: the tubes are wrong, or do
        not fit the config's width, clips or images.
    """
    sizes = config.model.to_dict()
    tubes = make_tubes(sizes.pop("tubes"))
    clip = (config.clip.frames, config.clip.size, config.clip.size)
    sources = (*config.streams.values(), *config.evaluations.values())
    kinds = {source.kind for source in sources} or {"video"}
    for kind in kinds:
        count_tokens(tubes, clip if kind == "video" else (1, *clip[1:]))
    kernel_channels(tubes, sizes["width"], sizes["kernels"])
    dtype = jnp.dtype(sizes.pop("dtype"))
    return TubeViT(
        tubes=tubes,
        classes=dict(classes),
        clip=clip,
        frozen_layers=config.optimizer.frozen_layers or 0,
        dtype=dtype,
        **sizes,
    )
