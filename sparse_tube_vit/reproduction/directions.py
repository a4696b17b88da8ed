"""The tables' directions, tested by the results: which row is above which."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

from sparse_tube_vit.reproduction.runs import Results, Run
from sparse_tube_vit.reproduction.statistics import Comparison, count_significant
from sparse_tube_vit.reproduction.tables import TABLES, Row


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """A direction of a table on one task.

    Attributes:
        table: Number of the table.
        rows: Names of the rows (better, worse); of an interaction (better, worse,
            better, worse), the first two with the larger difference.
        task: Name of the task.
        comparison: Of the rows' accuracies; None where no seed has all of them.
    """

    table: str
    rows: tuple[str, ...]
    task: str
    comparison: Comparison | None

    @property
    def words(self) -> str:
        """The direction in words."""
        pairs = zip(self.rows[::2], self.rows[1::2], strict=True)
        return " more than ".join(f"{a} above {b}" for a, b in pairs)

    @property
    def is_papers(self) -> bool:
        """Whether the paper gives figures for the rows of its table."""
        return TABLES[self.table].is_papers

    @property
    def is_tested(self) -> bool:
        """Whether there are seeds enough for a test."""
        return self.comparison is not None and not math.isnan(self.comparison.p)

    @functools.cached_property
    def runs(self) -> tuple:
        """What is compared, whatever the table: equal where two tables share runs."""
        table, compared = TABLES[self.table], []
        for row in map(table.row, self.rows):
            run = Run.of(self.table, row, self.task, 0)
            compared.append((run.name, row.evaluation))
        return self.task, *compared


def accuracies(results: Results, table: str, row: Row, task: str) -> dict[int, float]:
    """Returns Top-1 in percent of a row by seed."""
    return {
        seed: 100 * result["evaluations"][row.evaluation]["top1"]
        for seed, result in results.seeds(table, row, task).items()
        if row.evaluation in result["evaluations"]
    }


def compare(table: str, results: Results) -> list[Direction]:
    """Returns the directions of a table on each of its tasks.

    Args:
        table: Its number.
        results: Results of the runs.
    """

    def of(row, task):
        return accuracies(results, table, TABLES[table].row(row), task)

    def difference(a, b, task):
        a, b = of(a, task), of(b, task)
        return {seed: a[seed] - b[seed] for seed in a.keys() & b.keys()}

    found = []
    for task in TABLES[table].tasks:
        for a, b in TABLES[table].directions:
            compared = Comparison.of(of(a, task), of(b, task))
            found.append(Direction(table, (a, b), task, compared))
        for pairs in TABLES[table].interactions:
            compared = Comparison.of(*(difference(*pair, task) for pair in pairs))
            found.append(Direction(table, sum(pairs, ()), task, compared))
    return found


def distinct(directions: Iterable[Direction]) -> Mapping[tuple, Direction]:
    """Returns the directions with seeds enough for a test, by what is compared.

    Where several tables share runs, that of the first.
    """
    found = {}
    for direction in directions:
        if direction.is_tested:
            found.setdefault(direction.runs, direction)
    return found


def corrected(directions: Iterable[Direction]) -> set[tuple]:
    """Returns `runs` of the directions that are significant after Holm's correction.

    The paper's directions are corrected for their number, and ours for theirs.
    """
    kept = set()
    for papers in (True, False):
        family = [x for x in distinct(directions).values() if x.is_papers == papers]
        family.sort(key=lambda x: x.comparison.p)
        count = count_significant([x.comparison.p for x in family])
        kept |= {x.runs for x in family[:count]}
    return kept
