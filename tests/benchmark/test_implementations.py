"""FLOPs of other models, counted by hand; test_torch_tubevit.py has PyTorch count."""

import pytest

from sparse_tube_vit.benchmark.implementations import IMPLEMENTATIONS

SIZES = {"depth": 3, "width": 8, "mlp_dim": 20, "heads": 2}


def encoder(tokens):
    """Products of three blocks: projections, scores, weighted sums, MLP."""
    dense = tokens * (8 * 8 * 4 + 8 * 20 * 2)
    return 3 * (dense + 2 * tokens * tokens * 8)


#: 24 frames of 4x4 patches of 16x16x3.
STEM = 24 * 16 * 768 * 8
MULTIPLY_ADDS = {
    "videomae": STEM + encoder(12 * 16),
    "vivit": STEM + encoder(12 * 16 + 1),
    "timm": STEM + 24 * encoder(17),
    "timesformer": STEM
    + 3 * 16 * (24 * 8 * 8 * (4 + 1) + 2 * 24 * 24 * 8)  # over time
    + 3 * 24 * (17 * 8 * 8 * 4 + 2 * 17 * 17 * 8)  # in frames of patches and a class
    + 3 * (24 * 16 + 1) * 8 * 20 * 2,
    # 2 x 2x2, 2 x 2x2, 2 x 2x2 and 2 x 4x4 windows.
    "port": 8 * 3 * (8 * 512 + 8 * 192 + 8 * 576 + 32 * 256) + encoder(57) + 57 * 8,
}


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_flops_are_two_a_multiply_add(name):
    flops = IMPLEMENTATIONS[name].forward_flops(SIZES, 24, 16)
    assert flops == 2 * MULTIPLY_ADDS[name]


def test_every_other_model_is_counted():
    others = {name for name, x in IMPLEMENTATIONS.items() if not x.tubes}
    assert others == {*MULTIPLY_ADDS}
