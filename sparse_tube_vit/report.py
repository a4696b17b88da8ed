"""Writes a report on a run or a model: one HTML page, with pictures and clips in it.

    sparse-tube-vit report --model MODEL [--out FILE] [--clips N]

Prints where the page is, and the results of the last evaluations. What the run lacks,
such as an evaluation or its data, the page names as absent.
"""

from collections.abc import Sequence

from etils import epath

from sparse_tube_vit.config.flags import CommandParser, add_model, positive
from sparse_tube_vit.errors import reported
from sparse_tube_vit.figures.run import Run
from sparse_tube_vit.log import to_stderr
from sparse_tube_vit.pages.run import render
from sparse_tube_vit.storage import whole_file

PAGE = "report.html"


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "report",
        description="Writes one HTML page of a run or a model, with its pictures.",
    )
    add = parser.add_argument
    add_model(parser, image_vits=False)
    add("--out", help=f"the page; default: WORKDIR/{PAGE}")
    add("--clips", type=positive, default=8, help="shown of an evaluation; default: 8")
    add("--data_dir", help="of the prepared data sets, if not that of the config")
    args = parser.parse_args(argv)
    to_stderr()
    with reported():
        run = Run(args.model, data_dir=args.data_dir)
        run.trained  # noqa: B018  before a page is begun
        out = epath.Path(args.out or run.output(PAGE))
        with whole_file(out) as write:
            page = render(run, args.clips)
            write(lambda file: file.write(page.encode()))
        print(out)
        for result in run.evaluations.values():
            print(result.get("summary", ""))


if __name__ == "__main__":
    main()
