"""Speed of training and inference on one GPU, beside PyTorch's, in one run."""

import itertools

from sparse_tube_vit.benchmark import measuring
from sparse_tube_vit.benchmark.measuring import GIB
from sparse_tube_vit.benchmark.process import Job
from sparse_tube_vit.config.flags import positive
from sparse_tube_vit.models.variants import VARIANTS

#: Implementations that are measured.
MEASURED = ("ours", "pytorch", "videomae", "timm")


def add_arguments(command) -> None:
    """Adds the arguments of `benchmark gpu` to its parser."""
    measuring.add_arguments(
        command,
        MEASURED,
        "runs/gpu_benchmark",
        dtype="bfloat16",
        compile=True,
        minutes=8.0,
        seconds=3.0,
        rounds=3,
    )
    add = command.add_argument
    add("--variants", nargs="+", choices=VARIANTS, default=["B", "L"])
    add("--frames", nargs="+", type=positive, default=[32, 64])
    add("--streams", nargs="+", choices=("video", "joint"), default=["video", "joint"])
    add("--small", type=positive, default=8, help="clips of the small batch")
    add(
        "--largest",
        type=int,
        help="clips of the large batch; what fits into memory if not given, 0: none",
    )
    add("--scan", action="store_true", help="ours: blocks in a loop")
    add("--remat", choices=("none", "dots", "full"), default="none", help="ours")
    add("--attention", default="auto", help="ours, as config.model.attention")
    add("--trace", action="store_true", help="writes traces of every row to OUT/traces")


def plan(args) -> list[Job]:
    """Returns the jobs, the most important first.

    Frames and streams that both differ come before the other pairs: 32 frames of videos
    alone, then 64 jointly.
    """
    options = {"scan": args.scan, "remat": args.remat, "attention": args.attention}

    def jobs(direction, variant, frames, streams, implementations):
        for implementation in implementations:
            if implementation in args.implementations:
                yield Job(
                    implementation=implementation,
                    variant=variant,
                    frames=frames,
                    size=args.size,
                    streams=streams,
                    direction=direction,
                    small=args.small,
                    largest=args.largest,
                    dtype=args.dtype,
                    options=options,
                    compiled=args.compile,
                    seconds=args.seconds,
                    trace=str(args.out / "traces") if args.trace else "",
                )

    both = ("ours", "pytorch")
    inputs = [
        (frames, streams)
        for (i, frames), (j, streams) in sorted(
            itertools.product(enumerate(args.frames), enumerate(args.streams)),
            key=lambda pair: abs(pair[0][0] - pair[1][0]),
        )
    ]
    models = [(*each, variant) for each in inputs for variant in args.variants]
    train = [jobs("train", v, t, streams, both) for t, streams, v in models]
    forward = [
        jobs("forward", v, t, "video", both) for t in args.frames for v in args.variants
    ]
    # What a user would take instead, of the first variant: VideoMAE at its own 16
    # frames and at ours, timm's on every frame.
    first, frames = args.variants[0], args.frames[0]
    others = dict.fromkeys([(16, "videomae"), (frames, "timm"), (frames, "videomae")])
    peers = [
        jobs(direction, first, t, "video", [name])
        for direction in ("train", "forward")
        for t, name in others
    ]
    some = len(args.variants) + 1
    order = [*train[:some], forward[0], *peers[:2], *train[some:], *forward[1:]]
    return [*itertools.chain.from_iterable([*order, *peers[2:]])]


_HEADS = [
    *("pass", "model", "clip", "streams", "batch", "by", "ms", "clips/s", "TFLOP/s"),
    *("MFU", "GiB", "to PyTorch"),
]


def cells(rows: list[dict]) -> list[list[str]]:
    """Returns the cells of the table: rows, with ours in proportion to PyTorch's."""
    pytorch = {
        _shape(row): row["clips_per_second"]
        for row in rows
        if row["implementation"] == "pytorch"
    }
    lines = [_HEADS]
    for row in rows:
        beside = pytorch.get(_shape(row)) if row["implementation"] == "ours" else None
        memory, mfu = row["memory_bytes"], row["mfu"]
        lines.append(
            [
                row["direction"],
                row["variant"],
                "x".join(map(str, row["clip"])),
                row["streams"],
                str(row["batch"]),
                row["implementation"],
                f"{1e3 * row['step_seconds']:.2f}",
                f"{row['clips_per_second']:.1f}",
                f"{row['flops_per_second'] / 1e12:.3g}",
                f"{mfu:.1%}" if mfu else "",
                f"{memory / GIB:.2f}" if memory else "",
                f"{row['clips_per_second'] / beside:.2f}" if beside else "",
            ]
        )
    return lines


def _shape(row):
    names = ("direction", "variant", "clip", "streams", "batch")
    return tuple(str(row[name]) for name in names)


def time_gpu(args) -> None:
    """Measures the jobs of `plan`, as `measuring.measure_jobs`.

    Raises:
        NoGpu, NothingMeasured, UnwritableOutput: As there.
    """
    results = measuring.Results(args.out / "results.json", args.peak)
    measuring.measure_jobs(plan(args), args, results, cells, _closing)


def _closing(results):
    if any(device["platform"] == "cpu" for device in results.devices.values()):
        return "This ran on a CPU: it tests the program, and tells nothing of a GPU."
    return ""
