"""Config files: finding them, their arguments, and the smoke test's smaller sizes."""

import difflib
import sys
from pathlib import Path

from ml_collections import ConfigDict

from sparse_tube_vit.config.keys import InvalidConfig

_PACKAGE = Path(__file__).resolve().parents[1]

#: The folder `configs/` of an installation, or of a clone.
SHIPPED = next(
    (x for x in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if x.is_dir()), None
)


def find(name: str) -> Path:
    """Returns the path of a config file, which need not exist.

    Args:
        name: A path. One that does not exist names a file that comes with the package:
            "configs/kinetics.py", "kinetics.py" or "kinetics".
    """
    path = Path(name)
    if SHIPPED and not path.is_file() and path.parent in (Path(), Path("configs")):
        shipped = SHIPPED / path.with_suffix(path.suffix or ".py").name
        if shipped.is_file() and not shipped.name.startswith("_"):
            return shipped
    return path


def explain_missing(file: Path) -> str:
    """Returns a message that a config file does not exist, with the nearest name."""
    names = [path.stem for path in SHIPPED.glob("[!_]*.py")] if SHIPPED else []
    nearest = difflib.get_close_matches(file.stem, names, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"There is no config file {file}.{hint}"


def make_neighbours_importable(file: Path) -> None:
    """Lets a file in a folder `configs` import others in it, `from configs import x`.

    The files that come with the package do not need it.
    """
    folder = file.resolve().parent
    if folder.name == "configs" and folder.parent != _PACKAGE:
        sys.path.insert(0, str(folder.parent))


def arguments(given: str, **allowed: tuple[str, ...] | str | bool) -> ConfigDict:
    """Parses the arguments of a config file, "key=value,key=value,switch".

    Args:
        given: Text after the colon in --config=FILE:given.
        allowed: For every key a tuple of its values, the first one being the default; a
            string, the default of a key with any value; or False, for a switch without
            a value.

    Returns:
        The value of every key.

    Raises:
        InvalidConfig: A key or a value is not allowed.
    """
    values = {k: v[0] if isinstance(v, tuple) else v for k, v in allowed.items()}
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        choices = allowed.get(key, ())
        if choices is False and not equals:
            values[key] = True
        elif value and (isinstance(choices, str) or value in (choices or ())):
            values[key] = value
        else:
            takes = []
            for k, v in allowed.items():
                ways = [f"{k}={v or '...'}"] if isinstance(v, str) else [k]
                takes += [f"{k}={x}" for x in v] if isinstance(v, tuple) else ways
            raise InvalidConfig(
                f"The config takes no argument {part!r}; it takes "
                f"{', '.join(takes) or 'none'}."
            )
    return ConfigDict(values)


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks a config to two minutes on a CPU, on the embedded data set.

    Tubes, losses, augmentation and all else that is not a size stay. The run starts
    from random parameters, whatever `init.weights` is.
    """
    width, tubes = config.model.width, config.model.tubes
    config.total_steps = 20
    config.optimizer.warmup_steps = 2
    config.log_every_steps = 5
    config.evaluate_every_steps = 0
    config.clip.update(frames=min(40, config.clip.frames), size=64)
    config.model.update(depth=2, width=48, mlp_dim=96, heads=3, dtype="float32")
    if not isinstance(tubes, str):
        config.model.tubes = tuple(
            tube | {"channels": -(-tube["channels"] * 48 // width)}
            if tube.get("channels")
            else tube
            for tube in tubes
        )
    if config.model.gate_after is not None:
        config.model.gate_after = 1
    if config.optimizer.trained_layers:
        config.optimizer.trained_layers = 1
    config.init.update(weights="", keep_heads=(), fresh=(), positions="drop")
    crowds = {s.head for s in config.streams.values() if s.loss == "sigmoid"}
    for source in (*config.streams.values(), *config.evaluations.values()):
        name = "crowds" if source.head in crowds else f"{source.kind}s"
        source.update(dataset=f"moving_shapes/{name}", batch_size=4)
    for source in config.streams.values():
        source.split = "train"
    for source in config.evaluations.values():
        source.split = "test"
        source.update(temporal_views=1, spatial_views=1)
    return config
