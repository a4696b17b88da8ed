"""Times the model, its training and the decoding on this machine.

python -m sparse_tube_vit.benchmark model --variant B --frames 32 --size 224
python -m sparse_tube_vit.benchmark scale_up --small Ti --big S
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

from sparse_tube_vit.config import default_config, stream, validate
from sparse_tube_vit.describe import flops
from sparse_tube_vit.errors import reported
from sparse_tube_vit.input.decode import decode
from sparse_tube_vit.input.sampling import random_crop
from sparse_tube_vit.model import TubeViT, init_params
from sparse_tube_vit.scaling import scale_config
from sparse_tube_vit.training.losses import cross_entropy
from sparse_tube_vit.training.optimizer import make_optimizer
from sparse_tube_vit.training.state import TrainState
from sparse_tube_vit.training.step import make_train_step
from sparse_tube_vit.tubes import Tube, count_tokens
from sparse_tube_vit.variants import TUBE_SETS, VARIANTS, make_model


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
    videos = jax.device_put(rng.integers(0, 256, (args.batch, *clip, 3), np.uint8))

    def loss(params, videos):
        logits = model.apply({"params": params}, videos, "head")
        targets = jax.nn.one_hot(jnp.zeros(args.batch, int), 400)
        return cross_entropy(logits, targets, jnp.ones(args.batch))

    passes = {
        "forward": (1, jax.jit(lambda p, x: model.apply({"params": p}, x, "head"))),
        "forward and backward": (3, jax.jit(jax.value_and_grad(loss))),
    }
    shape = "x".join(map(str, clip))
    print(
        f"{args.variant}, {shape} ({count_tokens(tubes, clip)} tokens), {args.dtype}, "
        f"batch {args.batch}, {jax.device_count()} {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} CPU cores"
    )
    for name, (factor, step) in passes.items():
        took = seconds(lambda step=step: step(params, videos), args.runs) / args.batch
        # By formula: XLA does not count what it leaves to the libraries of GPUs.
        gflop = sum(flops(model, clip, "head").values()) * factor / 1e9
        print(
            f"  {name}: {1e3 * took:.2f} ms a clip, {gflop / took:.0f} GFLOP/s "
            f"({gflop:.0f} a clip)"
        )


def time_scale_up(args) -> None:
    """Prints what a step takes that trains the last layers, and one that trains all.

    Of the model that scaling up creates (paper 3.6), on one stream of videos.
    """
    config = default_config()
    config.total_steps = 100_000
    config.clip.update(frames=args.frames, size=args.size)
    config.model.update(**VARIANTS[args.small], tubes=args.tubes, dtype=args.dtype)
    config.streams.video = stream(
        kind="video", dataset="", head="head", batch_size=args.batch
    )
    side = 14 if args.big == "H" else 16  # H's image ViTs have patches of 14x14
    patches = Tube(kernel=(1, side, side), stride=(1, side, side))
    scale_config(config, VARIANTS[args.big], patches, args.frozen_layers)
    validate(config)
    frozen = config.optimizer.frozen_layers
    model = make_model(config, {"head": 400})
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (args.batch, *model.clip, 3), np.uint8),
        "label": np.zeros(args.batch, np.int32),
        "weight": np.ones(args.batch, np.float32),
    }

    def make_run(frozen_layers):
        """A function that takes the next step, and the FLOPs of one."""
        config.optimizer.frozen_layers = frozen_layers
        optimizer = make_optimizer(config)
        params = init_params(model, jax.random.key(0), model.clip)
        state = TrainState.create(params, optimizer, config)
        batches = {"video": jax.device_put(batch)}
        step = jax.jit(make_train_step(model, optimizer, config), donate_argnums=0)
        step = step.lower(state, batches).compile()

        def run():
            nonlocal state
            state, metrics = step(state, batches)
            return state, metrics

        return run, step.cost_analysis()["flops"]

    (everything, all_flops), (last, last_flops) = make_run(None), make_run(frozen)
    # In turns, so that a change of the machine's speed meets both.
    pairs = [(seconds(everything, 1), seconds(last, 1)) for _ in range(args.runs)]
    whole, part = (statistics.median(column) for column in zip(*pairs, strict=True))
    saving = 1 - statistics.median(b / a for a, b in pairs)
    shape = "x".join(map(str, model.clip))
    print(
        f"{args.small} to {args.big}, {shape} ({count_tokens(model.tubes, model.clip)} "
        f"tokens), {args.dtype}, batch {args.batch}, {jax.device_count()} "
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores: a step of all "
        f"{model.depth} layers {whole:.3f} s, of the last {model.depth - frozen} and "
        f"the gate {part:.3f} s; saved {saving:.0%} (paper 43%), of FLOPs "
        f"{1 - last_flops / all_flops:.0%}"
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
        description="Times the model, its training or the decoding on this machine.",
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
    scaling = commands.add_parser("scale_up", help="seconds a step, of part and all")
    scaling.add_argument("--small", choices=VARIANTS, default="Ti")
    scaling.add_argument("--big", choices=VARIANTS, default="S")
    scaling.add_argument("--frozen_layers", type=int, help="26 of 32 if not given")
    scaling.add_argument("--tubes", choices=TUBE_SETS, default="main")
    scaling.add_argument("--frames", type=int, default=32)
    scaling.add_argument("--size", type=int, default=224, help="pixels")
    scaling.add_argument("--batch", type=int, default=2, help="clips")
    scaling.add_argument("--dtype", default="float32")
    scaling.add_argument("--runs", type=int, default=5)
    scaling.set_defaults(run=time_scale_up)
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
