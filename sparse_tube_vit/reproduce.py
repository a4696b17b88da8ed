"""Runs rows of the paper's tables at a small scale, and writes docs/reproduction.md.

sparse-tube-vit reproduce [TABLE ...] [--tasks TASK ...] [--full]
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparse_tube_vit.config.flags import CommandParser, positive
from sparse_tube_vit.errors import DatasetError, reported
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.reproduction import data, document, full_size, runner
from sparse_tube_vit.reproduction.runs import TASKS, WEIGHTS, Results, plan
from sparse_tube_vit.reproduction.tables import TABLES, Row, select


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
            print("\n".join(full_size.commands(rows)))
            return
        results = Results(args.results)
        if args.document_only:
            document.write(results, args.document)
            return
        if not args.dry_run:
            data.prepare_data(args.data_dir, args.ucf101, args.images)
        tasks = prepared_tasks(rows, args.data_dir, args.tasks)
        runs = plan(rows, tasks, args.seeds, results, Path(args.runs))
        if not runs:
            log.info("Of these tables nothing is left to run on %s.", ", ".join(tasks))
        if args.dry_run:
            for run in runs:
                print(f"{run.folder}: {results.minutes(run):.1f} min")
            return
        data.check_same(runs, results, args.data_dir, args.weights)
        workdirs = Path(args.runs)
        try:
            failed = runner.carry_out(
                runs, results, workdirs, args.data_dir, args.weights
            )
        except KeyboardInterrupt:
            sys.exit("Stopped. The same command goes on from here.")
        finally:
            document.write(Results(args.results), args.document)  # others' runs, too
        if failed:
            sys.exit("\n".join(map(str, failed)))


def prepared_tasks(
    rows: Mapping[str, Sequence[Row]], data_dir: str, tasks: Sequence[str] | None
) -> list[str]:
    """Returns the tasks whose data sets are prepared, and logs what others lack.

    Args:
        rows: Rows by the number of their table.
        data_dir: Folder of prepared data sets.
        tasks: Names of tasks; None: all that these tables have.

    Raises:
        DatasetError: One that `tasks` names is not prepared, or none is.
    """
    theirs = {task for table in rows for task in TABLES[table].tasks}
    chosen, prepared = tasks or [task for task in TASKS if task in theirs], []
    for task in chosen:
        if not (names := data.missing(task, rows, data_dir)):
            prepared.append(task)
            continue
        lacking = f"{' and '.join(names)} not prepared in {data_dir}"
        if tasks:
            raise DatasetError(f"{task}: {lacking}; --ucf101 and --images do that.")
        log.warning("%s is left out: %s", task, lacking)
    if not prepared:
        raise DatasetError(
            f"--ucf101 and --images prepare what tables {', '.join(rows)} need."
        )
    if len(prepared) < len(chosen):
        log.warning("--ucf101 and --images prepare them.")
    return prepared


if __name__ == "__main__":
    main()
