"""Predicts what a config's training takes on a TPU pod, without one.

    sparse-tube-vit preflight --config configs/X.py --topology v5e:16x16

Compiles the train step for the pod, with its shardings, on a machine that has the TPU
compiler (pip install ".[train,tpu]") and no TPU, and reads memory, time and collectives
in the compiled program. With --workdir DIR, training there shows the prediction beside
what it measures. All times are predictions of the compiler's cost model, not
measurements. Ends with exit code 1 if the step does not fit the memory of a chip, and
warns if the hosts have too few CPU cores to decode as fast as it computes.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence

import jax
from etils import epath

from sparse_tube_vit.checkpoints.workdir import make_workdir, remove_empty
from sparse_tube_vit.config.flags import (
    CommandParser,
    above_zero,
    add_config,
    named,
    positive,
)
from sparse_tube_vit.errors import reported
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.storage import whole_file
from sparse_tube_vit.tpu.chips import Topology
from sparse_tube_vit.tpu.feeding import feeding
from sparse_tube_vit.tpu.preflight import head_classes, preflight
from sparse_tube_vit.tpu.summary import to_json, to_text
from sparse_tube_vit.training.utilization import PREDICTION


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "preflight",
        description="Predicts memory, time and collectives of training on a TPU pod.",
    )
    add_config(parser)
    parser.add_argument(
        "--topology",
        required=True,
        help="chip and grid of a slice: v5e:16x16, v5p:4x4x8, v4, v6e",
    )
    parser.add_argument(
        "--classes",
        type=named(positive),
        action="append",
        default=[],
        metavar="HEAD=N",
        help="of a data set that is not prepared; may be repeated",
    )
    parser.add_argument(
        "--example_ms",
        type=named(above_zero),
        action="append",
        default=[],
        metavar="STREAM=MS",
        help="milliseconds of a core for an example, as `benchmark input` prints them; "
        "may be repeated. Otherwise they are measured here if the data set is "
        "prepared, else estimated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--workdir",
        help=f"writes the JSON to {PREDICTION} there: training in this work directory "
        "shows the prediction beside its own times",
    )
    args = parser.parse_with_config(argv)
    seconds = {name: ms / 1e3 for name, ms in args.example_ms}
    if unknown := [name for name in seconds if name not in args.config.streams]:
        parser.error(
            f"argument --example_ms: no stream {unknown[0]!r}; the config's are "
            f"{', '.join(args.config.streams)}"
        )
    to_stderr()
    jax.config.update("jax_platforms", "cpu")  # compiling needs no TPU
    with reported(), contextlib.ExitStack() as stack:
        if args.workdir:  # minutes before there is anything to write
            workdir = epath.Path(args.workdir)
            stack.callback(remove_empty, make_workdir(workdir))
            write = stack.enter_context(whole_file(workdir / PREDICTION))
        config = args.config
        topology = Topology.parse(args.topology, config.mesh.slices)
        classes = head_classes(config, dict(args.classes))
        result = preflight(config, topology, classes)
        fed = feeding(
            config, topology, result.batch_shares, result.estimate.seconds, seconds
        )
        result = dataclasses.replace(result, feeding=fed)
        if not fed.suffices:
            log.warning("%s", fed.verdict())
        as_json = json.dumps(to_json(result), indent=1)
        if args.workdir:
            write(lambda file: file.write(as_json.encode()))
        print(as_json if args.json else to_text(result))


if __name__ == "__main__":
    main()
