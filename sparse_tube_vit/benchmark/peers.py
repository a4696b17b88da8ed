"""Times the model beside others of video, and how time and memory grow with frames."""

import math

from sparse_tube_vit.benchmark import measuring
from sparse_tube_vit.benchmark.implementations import IMPLEMENTATIONS
from sparse_tube_vit.benchmark.measuring import GIB
from sparse_tube_vit.benchmark.process import Job
from sparse_tube_vit.config.flags import positive
from sparse_tube_vit.models.variants import VARIANTS

#: Implementations that are measured.
MEASURED = ("ours", "pytorch", "port", "vivit", "videomae", "timesformer", "dense")

#: How the two that grow are drawn.
GROWING = {"ours": "sparse tubes", "dense": "dense tubes of 2x16x16"}


def add_arguments(command) -> None:
    """Adds the arguments of `benchmark peers` to its parser."""
    measuring.add_arguments(
        command,
        MEASURED,
        "runs/peers",
        dtype="float32",
        compile=False,
        minutes=60.0,
        seconds=10.0,
        rounds=2,
    )
    add = command.add_argument
    add("--variant", choices=VARIANTS, default="B")
    add("--frames", type=positive, default=32, help="of the comparison")
    add("--growth", nargs="+", type=positive, default=[20, 32, 64, 96, 128])
    add("--batch", type=positive, default=1, help="clips")
    command.set_defaults(largest=0)


def plan(args) -> list[Job]:
    """Returns the jobs: all at the same frames, growth, then others at their own.

    Dense tubes, which are there for their growth, go forward alone.
    """

    def job(implementation, frames, direction):
        return Job(
            implementation=implementation,
            variant=args.variant,
            frames=frames,
            size=args.size,
            streams="video",
            direction=direction,
            small=args.batch,
            largest=0,
            dtype=args.dtype,
            options={},
            compiled=args.compile,
            seconds=args.seconds,
        )

    names = args.implementations
    trained = [name for name in names if name != "dense"]
    forward = [job(name, args.frames, "forward") for name in names]
    train = [job(name, args.frames, "train") for name in trained]
    grown = [
        job(name, frames, "forward")
        for frames in args.growth
        for name in GROWING
        if name in names
    ]
    own = [
        job(name, IMPLEMENTATIONS[name].frames, direction)
        for direction in ("forward", "train")
        for name in trained
    ]
    return [*{job.name: job for job in [*forward, *train, *grown, *own]}.values()]


def time_peers(args) -> None:
    """Measures the jobs of `plan`, and draws growth.png beside the results.

    Raises:
        NoGpu, NothingMeasured, UnwritableOutput: As `measuring.measure_jobs`.
    """
    # Imported here: a machine that runs `benchmark gpu` need not have matplotlib.
    from sparse_tube_vit.figures import canvas

    results = measuring.Results(args.out / "results.json", args.peak)
    try:
        measuring.measure_jobs(plan(args), args, results, cells)
    finally:
        if figure := draw_growth(results.rows):
            canvas.save(figure, args.out / "growth.png")


def cells(rows: list[dict]) -> list[list[str]]:
    """Returns the cells of the table: rows, each in proportion to ours.

    Ours is that of the same pass and as many frames. Beside others at their own frames
    it is that of the frames that ours is made for, which the cell says.
    """
    own = IMPLEMENTATIONS["ours"].frames
    ours = {
        (row["direction"], row["clip"][0]): row["step_seconds"] / row["batch"]
        for row in rows
        if row["implementation"] == "ours"
    }
    heads = "pass, by, clip, ms a clip, range, GFLOP a clip, GFLOP/s, GiB, times ours"
    lines = [heads.split(", ")]
    for row in rows:
        seconds, frames = row["step_seconds"] / row["batch"], row["clip"][0]
        times = ""
        if same := ours.get((row["direction"], frames)):
            times = f"{seconds / same:.1f}"
        elif frames == IMPLEMENTATIONS[row["implementation"]].frames and (
            same := ours.get((row["direction"], own))
        ):
            times = f"{seconds / same:.1f} of {own} frames"
        least = min(each["least_seconds"] for each in row["rounds"]) / row["batch"]
        most = max(each["greatest_seconds"] for each in row["rounds"]) / row["batch"]
        lines.append(
            [
                row["direction"],
                row["implementation"],
                "x".join(map(str, row["clip"])),
                f"{1e3 * seconds:.0f}",
                f"{1e3 * least:.0f} to {1e3 * most:.0f}",
                f"{row['flops'] / row['batch'] / 1e9:.0f}",
                f"{row['flops_per_second'] / 1e9:.0f}",
                f"{row['memory_bytes'] / GIB:.2f}" if row["memory_bytes"] else "",
                times,
            ]
        )
    return lines


def draw_growth(rows: list[dict]):
    """Draws time and memory of forward passes against the frames of a clip.

    Args:
        rows: Rows of `measuring.Results`.

    Returns:
        The figure, None where no implementation of `GROWING` has two points.
    """
    from sparse_tube_vit.figures import canvas

    grown = {
        name: sorted(
            (row for row in rows if _grows(row, name)), key=lambda row: row["clip"]
        )
        for name in GROWING
    }
    grown = {name: points for name, points in grown.items() if len(points) > 1}
    if not grown:
        return None
    measures = {
        "Seconds a clip": lambda row: row["step_seconds"] / row["batch"],
        "GiB": lambda row: (row["memory_bytes"] or math.nan) / GIB,
    }
    rows = [row for points in grown.values() for row in points]
    if not any(row["memory_bytes"] for row in rows):
        del measures["GiB"]
    figure = canvas.new_figure(4.5 * len(measures), 3.6)
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for ax, (label, value) in zip(axes, measures.items(), strict=True):
        for name, points in grown.items():
            frames = [row["clip"][0] for row in points]
            ax.plot(frames, [*map(value, points)], "o-", label=GROWING[name])
        ax.set(xlabel="Frames of a clip", ylabel=label)
        ax.set_xticks(sorted({row["clip"][0] for row in rows}))
        canvas.add_legend(ax)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")  # not as powers, which are markup
    for ax in axes[1:]:
        ax.set_ylim(0)
    size = rows[0]["clip"][1]
    figure.suptitle(f"{rows[0]['variant']}, {size}x{size} pixels, a forward pass")
    return figure


def _grows(row, name):
    return row["implementation"] == name and row["direction"] == "forward"
