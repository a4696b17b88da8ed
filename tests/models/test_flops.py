import pytest

from sparse_tube_vit.config import EncoderOptions
from sparse_tube_vit.models.flops import compiled_flops, forward_flops
from sparse_tube_vit.models.tubevit import TubeViT
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS


@pytest.mark.parametrize(
    "variant, clip, pooling",
    [
        ("Ti", (32, 224, 224), "attention"),
        ("B", (1, 224, 224), "class_token"),
        ("H", (64, 224, 224), "mean"),
    ],
)
def test_the_formula_is_within_3_percent_of_what_the_compiler_counts(
    variant, clip, pooling
):
    model = TubeViT(
        tubes=TUBE_SETS["main"],
        classes={"kinetics": 400},
        pooling=pooling,
        options=EncoderOptions(**VARIANTS[variant]),
    )
    formula = sum(forward_flops(model, clip, "kinetics").values())
    assert compiled_flops(model, clip, "kinetics") == pytest.approx(formula, rel=0.03)
