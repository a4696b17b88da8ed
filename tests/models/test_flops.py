import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_tube_vit.config import EncoderOptions, default_config, stream
from sparse_tube_vit.distributed.sharding import make_mesh
from sparse_tube_vit.models.flops import compiled_flops, forward_flops, step_flops
from sparse_tube_vit.models.tubes import Tube
from sparse_tube_vit.models.tubevit import TubeViT, init_params
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS
from sparse_tube_vit.training.program import Program
from sparse_tube_vit.training.step import make_train_step


@pytest.mark.parametrize(
    "variant, clip, pooling, gated",
    [
        ("Ti", (32, 224, 224), "attention", False),
        ("B", (1, 224, 224), "class_token", False),
        ("H", (64, 224, 224), "mean", False),
        ("Ti", (1, 224, 224), "map", True),
    ],
)
def test_the_formula_is_within_3_percent_of_what_the_compiler_counts(
    variant, clip, pooling, gated
):
    model = TubeViT(
        tubes=TUBE_SETS["main"],
        classes={"kinetics": 400},
        pooling=pooling,
        options=EncoderOptions(**VARIANTS[variant], gated_mlp=gated),
    )
    formula = sum(forward_flops(model, clip, "kinetics").values())
    assert compiled_flops(model, clip, "kinetics") == pytest.approx(formula, rel=0.03)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_compiler_counts_the_same_on_every_host(platform, monkeypatch):
    options = EncoderOptions(depth=1, width=48, mlp_dim=96, heads=3, dtype="bfloat16")
    model = TubeViT(TUBE_SETS["main"], {"kinetics": 400}, options=options)
    expected = compiled_flops(model, (20, 64, 64), "kinetics")
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert compiled_flops(model, (20, 64, 64), "kinetics") == expected


def products(jaxpr):
    """FLOPs of the matrix products that a program computes."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            outputs = math.prod(equation.outvars[0].aval.shape)
            total += 2 * outputs * math.prod(shape[i] for i in contracted)
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        )
        total += sum(products(x.jaxpr) for x in inner if hasattr(x, "jaxpr"))
    return total


def test_small_parts_are_counted_to_the_product():
    """Of them a sum within 3 percent would not tell."""

    def count(classes=5, **changes):
        options = EncoderOptions(depth=1, width=16, mlp_dim=32, heads=2)
        tubes = (Tube((4, 8, 8), (4, 16, 16)), Tube((1, 8, 8), (4, 8, 8)))
        given = {"tubes": tubes, "classes": {"h": classes}, "options": options}
        model = TubeViT(**given | changes)
        clip, key = (8, 32, 32), jax.random.key(0)
        shapes = jax.eval_shape(lambda: init_params(model, key, clip))
        x = jax.ShapeDtypeStruct((1, *clip, 3), jnp.float32)
        apply = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x, "h"))
        formula = sum(forward_flops(model, clip, "h").values())
        return np.array([products(apply(shapes, x).jaxpr), formula])

    base = count()
    for changes in (
        {"classes": 50},
        {"pooling": "map"},
        {"pooling": "mean"},
        {"registers": 3},
    ):
        counted, formula = count(**changes) - base
        assert counted == formula != 0, changes


@pytest.mark.parametrize(
    "trained, heads_alone, new_layers",
    [(None, False, 0), (2, False, 0), (None, True, 0), (None, True, 1)],
)
def test_the_formula_of_a_step_is_within_3_percent_of_its_products(
    trained, heads_alone, new_layers
):
    """In the step itself: all layers, the last two of three, or what is fresh."""
    config = default_config()
    config.total_steps = 100
    config.clip.update(frames=8, size=64)
    config.model.update(depth=3 - new_layers, new_layers=new_layers)
    config.model.update(width=64, mlp_dim=256, heads=4)
    config.model.tubes = (
        {"kernel": (4, 8, 8), "stride": (4, 16, 16)},
        {"kernel": (1, 16, 16), "stride": (8, 16, 16)},
    )
    config.optimizer.update(warmup_steps=10, head_steps=10, trained_layers=trained)
    for kind in ("video", "image"):
        source = {"kind": kind, "dataset": kind, "head": kind, "batch_size": 8}
        config.streams[kind] = stream(**source)
    program = Program(config, {"video": 10, "image": 20}, make_mesh(config))
    step = make_train_step(program.model, program.optimizer, config, heads_alone)
    with jax.set_mesh(program.mesh):
        jaxpr = jax.make_jaxpr(step)(program.state, program.batches).jaxpr
    formula = step_flops(config, program.model, heads_alone)
    assert formula == pytest.approx(products(jaxpr), rel=0.03)
