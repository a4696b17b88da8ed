"""Fixed position embedding from the centres of tubes (paper 3.3, eqs. 3-7)."""

import numpy as np

TAU = 10_000.0


def sincos(centres: np.ndarray, width: int) -> np.ndarray:
    """Sines and cosines of the place that every token comes from.

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
