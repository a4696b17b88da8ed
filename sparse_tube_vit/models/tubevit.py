"""TubeViT: one ViT for images and videos (Piergiovanni et al., CVPR 2023)."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparse_tube_vit.config import MODEL, ConfigDict, EncoderOptions, input_size
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

#: Tokens times width that a model may have, some 4 times those of ViT-H on dense tubes
#: of 64x448x448 pixels. Position embeddings of more would fill a host's memory.
MOST_VALUES = 2**27


class InvalidModel(TubeViTError, ValueError):
    """Options of a model that are not allowed, or do not go together."""


class UnknownHead(TubeViTError, KeyError):
    """A head that the model does not have."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


class TubeViT(nn.Module):
    """Tubes, encoder, pooling, and one linear classifier per data set.

    One parameter tree serves images and videos: an image is a clip of one frame and
    goes through the tubes of one frame, a video through all of them.

    Attributes:
        tubes: Tubes that make the tokens.
        classes: Number of outputs of every head, by the head's name.
        options: Options of the encoder. Their dtype is that of all computation;
            parameters, their gradients and logits are float32.
        kernels: "separate" or "interpolated", as in `SparseTubes`.
        positions: "fixed", "fixed_no_stride", "learned" or "none", as in `positions`.
        clip: (T, H, W) of a video, which learned positions are for.
        position_gain: Initial value of the learned scalar of fixed positions, as in
            `positions.Positions`; None: no scalar.
        pooling: "attention" by a learned probe, "mean" of all tokens, "class_token", or
            "map", attention and an MLP.
        registers: Number of learned tokens that join a clip's and are not pooled.

    Raises:
        InvalidModel: An option has no such value, or options do not go together.
    """

    tubes: tuple[Tube, ...]
    classes: Mapping[str, int]
    options: EncoderOptions
    kernels: str = MODEL["kernels"].default
    positions: str = MODEL["positions"].default
    clip: tuple[int, int, int] | None = None
    pooling: str = MODEL["pooling"].default
    position_gain: float | None = None
    registers: int = MODEL["registers"].default

    def _check(self):
        values = vars(self) | vars(self.options)
        wrong = [
            key.rule.problem(name, values[name])
            for name, key in MODEL.items()
            if key.rule
        ]
        wrong = list(filter(None, wrong)) or [*self.options.conflicts()]
        if self.positions == "learned" and self.clip is None:
            wrong.append("Learned positions need clip, the (T, H, W) they fit.")
        if self.positions == "none" and self.position_gain is not None:
            wrong.append("Without positions, position_gain must be None.")
        if wrong:
            raise InvalidModel("\n".join(wrong))

    def setup(self):
        self._check()
        width, dtype = self.options.width, self.options.dtype
        self.stem = SparseTubes(self.tubes, width, self.kernels, dtype)
        self.place = Positions(
            self.positions,
            self.tubes,
            width,
            self.clip,
            self.position_gain,
            name="positions",
        )
        if self.pooling == "class_token":
            self.class_token = self.param(
                "class_token", nn.initializers.zeros, (1, 1, width)
            )
        if self.registers:
            self.register_tokens = self.param(
                "registers", nn.initializers.normal(0.02), (1, self.registers, width)
            )
        if self.pooling in ("attention", "map"):
            self.attention_pooling = AttentionPooling(
                self.options, self.pooling == "map", name="pooling"
            )
        self.encoder = Encoder(self.options)
        self.head = {
            name: nn.Dense(outputs, kernel_init=nn.initializers.zeros)
            for name, outputs in self.classes.items()
        }

    @property
    def extra_tokens(self) -> int:
        """Number of tokens before a clip's own: class token and registers."""
        return (self.pooling == "class_token") + self.registers

    def restride(self, scale: float) -> "TubeViT":
        """Returns the model with more or fewer tokens, as `Tube.restride`."""
        return self.clone(tubes=tuple(tube.restride(scale) for tube in self.tubes))

    def with_options(self, **changes) -> "TubeViT":
        """Returns the model with other options of the encoder."""
        return self.clone(options=dataclasses.replace(self.options, **changes))

    def features(self, x, train=False):
        """Computes features of clips or images.

        Args:
            x: Videos (B, T, H, W, 3) or images (B, H, W, 3) or (B, 1, H, W, 3), uint8
                in 0..255 or floats in [-1, 1]; or a tree of them, as in `Encoder`.
            train: Whether dropout and stochastic depth act.

        Returns:
            {"tokens": (B, N, D), "pooled": (B, D)}, in the options' dtype; trees if x
            is a tree.

        Raises:
            ClipTooSmall, NoImageTube: The tubes cannot read such an input.
            PositionsMismatch: Learned positions are for clips of another size.
        """
        z = self.encoder(jax.tree.map(self._tokens, x), train)
        return {
            "tokens": jax.tree.map(lambda z: z[:, self.extra_tokens :], z),
            "pooled": jax.tree.map(self._pool, z),
        }

    def _pool(self, z):
        """Maps all tokens, extra ones included, to one (B, D)."""
        if self.pooling == "class_token":
            return z[:, 0]
        z = z[:, self.extra_tokens :]
        return z.mean(axis=1) if self.pooling == "mean" else self.attention_pooling(z)

    def _tokens(self, x):
        """Maps videos or images, as in `features`, to tokens (B, N, D)."""
        if x.ndim == 4:
            x = x[:, None]
        if x.ndim != 5 or x.shape[-1] != 3:
            raise ValueError(
                "Expected images (B, H, W, 3) or videos (B, T, H, W, 3), got an array "
                f"of shape {x.shape}."
            )
        z = self.stem(x) + self.place(x.shape[1:4])
        z = constrain(z.astype(self.options.dtype), BATCH)
        extra = [self.class_token] if self.pooling == "class_token" else []
        extra += [self.register_tokens] if self.registers else []
        if extra:
            extra = jnp.concatenate(extra, axis=1)  # (1, class token and registers, D)
            extra = jnp.broadcast_to(extra, (z.shape[0], *extra.shape[1:]))
            z = jnp.concatenate([extra.astype(z.dtype), z], axis=1)
        return z

    def __call__(self, x, head, train=False):
        """Computes logits (B, classes[head]), float32.

        Args:
            x: As in `features`.
            head: Name of the head; for a tree x, a tree of names.
            train: Whether dropout and stochastic depth act.

        Returns:
            Logits; a tree if x is a tree.

        Raises:
            UnknownHead: The model has no such head.
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
        if self.is_initializing():  # creates the parameters of all heads
            return {name: dense(pooled) for name, dense in self.head.items()}[head]
        return constrain(self.head[head](constrain(pooled, BATCH)), BATCH)


def init_params(model: TubeViT, key: jax.Array, clip: tuple[int, int, int]):
    """Returns random parameters, a nested dict of float32, for clips of (T, H, W)."""

    @jax.jit  # far faster than running op by op
    def init(key):
        x = jnp.zeros((1, *clip, 3), jnp.float32)
        if not model.classes:
            return model.init(key, x, method="features")["params"]
        return model.init(key, x, next(iter(model.classes)))["params"]

    return init(key)


def param_shapes(model: TubeViT):
    """Returns shapes and dtypes of a model's parameters, without computing them.

    Args:
        model: A model whose `clip` is set.
    """
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0), model.clip))


def check_tubes(config: ConfigDict) -> None:
    """Checks that a config's tubes fit its width, and its clips and images.

    Raises:
        UnknownTubes, InvalidTube: There are no such tubes, or they do not fit the
            width.
        ClipTooSmall, NoImageTube: They cannot read the clips or images of a stream or
            an evaluation, at its `stride_scale`.
        InvalidModel: They make more tokens than fit into memory.
    """
    tubes = make_tubes(config.model.tubes)
    sources = (*config.streams.values(), *config.evaluations.values())
    inputs = {(source.kind, source.get("stride_scale", 1.0)) for source in sources}
    for kind, scale in inputs or {("video", 1.0)}:
        size, width = input_size(config.clip, kind), config.model.width
        tokens = count_tokens([tube.restride(scale) for tube in tubes], size)
        if tokens * width > MOST_VALUES:
            raise InvalidModel(
                f"The tubes make {tokens:,} tokens of width {width} of a {kind} of "
                f"{' x '.join(map(str, size))}: at most {MOST_VALUES:,} values fit. "
                "Choose larger strides, or a smaller clip or width."
            )
    kernel_channels(tubes, config.model.width, config.model.kernels)


def make_model(config: ConfigDict, classes: Mapping[str, int]) -> TubeViT:
    """Returns the model of a config.

    Args:
        config: Config of a run.
        classes: Number of outputs of every head, by the head's name.

    Raises:
        UnknownTubes, InvalidTube, ClipTooSmall, NoImageTube, InvalidModel: As
            `check_tubes`.
    """
    check_tubes(config)
    return TubeViT(
        tubes=make_tubes(config.model.tubes),
        classes=dict(classes),
        options=EncoderOptions.of(config),
        kernels=config.model.kernels,
        positions=config.model.positions,
        clip=(config.clip.frames, config.clip.size, config.clip.size),
        pooling=config.model.pooling,
        position_gain=config.model.position_gain,
        registers=config.model.registers,
    )
