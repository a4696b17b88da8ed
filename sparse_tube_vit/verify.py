"""Verifies a prepared data set: decodes all of it, and shows it on a page.

    sparse-tube-vit verify ucf101/split1 --data_dir data
    sparse-tube-vit verify kinetics400 --data_dir data --workers 64 \
        --config configs/kinetics.py --out kinetics400.html

Reads every record, decodes every frame, and compares with the manifest that prepare
wrote. Lists problems by example with advice; the exit code is 1 if there are errors.
Unusual but valid contents, such as a file in two splits, are warnings. The same list
goes to an HTML page with a clip of every class, as training with --config samples it.
"""

from collections.abc import Sequence

from etils import epath

from sparse_tube_vit.config import (
    ConfigDict,
    InvalidConfig,
    default_config,
    stream,
)
from sparse_tube_vit.config.flags import CommandParser, add_config, at_least
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.preparing import verification
from sparse_tube_vit.distributed.cpu import usable_cores
from sparse_tube_vit.errors import DatasetError, reported
from sparse_tube_vit.input.examples import TrainingExample
from sparse_tube_vit.log import to_stderr
from sparse_tube_vit.pages.contact_sheet import contact_sheet
from sparse_tube_vit.storage import whole_file
from sparse_tube_vit.training import finetuning

PAGE = "contact_sheet.html"


class DatasetIsWrong(DatasetError):
    """A prepared data set differs from what was prepared, or does not decode."""


def training_example(
    dataset: str, kind: str, config: ConfigDict | None
) -> TrainingExample:
    """Returns training's map from records to examples, of a config or by default.

    Raises:
        InvalidConfig: No stream of the config reads the data set.
    """
    if config is None:
        config = default_config()
        streams = [stream(kind=kind, dataset=dataset, head="", batch_size=1)]
    else:
        config = finetuning.complete(config, data=False)
        ours = [s for s in config.streams.values() if s.kind == kind]
        # A stream without a data set reads what a folder becomes.
        streams = [s for s in ours if s.dataset == dataset]
        streams += [s for s in ours if not s.dataset]
    if not streams:
        others = ", ".join(s.dataset or "none" for s in config.streams.values())
        raise InvalidConfig(
            f"No stream of --config reads {dataset}, but {others}. Give the config that"
            " trains on it, or none."
        )
    return TrainingExample.of(config.clip, config.loader, streams[0])


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "verify",
        description="Decodes a prepared data set and compares it with its manifest.",
    )
    add = parser.add_argument
    add("dataset", help="as prepared, for example ucf101/split1")
    add("--data_dir", default="data", help="of prepared data sets; default: data")
    add(
        "--workers",
        type=at_least(0),
        default=usable_cores(),
        help="default: one a core; 0: this one",
    )
    add_config(parser, required=False)  # whose stream samples the clips of the page
    add("--out", help=f"the page; default: {PAGE} in the data set's directory")
    args = parser.parse_with_config(argv)
    to_stderr()
    with reported():
        name, *_ = reading.split_names(args.dataset, args.data_dir)
        split = reading.open_split(args.dataset, name, args.data_dir)
        example = training_example(args.dataset, split.kind, args.config)
        out = epath.Path(args.out or epath.Path(split.directory) / PAGE)
        with whole_file(out) as write:
            result = verification.verify(args.dataset, args.data_dir, args.workers)
            print(result)
            page = contact_sheet(result, example, args.workers, bool(args.config))
            write(lambda file: file.write(page.encode()))
        print(f"  written to {out}")
        if result.errors:
            raise DatasetIsWrong(
                f"{args.dataset} is wrong in {result.errors:,} places, listed above."
            )


if __name__ == "__main__":
    main()
