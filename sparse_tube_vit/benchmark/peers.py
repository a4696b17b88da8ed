"""Times the model beside others of video, and how time and memory grow with frames."""

from pathlib import Path

from sparse_tube_vit.benchmark import gpu
from sparse_tube_vit.benchmark.gpu_process import Job
from sparse_tube_vit.config.flags import positive
from sparse_tube_vit.models.variants import VARIANTS

#: Frames of a clip that an implementation is made for; those of `--frames` come too.
#: "pytorch" is our model, "dense" our encoder with the tokens of ViViT.
OWN_FRAMES = {"ours": 32, "pytorch": 32, "dense": 32, "vivit": 32}
OWN_FRAMES |= {"videomae": 16, "timesformer": 8}


def add_arguments(command) -> None:
    """Adds the arguments of `benchmark peers` to its parser."""
    add = command.add_argument
    add("--variant", choices=VARIANTS, default="B")
    add("--frames", type=positive, default=32, help="of the comparison")
    add("--growth", nargs="+", type=positive, default=[20, 32, 64, 96, 128])
    add("--size", type=positive, default=224, help="pixels")
    add("--batch", type=positive, default=1, help="clips")
    add("--dtype", choices=("bfloat16", "float32"), default="float32")
    add("--compiled", action="store_true", help="PyTorch's by torch.compile")
    add("--implementations", nargs="+", choices=OWN_FRAMES, default=[*OWN_FRAMES])
    add("--minutes", type=float, default=60.0, help="for all of it")
    add("--seconds", type=float, default=10.0, help="a row is measured")
    add("--rounds", type=positive, default=2, help="at most, as time allows")
    add("--out", type=Path, default=Path("runs/peers"), help="folder")
    add("--cache", type=Path, default=Path("build/gpu_benchmark"), help="of programs")
    command.set_defaults(since=None, peak=None, largest=0)


def plan(args) -> list[Job]:
    """Returns the jobs: all at the same frames, at their own, then growth, forward."""

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
            compiled=args.compiled,
            seconds=args.seconds,
        )

    names = args.implementations
    both = ("forward", "train")
    same = [job(name, args.frames, way) for way in both for name in names]
    own = [job(name, OWN_FRAMES[name], way) for way in both for name in names]
    grown = [
        job(name, frames, "forward")
        for frames in args.growth
        for name in gpu.OURS
        if name in names
    ]
    return [*{job.name: job for job in [*same, *own, *grown]}.values()]


def time_peers(args) -> None:
    """Prints a table, writes results.json, table.md and growth.png to `args.out`.

    Raises:
        NoGpu, NothingMeasured: As `gpu.measure`.
    """
    results = gpu.measure(plan(args), args, compared)
    draw_growth(results.rows, args.out / "growth.png")


def compared(rows: list[dict]) -> str:
    """Returns rows as a table in Markdown, each in proportion to ours.

    Ours is that of the same pass and as many frames, or else of its own.
    """
    own = OWN_FRAMES["ours"]
    ours = {
        (row["direction"], row["clip"][0]): row["step_seconds"] / row["batch"]
        for row in rows
        if row["implementation"] == "ours"
    }
    lines = [
        "| pass | by | clip | ms a clip | GFLOP a clip | GFLOP/s | times ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds, frames = row["step_seconds"] / row["batch"], row["clip"][0]
        same = ours.get((row["direction"], frames), ours.get((row["direction"], own)))
        cells = (
            row["direction"],
            row["implementation"],
            "x".join(map(str, row["clip"])),
            f"{1e3 * seconds:.0f}",
            f"{row['flops'] / row['batch'] / 1e9:.0f}",
            f"{row['flops_per_second'] / 1e9:.0f}",
            f"{seconds / same:.1f}" if same else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_growth(rows: list[dict], file) -> None:
    """Draws time and memory of forward passes against the frames of a clip, as PNG."""
    # Imported here: a machine that runs `benchmark gpu` need not have matplotlib.
    from sparse_tube_vit.figures.canvas import add_legend, new_figure, save

    figure = new_figure(9, 3.6)
    measures = {
        "Seconds a clip": lambda row: row["step_seconds"] / row["batch"],
        "GiB that a pass needs": lambda row: (
            row["memory_bytes"] and row["memory_bytes"] / gpu.GIB
        ),
    }
    names = {"ours": "sparse tubes", "dense": "dense tubes of 2x16x16"}
    for ax, (label, value) in zip(figure.subplots(1, 2), measures.items(), strict=True):
        for name, shown in names.items():
            points = sorted(
                (row["clip"][0], value(row))
                for row in rows
                if row["implementation"] == name
                and row["direction"] == "forward"
                and value(row) is not None
            )
            if points:
                ax.plot(*zip(*points, strict=True), "o-", label=shown)
        ax.set(xlabel="Frames of a clip", ylabel=label, ylim=(0, None))
        add_legend(ax)
    save(figure, file)
