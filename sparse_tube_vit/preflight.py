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
import re
from collections.abc import Sequence

import jax
from etils import epath

from sparse_tube_vit.checkpoints.workdir import make_workdir, remove_empty
from sparse_tube_vit.config.flags import CommandParser, add_config
from sparse_tube_vit.errors import TubeViTError, reported
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.storage import whole_file
from sparse_tube_vit.tpu.chips import Topology
from sparse_tube_vit.tpu.feeding import feeding
from sparse_tube_vit.tpu.preflight import UnknownClasses, head_classes, preflight
from sparse_tube_vit.tpu.summary import to_json, to_text
from sparse_tube_vit.training.utilization import PREDICTION


class BadCost(TubeViTError, ValueError):
    """A cost of an example that cannot be read, or of no stream of the config."""


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
        action="append",
        default=[],
        metavar="HEAD=N",
        help="of a data set that is not prepared; may be repeated",
    )
    parser.add_argument(
        "--example_ms",
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
    to_stderr()
    jax.config.update("jax_platforms", "cpu")  # compiling needs no TPU
    with reported(), contextlib.ExitStack() as stack:
        if args.workdir:  # minutes before there is anything to write
            workdir = epath.Path(args.workdir)
            stack.callback(remove_empty, make_workdir(workdir))
            write = stack.enter_context(whole_file(workdir / PREDICTION))
        config = args.config
        topology = Topology.parse(args.topology, config.mesh.slices)
        classes = head_classes(config, given_classes(args.classes))
        seconds = given_seconds(args.example_ms, config.streams)
        result = preflight(config, topology, classes)
        fed = feeding(config, topology, result.mesh, result.estimate.seconds, seconds)
        result = dataclasses.replace(result, feeding=fed)
        if not fed.suffices:
            log.warning("%s", fed.verdict())
        as_json = json.dumps(to_json(result), indent=1)
        if args.workdir:
            write(lambda file: file.write(as_json.encode()))
        print(as_json if args.json else to_text(result))


def given_classes(texts):
    given = {}
    for text in texts:
        head, _, number = text.partition("=")
        if not number.isdigit() or not int(number):
            raise UnknownClasses(f"--classes takes head=N, not {text!r}.")
        given[head] = int(number)
    return given


def given_seconds(texts, streams):
    given = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in streams or not re.fullmatch(r"\d*\.?\d+", number):
            raise BadCost(
                f"--example_ms takes STREAM=MS, not {text!r}. Streams: "
                f"{', '.join(streams)}."
            )
        given[name] = float(number) / 1e3
    return given


if __name__ == "__main__":
    main()
