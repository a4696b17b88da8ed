"""The model in PyTorch, to time it beside ours: the same tubes, encoder and pooling.

Written as PyTorch's users would: one product for queries, keys and values, and
`scaled_dot_product_attention`. Needs torch, which is no dependency of the package.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from sparse_tube_vit.models.positions import sincos, token_centres
from sparse_tube_vit.models.tubes import Tube, tubes_for

NORM_EPSILON = 1e-6


def normalize(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Maps uint8 in 0..255 to [-1, 1]."""
    return x.to(dtype) / 127.5 - 1


def cut_windows(x: torch.Tensor, tube: Tube) -> torch.Tensor:
    """Extracts a tube's windows from clips.

    Args:
        x: Clips (B, T, H, W, C).
        tube: The tube.

    Returns:
        (B, N, windows per token, kt * kh * kw * C), in the order of
        `models.tubes.cut_windows`.
    """
    b, *clip, c = x.shape
    grid, past = tube.grid(clip), tube.past(clip)
    if any(past):
        x = F.pad(x, (0, 0, 0, past[2], 0, past[1], 0, past[0]))
    for axis in range(3):
        kernel, step = tube.kernel[axis], tube.window_stride[axis]
        windows = grid[axis] * tube.space_to_depth[axis]
        x = x.narrow(axis + 1, tube.offset[axis], (windows - 1) * step + kernel)
        x = x.unfold(axis + 1, kernel, step)  # the windows' pixels come last
    (nt, nh, nw), (ft, fh, fw) = grid, tube.space_to_depth
    x = x.reshape(b, nt, ft, nh, fh, nw, fw, c, *tube.kernel)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 8, 9, 10, 7)
    return x.reshape(b, nt * nh * nw, ft * fh * fw, -1)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind())  # (B, heads, N, d)
        return self.out(y.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """x + MSA(LN x), then x + MLP(LN x)."""

    def __init__(self, width: int, mlp_dim: int, heads: int):
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, NORM_EPSILON)
        self.attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width, NORM_EPSILON)
        self.up = nn.Linear(width, mlp_dim)
        self.down = nn.Linear(mlp_dim, width)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class AttentionPooling(nn.Module):
    """Attention of a learned probe to all tokens: (B, N, D) to (B, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.query = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, n, d = x.shape
        query = self.query(self.probe).view(1, 1, self.heads, -1).transpose(1, 2)
        kv = self.kv(x).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        query = query.expand(b, -1, -1, -1)
        y = F.scaled_dot_product_attention(query, *kv.unbind())
        return self.out(y.transpose(1, 2).reshape(b, d))


class TubeViT(nn.Module):
    """TubeViT with fixed positions, separate kernels and attention pooling.

    Args:
        tubes: Tubes that make the tokens.
        classes: Number of outputs of every head, by the head's name.
        sizes: depth, width, mlp_dim and heads, an entry of `VARIANTS`.
        clips: (T, H, W) of all inputs that the model will have.
    """

    def __init__(
        self,
        tubes: Sequence[Tube],
        classes: Mapping[str, int],
        sizes: Mapping[str, int],
        clips: Sequence[tuple[int, int, int]],
    ):
        super().__init__()
        width = sizes["width"]
        self.tubes, self.width = tubes, width
        self.stem = nn.ModuleList(
            nn.Linear(3 * math.prod(tube.kernel), tube.kernel_channels(width))
            for tube in tubes
        )
        for clip in clips:
            positions = torch.from_numpy(sincos(token_centres(tubes, clip), width))
            self.register_buffer(_name(clip), positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, sizes["mlp_dim"], sizes["heads"])
            for _ in range(sizes["depth"])
        )
        self.norm = nn.LayerNorm(width, NORM_EPSILON)
        self.pooling = AttentionPooling(width, sizes["heads"])
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, outputs) for name, outputs in classes.items()}
        )

    def forward(
        self, x: torch.Tensor, head: str, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Computes logits (B, classes[head]), float32.

        Args:
            x: Clips (B, T, H, W, 3), uint8.
            head: Name of the head.
            dtype: Dtype of normalized pixels and tokens; products have that of
                autocast.
        """
        clip, tokens = tuple(x.shape[1:4]), []
        for i in tubes_for(self.tubes, clip[0]):
            tube = self.tubes[i]
            if any(tube.past(clip)):  # padding is mid-grey, which uint8 lacks
                windows = cut_windows(normalize(x, dtype), tube)
            else:
                windows = normalize(cut_windows(x, tube), dtype)
            tokens.append(self.stem[i](windows).flatten(2)[..., : self.width])
        z = (torch.cat(tokens, 1) + getattr(self, _name(clip))).to(dtype)
        for block in self.blocks:
            z = block(z)
        pooled = self.pooling(self.norm(z)).float()
        with torch.autocast(x.device.type, enabled=False):
            return self.heads[head](pooled)


def _name(clip):
    return "positions_" + "x".join(map(str, clip))
