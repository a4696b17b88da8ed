"""Training runs of the tables' rows: their commands, order, and results."""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.checkpoints.image_vits import files
from sparse_tube_vit.config import ConfigDict, default_config, differences, flags
from sparse_tube_vit.config.schema import EVALUATION, STREAM
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.reproduction.tables import PATCH, TABLES, Row, shares_run
from sparse_tube_vit.training import recipe
from sparse_tube_vit.training.forecast import Forecast

#: The small tasks.
TASKS = (
    "moving_shapes",
    "ucf101",
    "ucf101_directions",
    "ucf101_image_vit",
    "ucf101_finetuning",
)

#: FLOPs a minute of a CPU core, with decoding, until a run of the task was measured.
_FLOPS = 2e12

#: Minutes of a step of fine-tuning on a CPU core, until the row was measured.
_FINETUNING_MINUTES = 60 / 330

#: An image ViT of size S, with patches of 14x14.
WEIGHTS = "hf://facebook/dinov2-small"

_FINETUNING = {
    "streams.clips.dataset": "ucf101/split1",
    "evaluations.clips.dataset": "ucf101/split1",
    "evaluations.clips.temporal_views": 2,
    "evaluations.images.split": "val",
    "checkpoint.keep": 1,  # of 0.3 GB
    "total_steps": 330,
}


#: Beginnings of keys on which a result does not depend, but for numerical error.
_NO_EFFECT = (
    "seed",
    "init.weights",
    "loader.",
    "log_every_steps",
    "checkpoint.",
    "compilation_cache",
)


class UnreadableResults(TubeViTError, ValueError):
    """A file of results that this version does not read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A training run: a row of a table on a task, with a seed.

    Rows that train the same share a run; it has the name of the first of them.

    Attributes:
        table: Number of the table.
        row: Its row.
        task: Name of the task.
        seed: Seed of everything random.
    """

    table: str
    row: Row
    task: str
    seed: int

    @classmethod
    def of(cls, table: str, row: Row, task: str, seed: int) -> "Run":
        """Returns the run of a row, which it may share with others."""
        for number, other in TABLES.items():
            for candidate in other.rows:
                if shares_run(table, row, number, candidate, task):
                    return cls(number, candidate, task, seed)
        return cls(table, row, task, seed)

    @property
    def name(self) -> str:
        """Table and row."""
        return f"{self.table}_{self.row.name}"

    @property
    def folder(self) -> str:
        """Its folder, below that of all runs."""
        return f"{self.task}/{self.name}/{self.seed}"

    def workdir(self, runs: Path) -> Path:
        """Returns its work directory. After a change of the config it is another.

        Args:
            runs: Folder of all runs.
        """
        return runs / self.folder / self.digest

    def created(self, runs: Path, weights: str) -> Path:
        """Returns the work directory of the model that `scale_up` makes for it.

        Args:
            runs: Folder of all runs.
            weights: Weights of an image ViT.
        """
        name = re.sub(r"\W+", "_", name_of(weights))
        return runs / self.folder / f"{self.digest}_from_{name}"

    @property
    def is_finetuning(self) -> bool:
        """Whether it is by configs/finetune.py, not by configs/reproduction.py."""
        return self.task == "ucf101_finetuning"

    @property
    def after(self) -> "Run | None":
        """The run whose model it starts from."""
        if not self.row.after:
            return None
        row = TABLES[self.table].row(self.row.after)
        return Run.of(self.table, row, self.task, self.seed)

    @property
    def config_arguments(self) -> tuple[str, ...]:
        """The command line's config, without what depends on paths."""
        if self.is_finetuning:
            overrides = _FINETUNING | {"seed": self.seed} | dict(self.row.changes)
            if not overrides.get("streams.images.dataset"):
                del overrides["evaluations.images.split"]
            else:
                dataset = overrides["streams.images.dataset"]
                overrides["evaluations.images.dataset"] = dataset
            name = f"configs/finetune.py:{self.row.argument}".rstrip(":")
            return (
                f"--config={name}",
                *(f"--config.{key}={value}" for key, value in overrides.items()),
            )
        name = f"table={self.table},row={self.row.name},task={self.task}"
        return (f"--config=configs/reproduction.py:{name},seed={self.seed}",)

    @property
    def takes_weights(self) -> bool:
        """Whether it needs an image ViT."""
        own = "init.weights" in self.row.changes
        return self.row.big or self.is_finetuning and not own

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The config, without what depends on paths."""
        return flags.read(self.config_arguments)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the config, without defaults and keys that change no result.

        Open keys count if the recipe fills them in, not if the weights do, so that a
        new key of the schema does not outdate results. Keys that the row sets count
        even at their default.
        """
        config = self.config.to_dict()
        for section, schema in (("streams", STREAM), ("evaluations", EVALUATION)):
            for source in config[section].values():
                for key in [k for k, x in source.items() if x == schema[k].default]:
                    del source[key]
        values = {
            key: value
            for key, default, value in differences(default_config().to_dict(), config)
            if not key.startswith(_NO_EFFECT)
            and not (value is None and default is not None)
        }
        if self.is_finetuning:
            trained = self.config.optimizer.trained_layers
            values = recipe.from_image_vit(self.config, PATCH, trained) | values
        changes = self.row.changes.items()
        values |= {k: x for k, x in changes if not k.startswith(_NO_EFFECT)}
        if self.after:
            values["after"] = self.after.digest
        text = json.dumps(values, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @functools.cached_property
    def flops(self) -> int | None:
        """FLOPs of training by formula; None if the weights tell the sizes."""
        if self.is_finetuning:
            return None
        return _training_flops(self.table, self.row.name, self.task)

    def commands(self, runs: Path, data_dir: str, weights: str) -> Iterator[list[str]]:
        """Yields the commands of the run.

        Args:
            runs: Folder of all runs.
            data_dir: Folder of the prepared data sets.
            weights: Weights of an image ViT.
        """
        python = [sys.executable, "-m"]
        # Seeds, and rows of one shape, share compiled programs.
        overrides = [
            f"--config.data_dir={data_dir}",
            f"--config.compilation_cache={runs / 'compiled'}",
        ]
        if self.after and self.row.big:
            small, created = self.after.workdir(runs), self.created(runs, weights)
            yield [
                *(*python, "sparse_tube_vit.scale_up", "--small", str(small)),
                *("--big", weights, "--workdir", str(created), "--positions=keep"),
            ]
            overrides.append(f"--config.init.weights={created}")
        elif self.after:
            overrides.append(f"--config.init.weights={self.after.workdir(runs)}")
        elif self.takes_weights:
            overrides.append(f"--config.init.weights={weights}")
        yield [
            *(*python, "sparse_tube_vit.train", *self.config_arguments, *overrides),
            f"--workdir={self.workdir(runs)}",
        ]


def plan(
    rows: Mapping[str, Sequence[Row]],
    tasks: Iterable[str],
    seeds: int,
    results: "Results",
    folder: Path,
) -> list[Run]:
    """Returns the runs of rows without a result, the cheapest first.

    A run comes after the one whose model it starts from, which runs again where its
    result is stored and its model is not. Of equal cost, those of a table come
    together, its rows in turns.

    Args:
        rows: Rows by the number of their table.
        tasks: Names of tasks; a table is run on those that it has.
        seeds: Number of seeds, from 0.
        results: What is finished.
        folder: Folder of all runs.
    """
    runs = {}
    for table, chosen in rows.items():
        for task in TABLES[table].tasks:
            for seed in range(seeds if task in tasks else 0):
                for row in chosen:
                    run = Run.of(table, row, task, seed)
                    for needed in filter(None, (run.after, run)):
                        runs.setdefault(needed.folder, needed)
    missing = {name for name, run in runs.items() if not results.get(run)}
    started = [runs[name].after for name in missing if runs[name].after]
    missing |= {
        run.folder for run in started if not read_result(run, run.workdir(folder))
    }
    left = [run for name, run in runs.items() if name in missing]

    def cost(run):
        own = results.minutes(run)
        before = run.after if run.after and run.after.folder in missing else None
        return max(own, cost(before)) if before else own

    return sorted(left, key=cost)


class Results:
    """Results of finished runs, a JSON file for each task.

    It has them by name, digest of the config, and seed: runners of two versions do not
    take each other's away.

    Args:
        directory: Folder of the files.
    """

    def __init__(self, directory):
        self.directory = epath.Path(directory)
        self._runs = {task: self._read(task) for task in TASKS}

    def _read(self, task):
        path = self.path(task)
        try:
            text = path.read_text() if path.exists() else "{}"
            runs = json.loads(text, object_pairs_hook=_without_repeats)
            for result in _each(runs):
                if result["minutes"] is not None:
                    float(result["minutes"])
                for evaluation in result["evaluations"].values():
                    int(evaluation["tokens"])
                    if not 0 <= evaluation["top1"] <= 1:
                        raise ValueError(f"top1 is {evaluation['top1']}")
            for digests in runs.values():
                for seed in (seed for seeds in digests.values() for seed in seeds):
                    int(seed)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UnreadableResults(
                f"{path} is not as `reproduce` writes it: {error!r}. Restore it, or "
                "remove it to run all of its rows again."
            ) from error
        return runs

    def path(self, task: str) -> epath.Path:
        """Returns the file of a task."""
        return self.directory / f"{task}.json"

    def reload(self, task: str) -> None:
        """Reads the results of a task again, to which other runners may have added."""
        self._runs[task] = self._read(task)

    def get(self, run: Run) -> Mapping | None:
        """Returns the result of a run, None if there is none of its config."""
        return self._seeds(run).get(str(run.seed))

    def _seeds(self, run):
        stored = self._runs[run.task].get(run.name)
        return stored.get(run.digest, {}) if stored else {}  # a digest takes 8 ms

    def outdated(self) -> list[str]:
        """Returns the names of stored runs whose config is another one by now."""
        names = []
        for task, runs in self._runs.items():
            for name, stored in runs.items():
                run = _named(name, task)
                if not run or run.digest not in stored:
                    names.append(f"{task}/{name}")
        return names

    def add(self, run: Run, result: Mapping) -> None:
        """Keeps the result of a run."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with storage.locked(self.directory):  # other runners add to the same files
            self.reload(run.task)
            runs = self._runs[run.task]
            seeds = self._seeds(run) | {str(run.seed): result}
            seeds = dict(sorted(seeds.items(), key=lambda x: int(x[0])))
            runs.setdefault(run.name, {})[run.digest] = seeds
            text = json.dumps(dict(sorted(runs.items())), indent=1)
            storage.write_whole(self.path(run.task), f"{text}\n".encode())

    def seeds(self, table: str, row: Row, task: str) -> dict[int, Mapping]:
        """Returns the results of a row by seed."""
        seeds = self._seeds(Run.of(table, row, task, 0))
        return {int(seed): result for seed, result in seeds.items()}

    def each(self, task: str) -> Iterator[Mapping]:
        """Yields all results of a task, those of other configs too."""
        yield from _each(self._runs[task])

    def examples(self, task: str, evaluation: str) -> set[int]:
        """Returns the numbers of test examples that an evaluation's results are of."""
        found = {
            result["evaluations"].get(evaluation, {}).get("examples")
            for result in self.each(task)
        }
        return found - {None}

    def weights(self, task: str) -> set[str]:
        """Returns the names of the image ViTs that a task's results start from."""
        return {result["weights"] for result in self.each(task) if "weights" in result}

    def minutes(self, run: Run) -> float:
        """Returns the predicted minutes of a run.

        The median of its other seeds, else by its FLOPs, at the median rate of the
        task's runs.
        """
        if known := _minutes(self._seeds(run).values()):
            return statistics.median(known)
        if run.flops is None:
            return _FINETUNING_MINUTES * run.config.total_steps
        rates = [
            flops / minutes
            for name, digests in self._runs[run.task].items()
            if (other := _named(name, run.task)) and (flops := other.flops)
            for seeds in digests.values()
            for minutes in _minutes(seeds.values())
        ]
        return run.flops / (statistics.median(rates) if rates else _FLOPS)


def _minutes(results):
    return [x["minutes"] for x in results if x["minutes"]]


@functools.cache
def _training_flops(table, row, task):
    config = Run(table, TABLES[table].row(row), task, 0).config
    # By so many classes, heads take next to nothing.
    model = make_model(config, {s.head: 100 for s in config.streams.values()})
    return Forecast(config, model, {}).training_flops


def _named(name, task):
    """Returns a stored run by its name; None if its table has no such row or task."""
    numbers = (n for n in TABLES if name.startswith(f"{n}_"))
    number = max(numbers, key=len, default="")
    table, row = TABLES.get(number), name.removeprefix(f"{number}_")
    if not table or task not in table.tasks:
        return None
    rows = {x.name: x for x in table.rows}
    return Run(number, rows[row], task, 0) if row in rows else None


def _each(runs):
    """Yields what is stored of a task, by name, digest and seed."""
    for digests in runs.values():
        for seeds in digests.values():
            yield from seeds.values()


def _without_repeats(pairs):
    """Returns the pairs as a dict: merged files may have a run twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{max(keys, key=keys.count)} is there twice")
    return found


def same_weights(one: str, other: str) -> bool:
    """Returns whether names by `name_of` are of the same weights, in any folder."""
    digest = "SHA-256 "
    return one.rpartition(digest)[1:] == other.rpartition(digest)[1:]


@functools.cache
def name_of(weights: str) -> str:
    """Returns the name by which results tell what they start from.

    A URL as it is; of a path, which is a machine's, the folder's name, and the first
    digits of the weights' SHA-256.

    Raises:
        UnreadableWeights: There are none, or they cannot be read.
    """
    if "://" in weights:
        return weights
    path = Path(files.find(weights).weights).absolute()
    try:
        content = storage.read_file(path)
        if path.suffix == ".json":  # an index of several files
            names = sorted(set(json.loads(content)["weight_map"].values()))
            content = b"".join(storage.read_file(path.parent / name) for name in names)
    except storage.UnreadableFile as error:
        raise files.UnreadableWeights(f"--weights {weights}: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    return f"{path.parent.name}, SHA-256 {digest[:12]}"


def read_result(run: Run, workdir: Path) -> dict[str, Mapping]:
    """Returns the evaluations of a run's last step, by name.

    Args:
        run: The run.
        workdir: Its work directory.
    """
    found = {}
    for path in sorted((workdir / "evaluations").glob("*.json")):
        result = json.loads(path.read_text())
        if result["step"] == run.config.total_steps:
            keys = ("top1", "top5", "examples", "tokens", "temporal_views")
            keys += ("spatial_views",)
            found[result["evaluation"]] = {k: result[k] for k in keys if k in result}
            if run.task == "ucf101_directions":
                right = _right_in_either_direction(result)
                found[result["evaluation"]]["class_top1"] = right
    return found


def _right_in_either_direction(result):
    """Returns the fraction of clips of the right class, whatever their direction."""
    classes = [name.rpartition("_")[0] for name in result["per_class"]]
    pairs = itertools.product(classes, repeat=2)
    counts = itertools.chain.from_iterable(result["confusion"])
    right = sum(n for (a, b), n in zip(pairs, counts, strict=True) if a == b)
    return right / result["examples"]
