"""Preparation of the embedded data sets `moving_shapes` on first use."""

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets.builders.moving_shapes import MovingShapes
from sparse_tube_vit.datasets.preparing.write import write_dataset
from sparse_tube_vit.datasets.reading import INFO, DatasetNotPrepared
from sparse_tube_vit.log import log


def prepare_embedded(config: ConfigDict) -> None:
    """Prepares the embedded data sets of a config, unless this version is there.

    Args:
        config: Config whose streams and evaluations name the data sets.

    Raises:
        DatasetNotPrepared: There is no embedded data set of that name.
    """
    sources = (*config.streams.values(), *config.evaluations.values())
    for dataset in sorted({source.dataset for source in sources}):
        name, _, kind = dataset.partition("/")
        if name != MovingShapes.name:
            continue
        if kind not in MovingShapes.KINDS:
            raise DatasetNotPrepared(
                f"there is no data set {dataset!r}; the embedded ones are"
                f" {', '.join(f'{name}/{kind}' for kind in MovingShapes.KINDS)}"
            )
        builder = MovingShapes(config=kind, data_dir=config.data_dir)
        if not (builder.directory / INFO).exists():
            log.info("Making %s in %s (once)", dataset, builder.directory)
            write_dataset(builder)
