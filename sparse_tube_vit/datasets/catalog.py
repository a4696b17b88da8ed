"""The data sets that can be prepared: their builders and options."""

import importlib

#: Builder classes by name, as "module:class".
BUILDERS = {
    "charades": "sparse_tube_vit.datasets.builders.charades:Charades",
    "image_folder": "sparse_tube_vit.datasets.builders.folders:ImageFolder",
    "imagenet2012": "sparse_tube_vit.datasets.builders.imagenet:ImageNet2012",
    "kinetics400": "sparse_tube_vit.datasets.builders.kinetics:Kinetics400",
    "kinetics600": "sparse_tube_vit.datasets.builders.kinetics:Kinetics600",
    "kinetics700": "sparse_tube_vit.datasets.builders.kinetics:Kinetics700",
    "moving_shapes": "sparse_tube_vit.datasets.builders.moving_shapes:MovingShapes",
    "something_something_v2": (
        "sparse_tube_vit.datasets.builders.something_something_v2:SomethingSomethingV2"
    ),
    "ucf101": "sparse_tube_vit.datasets.builders.ucf101:Ucf101",
    "video_folder": "sparse_tube_vit.datasets.builders.folders:VideoFolder",
}

#: (required, optional) options of `prepare` by data set.
OPTIONS = {
    "charades": (("videos", "annotations"), ("transcode",)),
    "image_folder": (("name", "images"), ("split_list",)),
    "imagenet2012": (("images",), ()),
    "kinetics400": (("videos", "annotations"), ("transcode",)),
    "kinetics600": (("videos", "annotations"), ("transcode",)),
    "kinetics700": (("videos", "annotations"), ("transcode",)),
    "moving_shapes": ((), ()),
    "something_something_v2": (("videos", "annotations"), ("transcode",)),
    "ucf101": (("videos", "annotations"), ("split", "transcode")),
    "video_folder": (("name", "videos"), ("split_list", "transcode")),
}


#: Data sets whose classes are in the order of their sorted names.
SORTED = (
    *("image_folder", "video_folder", "imagenet2012"),
    *("kinetics400", "kinetics600", "kinetics700"),
)

#: Number of classes of data sets with an official list of them.
OFFICIAL_CLASSES = {
    "charades": 157,
    "imagenet2012": 1000,
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "moving_shapes/crowds": 24,
    "moving_shapes/images": 6,
    "moving_shapes/videos": 24,
    "something_something_v2": 174,
    "ucf101": 101,
}


def builder_class(name: str) -> type:
    """Returns the builder class of a data set, one of `BUILDERS`."""
    module, cls = BUILDERS[name].split(":")
    return getattr(importlib.import_module(module), cls)
