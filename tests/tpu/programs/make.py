"""Compiles the small programs in this folder, of known cost, for TPUs.

    JAX_PLATFORMS=cpu python -m tests.tpu.programs.make

Needs libtpu. What tells where it was compiled, and the code of kernels, is left out.
"""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.distributed.mesh import AXES
from sparse_tube_vit.models.attention import splash
from sparse_tube_vit.tpu.chips import CHIPS, Topology

FOLDER = pathlib.Path(__file__).parent
N = 2048


def main():
    flops = {}

    def save(name, topology, function, *shapes, axes=None, specs=None, slices=1):
        devices = np.array(Topology.parse(topology, slices).devices())
        axes = axes or {"data": 1}
        devices = devices[: np.prod(list(axes.values()))].reshape(list(axes.values()))
        mesh = Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
        specs = specs or [P()] * (len(shapes) + 1)
        arguments = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
            for (shape, dtype), spec in zip(shapes, specs, strict=False)
        ]
        with jax.set_mesh(mesh):
            step = jax.jit(function, out_shardings=NamedSharding(mesh, specs[-1]))
            compiled = step.lower(*arguments).compile()
        text = compiled.as_text()
        # The tables of files and functions stand before the first computation.
        head, _, body = text.partition("\n\nFileNames")
        body = body[re.search(r"\n\n\n?(?=%|ENTRY)", body).start() :]
        text = re.sub(r'"body":"[^"]*"', '"body":""', head + body)
        (FOLDER / f"{name}.hlo").write_text(text)
        flops[name] = int(compiled.cost_analysis()["flops"])

    def square(n=N):
        return (n, n), jnp.bfloat16

    def layers(x, kernels):
        return jax.lax.scan(lambda x, k: (x @ k, None), x, kernels)[0]

    for chip, topology in {
        "v4": "v4:2x2x1",
        "v5e": "v5e:2x2",
        "v5p": "v5p:2x2x1",
        "v6e": "v6e:2x2",
    }.items():
        assert chip in CHIPS
        save(f"product_{chip}", topology, jnp.matmul, square(2 * N), square(2 * N))
    stack = ((24, N, N), jnp.bfloat16)
    save("loop", "v5e:2x2", layers, square(), stack)

    def three_times(x, kernels):
        return jax.lax.fori_loop(2, 8, lambda i, x: layers(x, kernels), x)

    save("nested_loops", "v5e:2x2", three_times, square(), stack)

    def data_tells(n, x):
        return jax.lax.fori_loop(0, n, lambda i, x: x @ x, x)

    save("unknown_loop", "v5e:2x2", data_tells, ((), jnp.int32), square())

    def branches(which, x):
        return jax.lax.cond(which, lambda x: x @ x, lambda x: x @ (x @ x), x)

    save("branches", "v5e:2x2", branches, ((), jnp.bool), square())

    heads = ((8, 196, 12, 64), jnp.bfloat16)

    def scores(q, k):
        return jnp.einsum("bmhd,bnhd->bhmn", q, k)

    save("batched_product", "v5e:2x2", scores, heads, heads)

    def patches(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (16, 16),
            [(-8, 4), (-8, 4)],
            rhs_dilation=(2, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    images, kernel = ((8, 64, 64, 64), (5, 8, 64, 128))
    save(
        "convolution",
        "v5e:2x2",
        patches,
        (images, jnp.bfloat16),
        (kernel, jnp.bfloat16),
    )

    def loss(kernels, x):
        def layer(x, kernel):
            y = jax.lax.with_sharding_constraint(x @ kernel, P(("data", "fsdp")))
            return jnp.tanh(y), None

        return jax.lax.scan(layer, x, kernels)[0].astype(jnp.float32).sum()

    save(
        "sharded",
        "v5e:2x4",
        jax.grad(loss),
        stack,
        ((8 * N, N), jnp.bfloat16),
        axes={"data": 2, "fsdp": 4, "tensor": 1},
        specs=[P(None, "fsdp"), P(("data", "fsdp")), P(None, "fsdp")],
    )
    save(
        "slices",
        "v5e:2x2",
        jax.grad(loss),
        stack,
        ((8 * N, N), jnp.bfloat16),
        axes={"data": 2, "fsdp": 4, "tensor": 1},
        slices=2,
        specs=[P(None, "fsdp"), P(("data", "fsdp")), P(None, "fsdp")],
    )

    def attend(q, k, v):
        return splash(q, k, v).sum()

    heads = (4, 256, 2, 64), jnp.bfloat16
    save(
        "attention_kernel",
        "v5e:2x2",
        jax.grad(attend, (0, 1, 2)),
        *[heads] * 3,
        axes=dict.fromkeys(AXES, 1),
    )
    (FOLDER / "flops.json").write_text(json.dumps(flops, indent=1) + "\n")


if __name__ == "__main__":
    main()
