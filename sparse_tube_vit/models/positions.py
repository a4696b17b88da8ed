"""Position embeddings of tokens (paper 3.3, eqs. 3-7, and table 7a).

`fixed`: sines and cosines of a token's centre, in frames and pixels of the input.
`fixed_no_stride`: the same with neighbouring tokens 1 frame and 1 pixel apart.
`learned`: one vector per token. `none`: zeros. A gain scales the fixed ones, or adds
them to learned ones: positions of pretrained ViTs are some 0.01 large, sines are 1.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.tubes import Tube, tubes_for

TAU = 10_000.0


def sincos(centres: np.ndarray, width: int) -> np.ndarray:
    """Returns sines and cosines of the tokens' centres.

    Channels 6j .. 6j+5 are sin and cos of t, x and y times omega_j, where
    omega_j = TAU ** -(j / (width // 6)). The paper prints TAU**j; only the normalised
    exponent spreads the wavelengths. Channels past 6 * (width // 6) are zero.

    Args:
        centres: (N, 3) in (frames, pixels down, pixels across).
        width: D, channels of a token.

    Returns:
        (N, D) float32.
    """
    n, _ = centres.shape
    bands = width // 6
    omega = TAU ** -(np.arange(bands) / bands)  # (bands,)
    txy = centres[:, [0, 2, 1]]
    angles = omega[None, :, None] * txy[:, None, :]  # (N, bands, 3)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)  # (N, bands, 3, 2)
    embedding = np.zeros((n, width), np.float32)
    embedding[:, : 6 * bands] = waves.reshape(n, 6 * bands)
    return embedding


class PositionsMismatch(TubeViTError, ValueError):
    """Learned positions for another grid of tokens than the clip's."""


def token_centres(
    tubes: Sequence[Tube], clip: Sequence[int], stride: bool = True
) -> np.ndarray:
    """Returns the centres (N, 3) of all tokens of a clip, in the tokens' order.

    Args:
        tubes: Tubes of the model.
        clip: (T, H, W).
        stride: Whether a tube's tokens are its stride apart, or else 1 frame and 1
            pixel.
    """
    return np.concatenate(
        [
            tubes[i].places(clip, tubes[i].stride if stride else (1, 1, 1))
            for i in tubes_for(tubes, clip[0])
        ]
    )


class Positions(nn.Module):
    """Position embeddings that are added to the tokens of a clip.

    Attributes:
        kind: "fixed", "fixed_no_stride", "learned" or "none".
        tubes: Tubes that make the tokens.
        width: D, channels of a token.
        clip: (T, H, W) of learned positions, parameters `tube_<i>` (nt, nh, nw, D). An
            image takes those of the first frame. The other kinds ignore it.
        gain: Initial value of a learned scalar, parameter `gain`, that fixed positions
            are multiplied by; with learned ones, fixed ones times it are added. None:
            no scalar.
    """

    kind: str
    tubes: tuple[Tube, ...]
    width: int
    clip: tuple[int, int, int] | None = None
    gain: float | None = None

    @nn.compact
    def __call__(self, clip):
        """Returns the embeddings (N, D), float32, for a clip of (T, H, W).

        Raises:
            PositionsMismatch: Learned positions are for clips of another size.
        """
        learned = self._learned(clip) if self.kind == "learned" else 0
        if self.kind == "learned" and self.gain is None:
            return learned
        stride = self.kind != "fixed_no_stride"
        centres = token_centres(self.tubes, clip, stride)
        if self.kind == "none":
            return jnp.zeros((len(centres), self.width))
        fixed = jnp.asarray(sincos(centres, self.width))
        if self.gain is None:
            return fixed
        gain = self.param("gain", nn.initializers.constant(self.gain), ())
        return learned + gain * fixed

    def _learned(self, clip):
        normal, embeddings = nn.initializers.normal(0.02), {}
        for i in tubes_for(self.tubes, self.clip[0]):
            shape = (*self.tubes[i].grid(self.clip), self.width)
            embeddings[i] = self.param(f"tube_{i}", normal, shape)
        chosen = []
        for i in tubes_for(self.tubes, clip[0]):
            embedding = embeddings[i][:1] if clip[0] == 1 else embeddings[i]
            grid = self.tubes[i].grid(clip)
            if embedding.shape[:3] != grid:
                raise PositionsMismatch(
                    f"Positions were learned for clips of {self.clip} frames and "
                    f"pixels, where tube {i} has {embedding.shape[:3]} tokens; a clip "
                    f"of {tuple(clip)} has {grid}. Only fixed ones fit any clip."
                )
            chosen.append(embedding.reshape(-1, self.width))
        return jnp.concatenate(chosen)
