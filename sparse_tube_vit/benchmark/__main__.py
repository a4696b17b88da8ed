"""Times training, decoding, input; on a GPU; beside other models."""

import importlib
from collections.abc import Sequence

from sparse_tube_vit.benchmark import gpu, peers
from sparse_tube_vit.config.flags import CommandParser, above_zero, add_config, positive
from sparse_tube_vit.errors import reported
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS

#: Libraries that decode, the functions of `decoding.DECODERS`.
DECODERS = ("pyav", "opencv", "decord", "torchcodec")


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser("benchmark", description=__doc__)
    commands = parser.add_subparsers(required=True)
    scaling = commands.add_parser("scale_up", help="seconds a step, of part and all")
    scaling.add_argument("--small", choices=VARIANTS, default="Ti")
    scaling.add_argument("--big", choices=VARIANTS, default="S")
    scaling.add_argument("--trained_layers", type=int, help="6 of 32 if not given")
    scaling.add_argument("--tubes", choices=TUBE_SETS, default="main")
    scaling.add_argument("--frames", type=int, default=32)
    scaling.add_argument("--size", type=int, default=224, help="pixels")
    scaling.add_argument("--batch", type=int, default=2, help="clips")
    scaling.add_argument("--dtype", default="float32")
    scaling.add_argument("--runs", type=int, default=5)
    scaling.set_defaults(run=_later("scale_up", "time_scale_up"))
    decode = commands.add_parser("decode", help="milliseconds of CPU time a clip")
    decode.add_argument("file")
    decode.add_argument("--frames", type=int, default=32)
    decode.add_argument("--stride", type=int, default=2, help="frames")
    decode.add_argument("--start", type=int, help="frame; at random if not given")
    decode.add_argument("--size", type=int, default=224, help="pixels")
    decode.add_argument("--runs", type=int, default=15)
    decode.add_argument(
        "--randaugment", type=int, metavar="LAYERS", help="ours also with flips and it"
    )
    decode.add_argument(
        "--beside", nargs="+", choices=DECODERS, default=(), help="the same by"
    )
    decode.set_defaults(run=_later("decoding", "time_decode"))
    host = commands.add_parser("input", help="clips per second per core, by stage")
    add_config(host)
    host.add_argument("--data_dir", help="in place of the config's")
    host.add_argument("--examples", type=positive, default=64, help="a stream")
    rate = host.add_mutually_exclusive_group()
    rate.add_argument("--step_seconds", type=above_zero, help="a step takes")
    rate.add_argument(
        "--clips_per_second", type=above_zero, help="of all streams together"
    )
    host.set_defaults(run=_later("feeding", "time_input"))
    one_gpu = commands.add_parser("gpu", help="training and inference beside PyTorch's")
    gpu.add_arguments(one_gpu)
    one_gpu.set_defaults(run=gpu.time_gpu)
    beside = commands.add_parser("peers", help="beside other models of video")
    peers.add_arguments(beside)
    beside.set_defaults(run=peers.time_peers)
    args = parser.parse_with_config(argv)
    with reported():
        args.run(args)


def _later(module, function):
    """Returns a function that imports another only when it is called.

    A machine that measures one thing need not have the packages of the others.
    """

    def run(args):
        found = importlib.import_module(f"sparse_tube_vit.benchmark.{module}")
        return getattr(found, function)(args)

    return run


if __name__ == "__main__":
    main()
