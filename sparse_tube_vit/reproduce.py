"""Runs rows of the paper's tables at a small scale, and writes docs/reproduction.md.

sparse-tube-vit reproduce [TABLE ...] [--tasks TASK ...] [--full]
"""

import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sparse_tube_vit.checkpoints.image_vits.files import UnreadableWeights
from sparse_tube_vit.config import InvalidConfig
from sparse_tube_vit.config.flags import CommandParser, positive
from sparse_tube_vit.errors import DatasetError, reported
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.reproduction import data, document, full_size, runner
from sparse_tube_vit.reproduction.runs import (
    TASKS,
    WEIGHTS,
    Results,
    Run,
    UnreadableResults,
    plan,
)
from sparse_tube_vit.reproduction.tables import TABLES, select
from sparse_tube_vit.storage import absolute


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser("reproduce", description=__doc__.splitlines()[0])
    add = parser.add_argument
    names = f"{', '.join(TABLES)}; TABLE:ROW is one row; default: all"
    add("tables", nargs="*", metavar="TABLE", help=names)
    add(
        "--tasks",
        nargs="+",
        choices=TASKS,
        help=f"{', '.join(TASKS)}; default: those whose data is prepared",
    )
    add("--seeds", type=positive, default=3, help="runs of a row; default: 3")
    add("--data_dir", default="data", help="of the prepared data sets")
    add("--ucf101", help="folder with videos/ and the lists of UCF101, to be prepared")
    add("--images", help="Tiny-ImageNet as {train,val}/<class>/<file>, to be prepared")
    add("--weights", default=WEIGHTS, help="image ViT of size S, patches of 14x14")
    add("--runs", default="runs/reproduction", help="folder of the work directories")
    add("--results", default="docs/reproduction", help="folder of results and pictures")
    add("--document", default="docs/reproduction.md", help="what is written")
    add("--dry_run", action="store_true", help="lists the runs that are left")
    add("--document_only", action="store_true", help="writes it from the results")
    add("--full", action="store_true", help="prints the commands at full size")
    args = parser.parse_args(argv)
    to_stderr()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs save before
    with reported():
        rows = select(args.tables or TABLES)
        if args.full:
            for line in full_size.commands(rows):
                print(line, flush=True)  # a row takes a second
            return
        results = Results(args.results)
        if args.document_only:
            document.write(results, args.document)
            return
        tasks = tasks_of(rows, args.tasks)
        code = runner.digest_of_code()
        runs = plan(rows, tasks, args.seeds, results, Path(args.runs))
        if not runs:
            log.info("Of these tables nothing is left to run on %s.", ", ".join(tasks))
        named = bool(args.tasks)
        runs = without_problem(
            runs, lambda x: data.check_weights(x, results, args.weights), named
        )
        if not args.dry_run:
            data.prepare_data(runs, args.data_dir, args.ucf101, args.images)
        runs = without_problem(
            runs, lambda x: data.check_data(x, results, args.data_dir), named
        )
        if args.dry_run:
            for run in runs:
                print(f"{run.folder}: {results.minutes(run):.1f} min")
            return

        def write():
            if runner.digest_of_code() != code:  # the document may be newer, too
                log.warning("%s is left as it is: the code has changed", args.document)
                return
            document.write(Results(args.results), args.document)  # others' runs, too

        def write_between():
            try:
                write()
            except UnreadableResults as error:  # of any task; runs go on
                log.error("%s is not written: %s", args.document, error)

        # Runs hold such paths, and go on from any folder.
        given = Path(args.runs).absolute(), args.data_dir, absolute(args.weights)
        try:
            failed = runner.carry_out(runs, results, *given, write_between, code)
        except KeyboardInterrupt:
            sys.exit("Stopped. The same command goes on from here.")
        finally:
            write()
        if failed:
            sys.exit("\n".join(map(str, failed)))


def tasks_of(rows: Iterable[str], named: Sequence[str] | None) -> list[str]:
    """Returns the tasks that tables are run on.

    Args:
        rows: Numbers of the tables.
        named: Names of tasks; None: all that these tables have.

    Raises:
        InvalidConfig: None of the tables is run on a task that is named.
    """
    theirs = {task for table in rows for task in TABLES[table].tasks}
    if wrong := [task for task in named or () if task not in theirs]:
        raise InvalidConfig(
            f"Tables {', '.join(rows)} are not run on {', '.join(wrong)}, but on "
            f"{', '.join(task for task in TASKS if task in theirs)}."
        )
    return [task for task in TASKS if task in (named or theirs)]


def without_problem(
    runs: Sequence[Run], check: Callable[[Sequence[Run]], None], named: bool
) -> list[Run]:
    """Returns the runs on tasks that pass a check; logs why others are left out.

    Args:
        runs: The runs, on any tasks.
        check: Raises DatasetError or UnreadableWeights if there is a problem with the
            runs on a task.
        named: Whether the user named the tasks, so that a problem ends the command.

    Raises:
        DatasetError, UnreadableWeights: Of a task that was named, or if no run is left.
    """
    problems = {}
    for task in dict.fromkeys(run.task for run in runs):
        try:
            check([run for run in runs if run.task == task])
        except (DatasetError, UnreadableWeights) as error:
            problems[task] = error
    left = [run for run in runs if run.task not in problems]
    for task, error in problems.items():
        if named or not left:
            raise type(error)(f"{task}: {error}") from error
        log.warning("%s is left out: %s", task, error)
    return left


if __name__ == "__main__":
    main()
