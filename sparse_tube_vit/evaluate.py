"""Measures accuracy, or mAP of several labels, over temporal x spatial views.

sparse-tube-vit evaluate --model MODEL [--step N] [--views 4x3] [...]
"""

import signal

if __name__ == "__main__":
    # There is nothing to save: Ctrl-C ends the command as SIGTERM does, see `train`.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Sequence

import jax

from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.config import from_json
from sparse_tube_vit.config.flags import CommandParser, add_model, parse_views
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.distributed import hosts, sharding
from sparse_tube_vit.errors import reported
from sparse_tube_vit.evaluation.evaluator import evaluate
from sparse_tube_vit.figures import draw_confusions
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.storage import try_writing, writing


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "evaluate",
        description="Evaluates a checkpoint; config and classes are read from it.",
    )
    add_model(parser, image_vits=False)
    parser.add_argument(
        "--step", type=int, help="of the checkpoint; default: the latest"
    )
    parser.add_argument("--only", nargs="+", help="names of evaluations; default: all")
    parser.add_argument(
        "--views", type=parse_views, help="temporal x spatial views of videos, as 4x3"
    )
    parser.add_argument(
        "--stride_scale",
        type=float,
        help="of the tubes' strides: below 1 for more tokens than in training",
    )
    parser.add_argument(
        "--combine_views",
        choices=("mean", "max"),
        help="of the probabilities of a video's views; default: as in the run's config",
    )
    parser.add_argument(
        "--batch_size", type=int, help="videos or images at a time, at most"
    )
    parser.add_argument("--data_dir", help="of the prepared data sets")
    parser.add_argument(
        "--out", help="directory for results; default: the run's WORKDIR/evaluations"
    )
    args = parser.parse_args(argv)
    to_stderr()
    with reported(), hosts.connected():
        model = stored.locate(args.model, args.step)
        config = from_json(model.read_description()["config"])
        # Parameters are not split here: devices of any kind and number will do.
        slices = sharding.count_slices(jax.devices())
        config.mesh.update(data=-1, fsdp=1, tensor=1, slices=slices)
        config.model.attention = "auto"
        if args.data_dir:  # nothing is made where only the model says so
            config.data_dir = args.data_dir
            prepare_embedded(
                (
                    source.dataset
                    for name, source in config.evaluations.items()
                    if not args.only or name in args.only
                ),
                args.data_dir,
            )
        for source in config.evaluations.values():
            if args.batch_size is not None:
                source.batch_size = args.batch_size
            if args.stride_scale is not None:
                source.stride_scale = args.stride_scale
            if args.combine_views is not None and source.kind == "video":
                source.combine_views = args.combine_views
            if args.views and source.kind == "video":
                source.temporal_views, source.spatial_views = args.views
        out = args.out or model.workdir and model.workdir / "evaluations"
        log.info("Evaluating %s", model.name)
        if not out:
            log.info("It has no work directory: give --out DIR to write the results.")
        first_host = jax.process_index() == 0
        if first_host and out:
            with writing(out):  # rather than to find out after hours
                try_writing(out)
        for result in evaluate(config, model, args.only):
            if first_host:
                print(result, flush=True)
                if out:
                    print(f"  written to {result.save(out)}", flush=True)
        if first_host and out:
            draw_confusions(out)


if __name__ == "__main__":
    main()
