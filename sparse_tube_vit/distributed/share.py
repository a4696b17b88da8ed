"""A host's share of every batch, for code that imports no jax."""

import dataclasses

from sparse_tube_vit.errors import IndivisibleBatch


@dataclasses.dataclass(frozen=True)
class Share:
    """A host's share of every batch: one of equal, contiguous ranges of its examples.

    Attributes:
        index: Number of the range.
        count: Number of ranges.
        parts: Number of equal parts of the share, each for its own devices of the host.
    """

    index: int = 0
    count: int = 1
    parts: int = 1

    def part_size(self, batch_size: int, where: str) -> int:
        """Returns the number of examples of a part.

        Args:
            batch_size: Over all hosts.
            where: The stream or evaluation, for the error.

        Raises:
            IndivisibleBatch: The batch has no equal parts of whole examples.
        """
        parts = self.count * self.parts
        if batch_size % parts:
            raise IndivisibleBatch(
                f"{where}.batch_size {batch_size} is not a multiple of {parts}, the "
                "equal parts of it that hosts load."
            )
        return batch_size // parts


#: That of a host alone.
ALL = Share()
