"""Commands of the tables' rows at full size, with predicted chip-hours."""

from collections.abc import Iterator, Mapping, Sequence

from sparse_tube_vit.config import ConfigDict, input_size
from sparse_tube_vit.distributed.devices import ACCELERATORS
from sparse_tube_vit.models.tubes import count_tokens
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.reproduction.runs import Run
from sparse_tube_vit.reproduction.tables import TABLES, Row

TASK = "kinetics600"

#: Fraction of the peak that chip-hours are predicted with. For the batches of the paper
#: on 64 chips of v5e, preflight predicts 33% for B, 39% for L, 52% for the last layers
#: of H (docs/measurements.md); an H200 was not measured.
MFU = 0.35

#: Parameters are split over 16 of the chips, as docs/pods.md advises.
MESH = "--config.mesh.fsdp=16"

#: Parts of the batch on 64 chips of v5e, of runs that preflight found not to fit whole,
#: nor in two (docs/measurements.md).
_PARTS = {"5_inflated_3d": 4}

_DATA = """\
# Once: the data sets.
sparse-tube-vit prepare kinetics600 --videos VIDEOS --annotations LISTS \\
    --data_dir gs://BUCKET/data --transcode short_side=256,gop=30,crf=23
sparse-tube-vit prepare imagenet2012 --images ILSVRC/Data/CLS-LOC \\
    --data_dir gs://BUCKET/data
# Once: the image ViTs of tables 6, 8 and 9, as gs://BUCKET/vit_h.npz and vit_b.npz:
# Google's .npz with patches of 14 and 16, as the GELU here is theirs (docs/weights.md).
# Once, without a TPU: whether the steps fit it."""

_TPU = """\
# Once: a TPU. `run` returns at once, and `./launch/tpu_vm.sh logs NAME` shows when the
# next row can begin.
./launch/tpu_vm.sh queue NAME --accelerator_type v5litepod-64 --wait --no_preflight
./launch/tpu_vm.sh setup NAME
# Below is seed 0. Another has seed=1 after its row, and workdirs of its own."""


def commands(rows: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Yields lines of commands for rows of tables, and what they take.

    Rows that train the same are one run; it comes before those that start from it.

    Args:
        rows: Rows by the number of their table.
    """
    runs, rows_of = {}, {}
    for table, chosen in rows.items():
        if not TABLES[table].model:
            yield f"# Table {table} has no full size."
            continue
        for row in chosen:
            run = Run.of(table, row, TASK, 0)
            for needed in filter(None, (run.after, run)):
                runs.setdefault(needed.name, needed)
            rows_of.setdefault(run.name, []).append(f"{table}:{row.name}")
    if not runs:
        return
    yield _DATA
    for run in runs.values():
        lines = " \\\n    ".join(["--topology v5e:8x8", *_on_tpu(run)])
        yield f"sparse-tube-vit preflight {_config(run)} \\\n    {lines}"
    yield _TPU
    created, flops = set(), 0
    for run in runs.values():
        yield ""
        yield from _of(run, rows_of.get(run.name, ["others start from it"]), created)
        flops += run.flops
    yield f"\n# In all, a seed of {len(runs)} runs: {_hours(flops)}."


def _config(run):
    return f"--config configs/reproduction.py:table={run.table},row={run.row.name}"


def _on_tpu(run):
    """Returns the options of a step on 64 chips of v5e."""
    return [MESH, *_accumulate(_PARTS.get(run.name, 1))]


def _accumulate(parts):
    return [f"--config.optimizer.accumulate_steps={parts}"] if parts > 1 else []


def _hours(flops):
    """Returns the chip-hours that training by such FLOPs takes, in words."""
    v5e, h200 = (
        f"{flops / 3600 / MFU / ACCELERATORS[name].peak_flops:,.0f}"
        for name in ("v5e", "H200")
    )
    both = f"{v5e} chip-hours of v5e or, unmeasured, {h200} of an H200"
    return f"{both}, without evaluations"


def _of(run, rows, created):
    steps = f"a seed of {run.config.total_steps:,} steps"
    yield f"# {', '.join(rows)}: {steps}, at {MFU:.0%} MFU"
    yield f"# {_hours(run.flops)}."
    weights = ""
    if run.after and run.row.big:
        big, small = TABLES[run.table].big, run.after.name
        weights = f"gs://BUCKET/{small}_{big}_created"
        if weights not in created:
            created.add(weights)
            yield (
                f"sparse-tube-vit scale_up --small gs://BUCKET/{small} \\\n"
                f"    --big gs://BUCKET/vit_{big.lower()}.npz --variant {big} \\\n"
                f"    --workdir {weights}"
            )
    elif run.after:
        weights = f"gs://BUCKET/{run.after.name}"
    elif run.row.big:
        weights = "gs://BUCKET/vit_b.npz"
    given = [f"--workdir gs://BUCKET/{run.name}", "--config.data_dir=gs://BUCKET/data"]
    given += [f"--config.init.weights={weights}"] if weights else []
    lines = " \\\n    ".join([_config(run), *given, *_on_tpu(run)])
    yield f"./launch/tpu_vm.sh run NAME {lines}"
    given += _accumulate(accumulated(run.config))
    lines = " \\\n#     ".join([f"sparse-tube-vit train {_config(run)}", *given])
    yield f"# On one H200:\n# {lines}"


#: Bytes that a trained layer keeps of a token and channel, by `model.remat`: 0.51 and
#: 0.27 GiB of B, 0.68 of L, of a clip and an image with 1,372 tokens (docs/gpu.md).
_KEPT = {"none": 43, "dots": 23}

#: Of the H200's 139 GiB, beside parameters, their state and what is not counted.
_FOR_LAYERS = 115 * 2**30


def accumulated(config: ConfigDict) -> int:
    """Returns the parts of a batch of which each should fit an H200's memory.

    That is what the trained layers keep for the gradient, as docs/gpu.md measures it.

    Args:
        config: A config at full size.
    """
    tubes = make_tubes(config.model.tubes)
    tokens = sum(
        stream.batch_size * count_tokens(tubes, input_size(config.clip, stream.kind))
        for stream in config.streams.values()
    )
    model, trained = config.model, config.optimizer.trained_layers
    layers = model.depth if trained is None else trained
    kept = tokens * model.width * layers * _KEPT[model.remat]
    parts = 1
    while kept / parts > _FOR_LAYERS:
        parts *= 2
    return parts
