"""Probabilities over views, against the model applied to each view alone."""

import jax
import numpy as np
import pytest

from sparse_tube_vit.config import EncoderOptions
from sparse_tube_vit.models.scores import make_scores
from sparse_tube_vit.models.tubes import Tube
from sparse_tube_vit.models.tubevit import TubeViT, init_params
from tests.compiled import apply

CLIP = (4, 16, 16)


@pytest.mark.parametrize(
    ("loss", "combine"), [("softmax", "mean"), ("sigmoid", "mean"), ("sigmoid", "max")]
)
def test_scores_are_probabilities_combined_over_views(loss, combine):
    model = TubeViT(
        tubes=(Tube((4, 8, 8), (4, 8, 8)), Tube((1, 8, 8), (4, 8, 8))),
        classes={"video": 5},
        options=EncoderOptions(depth=1, width=12, mlp_dim=16, heads=2),
    )
    params = init_params(model, jax.random.key(1), CLIP)
    kernel = params["head_video"]["kernel"]
    params["head_video"]["kernel"] = jax.random.normal(jax.random.key(2), kernel.shape)
    views = np.random.default_rng(0).integers(0, 256, (2, 3, *CLIP, 3), np.uint8)
    scores = jax.jit(make_scores(model, "video", loss, combine))(params, views)
    expected = getattr(np, combine)(
        [
            getattr(jax.nn, loss)(
                apply(model, {"params": params}, views[:, v], "video")
            )
            for v in range(3)
        ],
        axis=0,
    )
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    if loss == "softmax":
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)
