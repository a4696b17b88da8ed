"""An image ViT's weights as a model to be used, without training.

Features of an image are those of the library that the weights come from. A clip goes
through the same patches: those of two frames, a second apart, attend to each other.
VideoMAE's clips go through its tubes of two frames. A classifier is a head for images
and clips.
"""

from sparse_tube_vit.checkpoints import image_vits, pretrained, stored
from sparse_tube_vit.config import ConfigDict, default_config, stream
from sparse_tube_vit.log import log
from sparse_tube_vit.models.tubevit import make_model, param_shapes

#: Name of the head of a classifier in the weights.
HEAD = "classifier"

#: Clips of two seconds, of which a ViT of 2-D patches reads two frames.
FRAMES, FPS, STRIDE = 16, 8.0, 8

#: VideoMAE's clips: every fourth frame of 30 a second.
_TUBELETS_FPS = 7.5


def read(path, normalization: str = "") -> stored.StoredModel:
    """Reads an image ViT's weights as a stored model, of step 0.

    Args:
        path: As for `init.weights`.
        normalization: As `init.normalization`.

    Raises:
        InvalidConfig: There is no such normalization.
        UnreadableWeights, UnsupportedViT: As `image_vits.read`.
        WeightsDoNotMatch: Arrays are left over or missing.
        UnreachableStorage: The URL's storage does not answer.
    """
    vit = image_vits.read(path, normalization)
    if "positions" not in vit.arrays:
        raise image_vits.UnsupportedViT(
            f"{vit.source} has no position embeddings, which its features need. Take a "
            "file that has them; without, it can start a run: --config.init.weights."
        )
    class_names = {HEAD: vit.labels} if vit.labels and not vit.why_headless else {}
    config = encoder_config(str(path), vit, class_names)
    config.init.normalization = normalization
    model = make_model(
        config, {head: len(names) for head, names in class_names.items()}
    )

    shapes = param_shapes(model)
    params, report = pretrained.initial_params(config, model, shapes, class_names, vit)
    for note in report.notes:
        log.info("%s: %s", path, note)
    if vit.why_pooled_differs:
        log.warning(
            "%s: pooled features are not those of %s, tokens are: %s.",
            vit.source,
            vit.family.codebase,
            vit.why_pooled_differs,
        )
    if report.new:
        raise pretrained.WeightsDoNotMatch(
            f"{vit.source} lacks {', '.join(sorted(report.new))}, without which its "
            "features would be random. Take the whole file; this one can start a run: "
            "--config.init.weights."
        )
    return stored.StoredModel(
        name=report.source,
        description={"config": config.to_dict(), "class_names": class_names},
        step=0,
        averaged=False,
        params=params,
        why_headless=vit.why_headless,
    )


def encoder_config(path: str, vit: image_vits.ImageViT, class_names) -> ConfigDict:
    """Returns the config of an image ViT as a model with its patches as one tube."""
    config = default_config()
    config.total_steps, config.optimizer.warmup_steps = 1, 0  # as a run has some
    t, h, w = vit.patch
    if t == 1:
        config.clip.update(frames=FRAMES, fps=FPS, size=vit.size)
    else:
        config.clip.update(frames=vit.frames, fps=_TUBELETS_FPS, size=vit.size)
    stride = (STRIDE if t == 1 else t, h, w)
    config.model.update(vit.model | {"positions": "learned"})
    config.model.tubes = ({"kernel": vit.patch, "stride": stride},)
    config.init.update({"weights": path, "positions": "keep"})
    if class_names:
        config.init.head = HEAD
    for kind in ("image", "video") if class_names else ():
        source = {"kind": kind, "dataset": path, "head": HEAD, "batch_size": 1}
        config.streams[f"{kind}s"] = stream(**source, loss=vit.loss)
    return config
