"""Class names of heads and data sets, and checks that they agree."""

import re
from collections.abc import Iterable

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.errors import DatasetError, TubeViTError
from sparse_tube_vit.log import log


class ClassNamesDiffer(TubeViTError, ValueError):
    """A data set and its head differ in their classes or the order of them."""


def classes_by_head(sources: Iterable[tuple[str, Split]]) -> dict[str, tuple[str, ...]]:
    """Returns the class names of every head, from (head, split) pairs.

    Raises:
        ClassNamesDiffer: Two splits with the same head have different classes.
    """
    classes = {}
    for head, split in sources:
        check_classes(head, classes.setdefault(head, split.class_names), split)
    return classes


def check_classes(head: str, class_names: Iterable[str], split: Split) -> None:
    """Checks that a split has the class names of a head, in the same order.

    Raises:
        ClassNamesDiffer: It has other classes, or another order.
    """
    ours, theirs = list(class_names), list(split.class_names)
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        what = f"{len(ours)} classes, but {split.name} has {len(theirs)}"
    else:
        pairs = zip(ours, theirs, strict=True)
        label = next(i for i, (a, b) in enumerate(pairs) if a != b)
        what = (
            f"{ours[label]!r} as class {label}, but {split.name} has {theirs[label]!r}"
        )
    raise ClassNamesDiffer(
        f"Head {head!r} has {what}. Give the data set a head of its own, or prepare it "
        "with the same classes in the same order."
    )


_SIDES = {
    *("left", "right", "leftward", "rightward", "leftwards", "rightwards"),
    *("clockwise", "anticlockwise", "counterclockwise"),
    *("links", "rechts", "gauche", "droite", "izquierda", "derecha"),
    *("sinistra", "destra", "esquerda", "direita"),
}


def sided(class_names: Iterable[str]) -> list[str]:
    """Returns the names that tell left from right, which a mirrored clip does not."""

    def words(name):
        apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # of TurnLeft
        return set(re.findall(r"[^\W\d_]+", apart.lower()))

    return [name for name in class_names if words(name) & _SIDES]


def warn_of_flips(where: str, split: Split) -> None:
    """Warns of a stream that mirrors clips whose classes tell left from right."""
    if names := sided(split.class_names):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        log.warning(
            "%s mirrors clips at random, but classes of %s tell left from right: %s%s. "
            "If they do, set --config.%s.flip=False.",
            where,
            split.name,
            ", ".join(names[:3]),
            more,
            where,
        )


def classes_of(config: ConfigDict) -> dict[str, int | None]:
    """Returns the number of classes by head; None if its data set is not prepared."""
    classes = {}
    for stream in config.streams.values():
        try:
            split = reading.open_split(
                stream.dataset, stream.split, config.data_dir, stream.kind
            )
            classes[stream.head] = len(split.class_names)
        except DatasetError:
            classes.setdefault(stream.head, None)
    return classes
