"""Stored results of given accuracies."""

from sparse_tube_vit.reproduction.runs import Run
from sparse_tube_vit.reproduction.tables import TABLES


def add(results, table, row, task, top1s, evaluation="video", minutes=2.0):
    """Adds a row's Top-1 in percent, of seeds from 0."""
    for seed, top1 in enumerate(top1s):
        found = {evaluation: {"top1": top1 / 100, "tokens": 114}}
        run = Run.of(table, TABLES[table].row(row), task, seed)
        results.add(run, {"evaluations": found, "minutes": minutes})


def add_rows(results, table, task, rows, evaluation="video"):
    """Adds several rows by name."""
    for row, top1s in rows.items():
        add(results, table, row, task, top1s, evaluation)
