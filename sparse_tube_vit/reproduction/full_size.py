"""Commands of the tables' rows at full size, with predicted chip-hours."""

from collections.abc import Iterator, Mapping, Sequence

from sparse_tube_vit.distributed.devices import ACCELERATORS
from sparse_tube_vit.models.flops import step_flops
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.reproduction.runs import Run
from sparse_tube_vit.reproduction.tables import PAPER, TABLES, Row

TASK = "kinetics600"

#: Fraction of the peak that chip-hours are predicted with: preflight's prediction for
#: B and L on v5e is 33 to 42% (docs/measurements.md).
MFU = 0.35

#: Parameters are split over 16 of the chips, as docs/pods.md advises.
MESH = "--config.mesh.fsdp=16"

_CLASSES = {"kinetics600": 600, "imagenet2012": 1000}

_PREPARE = """\
# Once: the data sets.
sparse-tube-vit prepare kinetics600 --videos VIDEOS --annotations LISTS \\
    --data_dir gs://BUCKET/data --transcode short_side=256,gop=30,crf=23
sparse-tube-vit prepare imagenet2012 --images ILSVRC/Data/CLS-LOC \\
    --data_dir gs://BUCKET/data
# Once: a TPU, after it was seen that a step fits.
sparse-tube-vit preflight --config configs/reproduction.py:table={table},row={row} \\
    --topology v5e:8x8 {mesh}
./launch/tpu_vm.sh queue NAME --accelerator_type v5litepod-64 --wait \\
    --config configs/reproduction.py:table={table},row={row} --no_preflight
./launch/tpu_vm.sh setup NAME"""


def commands(rows: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Yields lines of commands for rows of tables, and what they take.

    Rows that train the same are one run; it comes before those that start from it.

    Args:
        rows: Rows by the number of their table.
    """
    runs = {}
    for table, chosen in rows.items():
        if table not in PAPER:
            yield f"# Table {table} has no full size: it is a few minutes of a GPU."
            continue
        for row in chosen:
            run = Run.of(table, row, TASK, 0)
            for needed in filter(None, (run.after, run)):
                runs.setdefault(needed.name, needed)
    for i, run in enumerate(runs.values()):
        if not i:
            yield _PREPARE.format(table=run.table, row=run.row.name, mesh=MESH)
        yield ""
        yield from _of(run)


def _of(run):
    hours = training_flops(run) / 3600 / MFU
    v5e, h200 = (ACCELERATORS[name].peak_flops for name in ("v5e", "H200"))
    what = f"{run.table}, row {run.row.name}: {run.config.total_steps:,} steps"
    yield (
        f"# Table {what}, {hours / v5e:,.0f} chip-hours of v5e, or "
        f"{hours / h200:,.0f} hours of an H200, at {MFU:.0%} of their peak."
    )
    weights = ""
    if run.after and run.row.big:
        weights = f"gs://BUCKET/{run.name}_created"
        yield (
            f"sparse-tube-vit scale_up --small gs://BUCKET/{run.after.name} "
            f"--big vit_{TABLES[run.table].big.lower()}.npz "
            f"--variant {TABLES[run.table].big} --workdir {weights}"
        )
    elif run.after:
        weights = f"gs://BUCKET/{run.after.name}"
    elif run.row.big:
        weights = "gs://BUCKET/vit_b.npz"
    config = f"configs/reproduction.py:table={run.table},row={run.row.name}"
    given = [f"--workdir gs://BUCKET/{run.name}", "--config.data_dir=gs://BUCKET/data"]
    given += [MESH]
    given += [f"--config.init.weights={weights}"] if weights else []
    lines = " \\\n    ".join(given)
    yield f"./launch/tpu_vm.sh run NAME --config {config} \\\n    {lines}"


def training_flops(run: Run) -> int:
    """Returns the FLOPs of a run's training, by formula.

    Args:
        run: A run at full size.
    """
    config = run.config
    classes = {s.head: _CLASSES[s.dataset] for s in config.streams.values()}
    step = step_flops(config, make_model(config, classes), heads_alone=False)
    alone = step_flops(config, make_model(config, classes), heads_alone=True)
    heads = config.optimizer.head_steps
    return heads * alone + (config.total_steps - heads) * step
