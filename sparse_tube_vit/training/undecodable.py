"""Counts and names of examples that cannot be decoded."""

from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.errors import TubeViTError


class TooManyUndecodable(TubeViTError, RuntimeError):
    """More of a data set than allowed does not decode."""


class Undecodable:
    """Counts and names what does not decode in one data set, and stops past a share."""

    def __init__(self, split: Split, max_share: float):
        self.split, self.max_share = split, max_share
        self.problems = {}  # id -> what is wrong

    def find(self, batch: dict) -> dict[str, str]:
        """id -> what is wrong, of the examples of a batch that are not noted yet."""
        return {
            str(i): str(problem)
            for i, problem in zip(batch["id"], batch["problem"], strict=True)
            if problem and str(i) not in self.problems
        }

    def note(self, found: dict[str, str]) -> list[str]:
        """Takes note of what any host found; returns a line for every example.

        Raises:
          TooManyUndecodable: more than `max_share` of the data set; lists them.
        """
        new = {i: p for i, p in found.items() if i not in self.problems}
        self.problems |= new
        if len(self.problems) > self.max_share * len(self.split):
            listed = "\n".join(f"  {i}: {p}" for i, p in self.problems.items())
            raise TooManyUndecodable(
                f"{len(self.problems)} of the {len(self.split)} examples of "
                f"{self.split.name} {self.split.split} do not decode, more than the "
                f"{self.max_share:.1%} that loader.max_undecodable allows:\n{listed}\n"
                "Mend or remove them and prepare the data set again, or allow more."
            )
        return [f"{self.split.name}: {i} does not decode: {p}" for i, p in new.items()]
