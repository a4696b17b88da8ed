"""Examples that cannot be decoded: counted, named, and too many of them an error."""

import json
from collections.abc import Mapping

from etils import epath

from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import write_whole

#: The file in a work directory with what was undecodable so far.
FILE = "undecodable.json"


class TooManyUndecodable(TubeViTError, RuntimeError):
    """More of a data set cannot be decoded than the config allows."""


class Undecodable:
    """The undecodable examples of one data set.

    Attributes:
        problems: What is wrong with each, by its id.
    """

    def __init__(self, split: Split, max_share: float):
        self.split, self.max_share = split, max_share
        self.problems: dict[str, str] = {}

    def find(self, batch: Mapping) -> dict[str, str]:
        """Returns the problems, by id, of a batch's examples that are not noted yet."""
        return {
            str(i): str(problem)
            for i, problem in zip(batch["id"], batch["problem"], strict=True)
            if problem and str(i) not in self.problems
        }

    def note(self, found: Mapping[str, str]) -> list[str]:
        """Adds the problems that any host found; returns a log line for each new one.

        Raises:
            TooManyUndecodable: They exceed `max_share` of the data set; lists them.
        """
        new = {i: p for i, p in found.items() if i not in self.problems}
        self.problems |= new
        if len(self.problems) > self.max_share * len(self.split):
            listed = "\n".join(f"  {i}: {p}" for i, p in self.problems.items())
            raise TooManyUndecodable(
                f"{len(self.problems)} of the {len(self.split)} examples of "
                f"{self.split.name} {self.split.split} do not decode, more than the "
                f"{self.max_share:.1%} that loader.max_undecodable allows:\n{listed}\n"
                "Mend or remove them and prepare the data set again, or allow more. "
                f"Those that a run has met are in its {FILE}: remove it to count anew."
            )
        return [f"{self.split.name}: {i} does not decode: {p}" for i, p in new.items()]


def save(problems: Mapping[str, Mapping[str, str]], workdir: epath.Path) -> None:
    """Writes the problems, by stream and id, so that a resumed run counts on."""
    text = json.dumps(problems, indent=1, ensure_ascii=False)
    write_whole(workdir / FILE, f"{text}\n".encode())


def load(workdir: epath.Path) -> dict[str, dict[str, str]]:
    """Reads what `save` wrote; without it, or with a warning if damaged, {}."""
    try:
        return json.loads((workdir / FILE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("%s is left out, it is damaged: %s", workdir / FILE, error)
        return {}
