"""Times the model and the decoding on this machine.

python -m sparse_tube_vit.benchmark model --variant B --frames 32 --size 224
python -m sparse_tube_vit.benchmark decode FILE --frames 32 --stride 2
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable

import av
import jax
import jax.numpy as jnp
import numpy as np

from sparse_tube_vit.errors import reported
from sparse_tube_vit.input.decode import decode
from sparse_tube_vit.input.sampling import random_crop
from sparse_tube_vit.model import TubeViT, init_params
from sparse_tube_vit.training.losses import cross_entropy
from sparse_tube_vit.tubes import count_tokens
from sparse_tube_vit.variants import TUBE_SETS, VARIANTS


def seconds(function: Callable[[], object], runs: int) -> float:
    """Median time of a call in seconds, after one call to warm up."""
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def time_model(args) -> None:
    """Prints the seconds a clip takes, forward, and forward and backward."""
    clip = (args.frames, args.size, args.size)
    tubes = TUBE_SETS[args.tubes]
    model = TubeViT(
        tubes=tubes,
        classes={"head": 400},
        dtype=jnp.dtype(args.dtype),
        **VARIANTS[args.variant],
    )
    params = init_params(model, jax.random.key(0), clip)
    rng = np.random.default_rng(0)
    videos = rng.integers(0, 256, (args.batch, *clip, 3), np.uint8)

    def loss(params, videos):
        logits = model.apply({"params": params}, videos, "head")
        targets = jax.nn.one_hot(jnp.zeros(args.batch, int), 400)
        return cross_entropy(logits, targets, jnp.ones(args.batch))

    passes = {
        "forward": jax.jit(lambda p, x: model.apply({"params": p}, x, "head")),
        "forward and backward": jax.jit(jax.value_and_grad(loss)),
    }
    shape = "x".join(map(str, clip))
    print(
        f"{args.variant}, {shape} ({count_tokens(tubes, clip)} tokens), {args.dtype}, "
        f"batch {args.batch}, {jax.device_count()} {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} CPU cores"
    )
    for name, step in passes.items():
        step = step.lower(params, videos).compile()
        took = seconds(lambda step=step: step(params, videos), args.runs)
        flops = step.cost_analysis()["flops"]
        print(
            f"  {name}: {took / args.batch:.3f} s a clip, "
            f"{flops / took / 1e9:.0f} GFLOP/s ({flops / args.batch / 1e9:.0f} a clip)"
        )


def time_decode(args) -> None:
    """Prints milliseconds to decode and crop a clip, beside decoding alone."""
    with open(args.file, "rb") as file:
        data = file.read()

    def limit():
        """PyAV decodes up to the last frame wanted; nothing is converted."""
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for i, _ in enumerate(container.decode(stream)):
                if i == (args.frames - 1) * args.stride:
                    return

    with av.open(io.BytesIO(data)) as container:
        rate = float(container.streams.video[0].average_rate)
    times = (np.arange(args.frames) * args.stride + 0.5) / rate
    rng = np.random.default_rng(0)

    def ours():
        return decode(
            data,
            lambda duration: times,
            lambda h, w: random_crop(rng, h, w, args.size, (0.3, 1.0)),
        )

    # In turns, so that a change of the machine's speed meets both.
    pairs = [(seconds(limit, 1), seconds(ours, 1)) for _ in range(args.runs)]
    bare, full = (
        1e3 * statistics.median(column) for column in zip(*pairs, strict=True)
    )
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"{args.file}: {args.frames} frames at stride {args.stride}, to {args.size} "
        f"pixels: {full:.1f} ms; decoding alone {bare:.1f} ms; ratio {ratio:.2f}"
    )


def main():
    parser = argparse.ArgumentParser(
        prog="python -m sparse_tube_vit.benchmark",
        description="Times the model or the decoding on this machine.",
    )
    commands = parser.add_subparsers(required=True)
    model = commands.add_parser("model", help="seconds a clip")
    model.add_argument("--variant", choices=VARIANTS, default="B")
    model.add_argument("--tubes", choices=TUBE_SETS, default="main")
    model.add_argument("--frames", type=int, default=32)
    model.add_argument("--size", type=int, default=224, help="pixels")
    model.add_argument("--batch", type=int, default=2, help="clips")
    model.add_argument("--dtype", default="float32")
    model.add_argument("--runs", type=int, default=5)
    model.set_defaults(run=time_model)
    decoding = commands.add_parser("decode", help="milliseconds a clip, on one core")
    decoding.add_argument("file")
    decoding.add_argument("--frames", type=int, default=32)
    decoding.add_argument("--stride", type=int, default=2, help="frames")
    decoding.add_argument("--size", type=int, default=224, help="pixels")
    decoding.add_argument("--runs", type=int, default=15)
    decoding.set_defaults(run=time_decode)
    args = parser.parse_args()
    with reported():
        args.run(args)


if __name__ == "__main__":
    main()
