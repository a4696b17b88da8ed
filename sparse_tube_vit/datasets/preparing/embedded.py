"""Preparation of the embedded data sets `moving_shapes` on first use."""

from collections.abc import Iterable

from sparse_tube_vit.datasets.builders.moving_shapes import MovingShapes
from sparse_tube_vit.datasets.preparing.write import write_dataset
from sparse_tube_vit.datasets.reading import INFO, DatasetNotPrepared
from sparse_tube_vit.log import log


def prepare_embedded(datasets: Iterable[str], data_dir) -> None:
    """Prepares those data sets that are embedded, unless this version is there.

    Args:
        datasets: Names of data sets; others than `moving_shapes/...` are skipped.
        data_dir: Directory of prepared data sets.

    Raises:
        DatasetNotPrepared: There is no embedded data set of that name.
    """
    for dataset in sorted(set(datasets)):
        name, _, kind = dataset.partition("/")
        if name != MovingShapes.name:
            continue
        if kind not in MovingShapes.KINDS:
            raise DatasetNotPrepared(
                f"there is no data set {dataset!r}; the embedded ones are"
                f" {', '.join(f'{name}/{kind}' for kind in MovingShapes.KINDS)}"
            )
        builder = MovingShapes(config=kind, data_dir=data_dir)
        if not (builder.directory / INFO).exists():
            log.info("Making %s in %s (once)", dataset, builder.directory)
            write_dataset(builder)
