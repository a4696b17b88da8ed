"""`imagenet2012`: ImageNet (ILSVRC 2012) from its folders of images.

The directory is that of the unpacked official archives: `train/<wnid>/<file>`, and
`val/` or `validation/` with the same folders or with the 50,000 files side by side.
Without `train` and `val` the class folders themselves are the training split.

The classes are the 1,000 WordNet ids in sorted order, which is the official one and
TFDS's: a head fits this data set and the imagenet2012 that TFDS prepares.
"""

import tensorflow_datasets as tfds
from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.datasets.builders import builder, folders
from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.errors import DatasetError

SPLITS = {"train": ("train",), "validation": ("val", "validation")}


class NoImageNetFolder(DatasetError):
    """The directory has not the layout or the classes of ImageNet."""


class ImageNet2012(builder.Builder):
    """ImageNet, of the listing that `read` returns."""

    name = "imagenet2012"
    kind = "image"

    @classmethod
    def read(cls, images) -> builder.Listing:
        """Lists the images; an example's id is its path below the directory.

        Files without a suffix of images and links that lead nowhere are in `left_out`.
        Classes without an image add a note.

        Raises:
            UnreadableFile: A folder cannot be listed.
            NoImageNetFolder: There is no image, or a folder that is not a class.
        """
        images = epath.Path(images)
        class_names = _official("labels.txt")
        classes = set(class_names)
        validation = {
            f"ILSVRC2012_val_{i:08d}": label
            for i, label in enumerate(_official("validation_labels.txt"), start=1)
        }
        splits, left_out, notes = {}, [], []
        for split, root in _roots(images).items():
            examples, present = [], set()
            files, unusable = storage.files_below(root)
            left_out += [
                Row(split, path.relative_to(images).as_posix(), status=reason)
                for path, reason in unusable.items()
            ]
            for path in files:
                name = path.relative_to(images).as_posix()
                folder = path.relative_to(root).parent.as_posix()
                if reason := folders.unfit(name, "image"):
                    left_out.append(Row(split, name, status=reason))
                    continue
                if folder == "." and split == "validation" and path.stem in validation:
                    label = validation[path.stem]
                elif folder in classes:
                    label = folder
                else:
                    raise NoImageNetFolder(
                        f"{path} is not in a folder of one of ImageNet's 1000 WordNet"
                        " ids; prepare images of other classes as image_folder"
                    )
                examples.append(builder.ListedExample(name, label, path))
                present.add(label)
            if examples:
                splits[split] = examples
            if missing := len(classes) - len(present):
                notes.append(f"{missing} of the 1000 classes have no image in {split}")
        if not splits:
            raise NoImageNetFolder(
                f"no images in {images}; expected train/<wnid>/<file> and"
                " val/<wnid>/<file> or val/ILSVRC2012_val_<number>.JPEG"
            )
        return builder.Listing(class_names, splits, tuple(left_out), tuple(notes))


def _roots(images: epath.Path) -> dict[str, epath.Path]:
    """Returns the directory of each split."""
    roots = {}
    for split, names in SPLITS.items():
        matches = [images / name for name in names if (images / name).is_dir()]
        if len(matches) > 1:
            raise NoImageNetFolder(
                f"{split} could be {' or '.join(map(str, matches))}; keep one of them"
            )
        if matches:
            roots[split] = matches[0]
    return roots or {"train": images}


def _official(file: str) -> tuple[str, ...]:
    """Returns the lines of TFDS's list of classes, or of the validation labels."""
    return (*tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text().split(),)
