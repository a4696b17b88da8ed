"""Files and folders that image ViTs' weights come in.

A file is `.npz` or `.safetensors`, or the index of several of the latter. A folder is
one of the Hugging Face Hub: weights, `config.json` of transformers or timm, and
`preprocessor_config.json`. Both files are read beside a single file too.
"""

import dataclasses
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.hub import HubPath
from sparse_tube_vit.checkpoints.image_vits.families import ELSEWHERE, FUSED
from sparse_tube_vit.config import PICKLES, InvalidConfig
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.storage import UnreachableStorage

INDEX = ".safetensors.index.json"

#: Weights of other libraries, by the option with which transformers 4 reads them.
_CONVERTED = {".msgpack": "from_flax", ".h5": "from_tf"}
_UNREAD = (*PICKLES, *_CONVERTED)
_READ = (".npz", ".safetensors", INDEX)

#: The end of the name of one of several files.
_SHARD = r"-\d+-of-\d+[.]safetensors$"

#: Files of weights in a folder, the first that there is.
_NAMES = ("model.safetensors", f"model{INDEX}")


#: Arrays of weights that are not those of a model, by pattern, and what to do.
_ALTERED = {
    r"\blora_|\.base_layer\.|\bmodules_to_save\.": "is of an adapter (LoRA). Merge "
    "it: `model.merge_and_unload().save_pretrained(FOLDER)`.",
    r"\.(SCB|qweight|qzeros|absmax|weight_scale(_inv)?)$": "is quantized. Take the "
    "weights in float32, bfloat16 or float16.",
}

#: Errors of the readers for a damaged file.
_DAMAGED = (safetensors.SafetensorError, zipfile.BadZipFile, EOFError)


class UnreadableWeights(TubeViTError, ValueError):
    """Weights that are missing, damaged, or not of a known kind."""


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of an image ViT.

    Attributes:
        weights: Path of the weights or of their index.
        config: Content of `config.json`, {} without one.
        preprocessor: Content of `preprocessor_config.json`, {} without one.
    """

    weights: epath.Path | HubPath
    config: Mapping
    preprocessor: Mapping


def holds_image_vit(path) -> bool:
    """Returns whether a path is of an image ViT's weights, not of a stored model.

    Folders are told apart by `config.json`: that of a release has a section "release";
    those of transformers and timm have `model_type` or `architecture`, or nothing of a
    release. Without one, the names of the arrays tell.

    Args:
        path: As for `init.weights`.

    Raises:
        UnreachableStorage: The storage does not answer.
    """
    name = str(path)
    if name.endswith((*_READ, *_UNREAD)):
        return True
    with storage.reaching(name):
        folder = stored.open_path(name)
        if not folder.is_dir():
            return False
        files = {entry.name for entry in folder.iterdir()}
        # Whatever lies beside checkpoints is the run's.
        held = "checkpoints" not in files and any(
            file.endswith((*_READ, *_UNREAD)) for file in files
        )
        if stored.CONFIG not in files:
            lone = stored.WEIGHTS in files and _is_of_release(folder / stored.WEIGHTS)
            return held and not lone
        try:
            config = _json(folder / stored.CONFIG)
        except UnreadableWeights:  # whose release it is says so better
            return False
    if {"model_type", "architecture", "architectures"} & {*config}:
        return True
    return held and not {"release", "config", "class_names", "versions"} & {*config}


def _is_of_release(path):
    """Returns whether a file's arrays have our names; False if it is damaged."""
    with stored.on_disk(path) as local:
        try:
            with safetensors.safe_open(local, "np") as arrays:
                names = [*arrays.keys()]
        except Exception:  # as in `read_arrays`, which says what is wrong
            return False
    return any(name.startswith("stem/") for name in names)


def refuse_normalization(path, normalization: str) -> None:
    """Raises InvalidConfig if a normalization is given for a stored model."""
    if normalization:
        raise InvalidConfig(
            f"{path} is not an image ViT's weights: it takes no normalization."
        )


def find(path) -> Files:
    """Finds an image ViT's files.

    Raises:
        UnreadableWeights: There are no weights, or they are pickled.
        UnreachableStorage: The storage does not answer.
    """
    with storage.reaching(str(path)):
        root = stored.open_path(path)
        is_folder = root.is_dir()
        folder = root if is_folder else root.parent
        weights = _weights_in(root) if is_folder else root
        if weights.name.endswith(_UNREAD):
            if not weights.exists():
                raise UnreadableWeights(f"{weights} does not exist.")
            pickled = weights.name.endswith(PICKLES)
            raise UnreadableWeights((_pickled if pickled else _converted)(weights))
        if re.search(_SHARD, weights.name):
            raise UnreadableWeights(
                f"{weights} has a part of the weights: download all of them and "
                f"model{INDEX}, which lists them, and give the folder."
            )
        config = _json(folder / stored.CONFIG)
        if "release" in config:
            raise UnreadableWeights(
                f"{path} is a part of the release {folder}: give the folder."
            )
        preprocessor = _json(folder / "preprocessor_config.json")
        preprocessor = preprocessor or _json(folder / "processor_config.json")
    return Files(weights, config, preprocessor.get("image_processor", preprocessor))


def _weights_in(folder):
    names = sorted(entry.name for entry in folder.iterdir())
    for name in (*_NAMES, *[n for n in names if n.endswith(_READ)]):
        if name in names:
            break
    else:
        for kinds in (PICKLES, tuple(_CONVERTED)):
            if unread := [n for n in names if n.endswith(kinds)]:
                return folder / unread[0]
        raise UnreadableWeights(
            f"{folder} has no weights (.safetensors or .npz), but "
            f"{', '.join(names[:8]) or 'nothing'}."
        )
    others = [n for n in names if n.endswith(_READ) and n not in _NAMES]
    if name not in _NAMES and len(others) > 1 and not re.search(_SHARD, name):
        raise UnreadableWeights(
            f"{folder} has several files of weights: name one of {', '.join(others)}."
        )
    return folder / name


def _download(path):
    """Returns the line that copies a repository of the Hub and goes to a file."""
    if not isinstance(path, HubPath):
        return ""
    name = path.repository.rpartition("/")[2]
    folder = PurePosixPath(name) / path.path.parent
    return f"  hf download {path.repository} --local-dir {name}; cd {folder}\n"


def _pickled(path):
    options = "map_location='cpu', weights_only=True"
    read = f"weights = torch.load({path.name!r}, {options})"
    new = re.sub(r"[.][^.]*$", "", path.name)
    if shard := re.fullmatch(r"(.*)-\d+(-of-\d+)", new):
        new = shard[1]
        files = path.name.replace(shard[0], f"{new}-*{shard[2]}")
        read = (
            f"weights = {{}}\n  for file in glob.glob({files!r}): "
            f"weights.update(torch.load(file, {options}))"
        )
    return (
        f"{path} is a pickle, which can run code when it is read: it is not read here. "
        "To convert it in its folder, where its config.json and "
        "preprocessor_config.json stay, with torch and safetensors installed:\n"
        f"{_download(path)}"
        "  import argparse, glob, torch; from safetensors.torch import save_file\n"
        "  torch.serialization.add_safe_globals([argparse.Namespace])\n"
        f"  {read}\n"
        "  for key in ('state_dict', 'model_state_dict', 'model', 'teacher', "
        "'student'): weights = weights.get(key, weights)\n"
        "  save_file({k: x.contiguous().clone() for k, x in weights.items() if "
        f"torch.is_tensor(x)}}, {f'{new}.safetensors'!r})"
    )


def _converted(path):
    option = next(x for kind, x in _CONVERTED.items() if path.name.endswith(kind))
    folder = "." if isinstance(path, HubPath) else str(path.parent)
    return (
        f"{path} has the weights of another library, which are not read here. To "
        "convert them, where torch, transformers below 5 and that library are "
        f"installed:\n{_download(path)}"
        "  from transformers import AutoModel\n"
        f"  model = AutoModel.from_pretrained({folder!r}, {option}=True)\n"
        f"  model.save_pretrained({folder!r})"
    )


def _json(path):
    """Returns the object in a JSON file without its nulls; {} where there is none."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        content = _without_nulls(content)
    except UnreachableStorage:
        raise
    except (ValueError, RecursionError) as error:  # of brackets too deep
        raise UnreadableWeights(f"{path} cannot be read: {error}") from error
    return content


def _without_nulls(x):
    if not isinstance(x, dict):
        return x
    return {key: _without_nulls(value) for key, value in x.items() if value is not None}


def read_arrays(path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file in float32, fused layers split into their parts.

    Those of `ELSEWHERE` (text encoders, decoders) have their shape and no content.

    Args:
        path: An `.npz` or `.safetensors` file, or the index of several of the latter;
            local, or at gs:// or hf://.

    Raises:
        UnreadableWeights: The file is missing, damaged or of another kind.
        UnreachableStorage: The storage does not answer.
    """
    try:
        path = path if isinstance(path, HubPath) else stored.open_path(path)
        if path.name.endswith(INDEX):
            names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
            parts = [_read_file(path.parent / name) for name in names]
            file = {name: x for part in parts for name, x in part.items()}
        else:
            file = _read_file(path)
    except (UnreachableStorage, UnreadableWeights):
        raise
    except Exception as error:  # each reader has its own for a damaged file
        raise UnreadableWeights(f"{path} cannot be read: {error}") from error
    for pattern, why in _ALTERED.items():
        if altered := [name for name in file if re.search(pattern, name)]:
            raise UnreadableWeights(f"{path} (it has {altered[0]}) {why}")
    for name in [*file]:
        if not (found := _fused(name)):
            continue
        fused, parts = found
        x = file.pop(name)
        for part, y in zip(parts, np.split(x, len(parts)), strict=True):
            # torch's in_proj_weight, and in_proj_bias, have no dot
            file[name.replace(fused, part).replace("proj_", "proj.")] = y
    return file


def _fused(name):
    if not re.search(r"[._](weight|bias)$", name):
        return None
    return next(
        ((k, v) for k, v in FUSED.items() if re.search(rf"\b{re.escape(k)}[._]", name)),
        None,
    )


def _read_file(path):
    with stored.on_disk(path) as local:
        try:
            if local.name.endswith(".npz"):
                with np.load(local, allow_pickle=False) as arrays:
                    return {name: _float32(arrays[name]) for name in arrays}
            with safetensors.safe_open(local, "np") as arrays:
                return {name: _tensor(arrays, name) for name in [*arrays.keys()]}
        except Exception as error:  # each reader has its own for a damaged file
            why = _is_instead(local, error) if local.exists() else ""
            if not why:
                raise
            raise UnreadableWeights(f"{path} cannot be read: {why}") from error


def _is_instead(path, error):
    """Returns what a file is in place of weights, and what to do; "" if unknown."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty. Download it again."
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS to the file, which `git lfs pull` fetches."
    if start.lstrip().startswith(b"<"):
        return "it is a web page (HTML). Download the file itself, by its own link."
    if (
        isinstance(error, _DAMAGED)
        or not start.startswith(b"PK")
        and path.suffix == ".npz"
    ):
        return f"{error}. It is damaged or cut short: download it again."
    return ""


def _tensor(arrays, name):
    if elsewhere(name):
        return np.broadcast_to(np.float32(0), arrays.get_slice(name).get_shape())
    return _float32(arrays.get_tensor(name))


def _float32(x):
    # numpy stores bfloat16 as two bytes of nothing known
    return (x.view(ml_dtypes.bfloat16) if x.dtype == "V2" else x).astype(np.float32)


def elsewhere(name: str) -> str:
    """Returns the reason why an array is not read, or ""."""
    return next((why for k, why in ELSEWHERE.items() if re.match(k, name)), "")
