"""Examples that cannot be decoded: counted, named, and too many of them an error."""

import json
from collections.abc import Mapping

from etils import epath

from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.storage import write_whole

#: The file in a work directory with what was undecodable so far.
FILE = "undecodable.json"


class TooManyUndecodable(TubeViTError, RuntimeError):
    """More of a data set cannot be decoded than the config allows."""


class DamagedList(TubeViTError, ValueError):
    """A list of undecodable examples that no run has written."""


class Undecodable:
    """The undecodable examples of one data set.

    Attributes:
        problems: What is wrong with each, by its id.
        steps: The step that met each first, by its id.
    """

    def __init__(self, split: Split, max_share: float):
        self.split, self.max_share = split, max_share
        self.problems: dict[str, str] = {}
        self.steps: dict[str, int] = {}

    def find(self, batch: Mapping) -> dict[str, str]:
        """Returns the problems, by id, of a batch's examples that are not noted yet."""
        return {
            str(i): str(problem)
            for i, problem in zip(batch["id"], batch["problem"], strict=True)
            if problem and str(i) not in self.problems
        }

    def note(self, found: Mapping[str, str], step: int) -> list[str]:
        """Adds the problems that any host met; returns a log line for each new one.

        Raises:
            TooManyUndecodable: They exceed `max_share` of the data set; lists them.
        """
        new = {i: p for i, p in found.items() if i not in self.problems}
        self.problems |= new
        self.steps |= dict.fromkeys(new, step)
        if len(self.problems) > self.max_share * len(self.split):
            listed = "\n".join(f"  {i}: {p}" for i, p in self.problems.items())
            raise TooManyUndecodable(
                f"{len(self.problems)} of the {len(self.split)} examples of "
                f"{self.split.name} {self.split.split} do not decode, more than the "
                f"{self.max_share:.1%} that loader.max_undecodable allows:\n{listed}\n"
                "Allow more to go on with a run: those that it has met are in its "
                f"{FILE}. A new one may do without them: mend or remove them, and "
                "prepare the data set again."
            )
        return [f"{self.split.name}: {i} does not decode: {p}" for i, p in new.items()]


def save(workdir: epath.Path, streams: Mapping[str, Undecodable]) -> None:
    """Writes what is undecodable to the work directory, by stream and id."""
    listed = {
        name: {i: {"step": x.steps[i], "problem": p} for i, p in x.problems.items()}
        for name, x in streams.items()
    }
    text = json.dumps(listed, indent=1, ensure_ascii=False)
    write_whole(workdir / FILE, f"{text}\n".encode())


def restore(
    workdir: epath.Path, streams: Mapping[str, Undecodable], first_step: int
) -> None:
    """Notes what a run had met by `first_step`, from which it is resumed.

    Raises:
        TooManyUndecodable: More than the config allows by now.
        DamagedList: The file is not one that a run has written.
    """
    path = workdir / FILE
    if not path.exists():
        return
    try:
        listed = json.loads(path.read_text())
        met = [
            (name, i, int(x["step"]), str(x["problem"]))
            for name in streams.keys() & listed.keys()
            for i, x in listed[name].items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedList(
            f"{path} is damaged: {error}. Remove it to count anew."
        ) from error
    for name, i, step, problem in met:
        if step <= first_step:
            streams[name].note({i: problem}, step)
