"""Nearest neighbours and a linear probe on a model's pooled features."""

import importlib.util

import numpy as np

from sparse_tube_vit.datasets.builders import folders
from sparse_tube_vit.datasets.builders.folders import folder_kind, read_folder
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.evaluation.metrics import top_k
from sparse_tube_vit.inference.features import pooled
from sparse_tube_vit.inference.loaded import TrainedTubeViT
from sparse_tube_vit.log import log

FOLDS = 5


class NotProbeable(TubeViTError, ValueError):
    """The folder has too few classes or files, or splits that do not make a probe."""


class NoScikitLearn(TubeViTError, ImportError):
    """The linear probe needs a package that is not installed."""


def probe(
    tubevit: TrainedTubeViT,
    folder,
    kind: str | None = None,
    split_list=None,
    views: tuple[int, int] = (1, 1),
    neighbours: int = 5,
    batch_size: int | None = None,
) -> dict:
    """Measures how well the features tell a folder's classes apart.

    Args:
        tubevit: A loaded model.
        folder: As for `datasets.builders.folders.read_folder`.
        kind: "image" or "video", which to measure; None: videos, if there are any.
        split_list: As for `read_folder`.
        views: (temporal, spatial) views of videos, whose features are averaged.
        neighbours: K of the nearest neighbours.
        batch_size: Files per batch.

    Returns:
        Accuracies with their protocols, as JSON types.

    Raises:
        NotProbeable: The folder does not give two classes of two files.
        NoScikitLearn: scikit-learn is not installed.
        DatasetError: As `read_folder`.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise NoScikitLearn("The linear probe needs it: pip install scikit-learn")
    kind = kind or folder_kind(folder)
    listing = read_folder(folder, kind, split_list)
    if listing.left_out:
        first = listing.left_out[0]
        count = len(listing.left_out)
        log.warning("%d files left out, as %s: %s", count, first.id, first.status)
    fitted, measured = _splits(listing.splits)
    examples = [e for split in {fitted: 0, measured: 0} for e in listing.splits[split]]
    paths = [str(example.source) for example in examples]
    computed = [*pooled(tubevit, paths, views, batch_size, kind)]
    names = listing.class_names
    for file in computed:
        if file.problem:
            log.warning("%s: %s", file.path, file.problem)
    good = [i for i, file in enumerate(computed) if not file.problem]
    width = tubevit.model.options.width
    x = np.array([computed[i].result for i in good], np.float32).reshape(-1, width)
    y = np.array([names.index(examples[i].label) for i in good], int)
    train = None
    if fitted != measured:
        train = np.array([i < len(listing.splits[fitted]) for i in good], bool)
    folds = _check(y, train)
    scores = {
        "nearest_neighbours": nearest_neighbours(x, y, train, neighbours, len(names)),
        "linear_probe": linear_probe(x, y, train, folds, len(names)),
    }
    y = y if train is None else y[~train]
    alone = {"nearest_neighbours": "leave one out"}
    alone["linear_probe"] = f"{folds} stratified folds"
    results = {
        name: {
            "top1": float(top_k(y, of_files, 1).mean()),
            "protocol": alone[name] if train is None else f"{fitted} to {measured}",
        }
        for name, of_files in scores.items()
    }
    results["nearest_neighbours"]["k"] = neighbours
    clip, video = tubevit.config.clip, kind == "video"
    return results | {
        "model": tubevit.name,
        "folder": str(folder),
        "kind": kind,
        "classes": len(names),
        "files": len(good),
        "measured_files": len(y),
        "undecodable": [
            example.id
            for example, file in zip(examples, computed, strict=True)
            if file.problem
        ],
        "temporal_views": views[0] if video else 1,
        "spatial_views": views[1] if video else 1,
        "frames": clip.frames if video else 1,
        "fps": clip.fps,
        "size": clip.size,
    }


def _splits(splits):
    """Returns the splits to fit and to measure."""
    if len(splits) == 1:
        return next(iter(splits)), next(iter(splits))
    if test := folders.split_to_test_on(splits):
        return "train", test
    raise NotProbeable(
        f"The folder has the splits {', '.join(splits)}; a probe needs one, or train "
        f"and one of {', '.join(folders.TEST_SPLITS)}."
    )


def _check(y, train):
    """Returns the number of folds. Raises NotProbeable for too few files or classes."""
    counts = np.bincount(y if train is None else y[train])
    counts = counts[counts > 0]
    if len(counts) < 2 or (train is None and counts.min() < 2):
        raise NotProbeable(
            "A probe needs two classes at least, of two files each where there are no "
            f"splits; those that could be read have {counts.tolist()}."
        )
    if train is not None and train.all():
        raise NotProbeable("None of the files to measure on could be read.")
    return min(FOLDS, int(counts.min()))


def nearest_neighbours(
    x: np.ndarray, y: np.ndarray, train: np.ndarray | None, k: int, classes: int
) -> np.ndarray:
    """Returns the votes of the k nearest neighbours by cosine, weighted by similarity.

    A neighbour's weight is 0 (opposite) to 1; the votes for an example sum to 1.

    Args:
        x: Features (N, D).
        y: Labels (N,).
        train: (N,) bool, the examples to seek neighbours among; None: each example's
            neighbours are sought among all others.
        k: Number of neighbours; all, if there are fewer.
        classes: C.

    Returns:
        (M, C), for the M examples outside `train`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    alone = train is None
    known = np.ones(len(x), bool) if alone else train
    fitted = KNeighborsClassifier(
        min(k, known.sum() - alone),
        metric="cosine",
        weights=lambda distances: 1 - distances / 2,
    ).fit(x[known], y[known])
    # Without examples to predict, those fitted are, each by the others.
    found = fitted.predict_proba(None if alone else x[~known])
    votes = np.zeros((len(found), classes))
    votes[:, fitted.classes_] = found
    return votes


def linear_probe(
    x: np.ndarray,
    y: np.ndarray,
    train: np.ndarray | None,
    folds: int | None,
    classes: int,
) -> np.ndarray:
    """Returns the probabilities of a logistic regression (L2, C = 1).

    Arguments are those of `nearest_neighbours`; without `train`, each example is
    predicted by the folds that it is not in.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    scores = np.zeros((len(y), classes))
    if train is None:
        parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y)
    else:
        parts = [(np.flatnonzero(train), np.flatnonzero(~train))]
    for known, unknown in parts:
        regression = LogisticRegression(C=1.0, max_iter=5000)
        fitted = make_pipeline(StandardScaler(), regression)
        # The products are small: where cores are busy, threads that wait for each other
        # take 100 times as long.
        with threadpool_limits(1, "blas"):
            fitted.fit(x[known], y[known])
        columns = fitted.classes_
        scores[np.ix_(unknown, columns)] = fitted.predict_proba(x[unknown])
    return scores if train is None else scores[~train]
