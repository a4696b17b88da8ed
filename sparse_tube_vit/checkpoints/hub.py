"""Models on the Hugging Face Hub, at hf://USER/NAME[@REVISION][/PATH]."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sparse_tube_vit.log import log
from sparse_tube_vit.storage import UnreachableStorage

_URL = re.compile(r"hf://([^/@]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.*))?")


def is_hub(path) -> bool:
    """Returns whether the path is a URL of the Hub."""
    return os.fspath(path).startswith("hf://")


@dataclasses.dataclass(frozen=True)
class HubPath:
    """A file or folder in one commit of a model repository, read-only.

    It has the methods of pathlib that finding a model takes. Files are downloaded when
    they are read, to the cache of huggingface_hub.

    Attributes:
        repository: USER/NAME.
        commit: The commit's hash.
        files: Paths of all files of the commit.
        path: The path in the repository.
    """

    repository: str
    commit: str
    files: frozenset[str] = dataclasses.field(repr=False)
    path: PurePosixPath = PurePosixPath()

    @classmethod
    def of(cls, url: str) -> "HubPath":
        """Lists the files of a repository, with HF_HUB_OFFLINE=1 those in the cache.

        Raises:
            UnreachableStorage: The repository or revision does not exist, may not be
                read, or the Hub does not answer.
        """
        repository, revision, path = _parse(url)
        with _naming(url) as hub:
            if hub.is_offline_mode():
                folder = _cached(hub, repository, revision)
                cached = (file for file in folder.rglob("*") if file.is_file())
                files = [file.relative_to(folder).as_posix() for file in cached]
                commit = folder.name
            else:
                info = hub.HfApi().model_info(repository, revision=revision)
                files, commit = [file.rfilename for file in info.siblings], info.sha
                # Read next, and the cache notes which commit the revision is at.
                _snapshot(hub, repository, revision, ["config.json"])
        return cls(repository, commit, frozenset(files), PurePosixPath(path))

    def __truediv__(self, name) -> "HubPath":
        return dataclasses.replace(self, path=self.path / name)

    def __str__(self):
        return f"hf://{self.repository}@{self.commit}/{self.path}"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parent(self) -> "HubPath":
        return dataclasses.replace(self, path=self.path.parent)

    def is_dir(self) -> bool:
        return any(self.path in PurePosixPath(file).parents for file in self.files)

    def exists(self) -> bool:
        return str(self.path) in self.files or self.is_dir()

    def iterdir(self):
        depth = len(self.path.parts)
        inside = (PurePosixPath(file) for file in self.files)
        names = {f.parts[depth] for f in inside if self.path in f.parents}
        return (self / name for name in sorted(names))

    def read_bytes(self) -> bytes:
        return self.download().read_bytes()

    def download(self, items: Sequence[str] | None = None) -> Path:
        """Returns the local path of this file or folder.

        Args:
            items: Files and subfolders of a folder to download. None for a file.
        """
        if items is None and str(self.path) not in self.files:
            some = ", ".join(sorted(self.files)[:5]) or "no files"
            raise UnreachableStorage(f"{self}: the repository has {some}.")
        with _naming(self) as hub:
            if items is None:
                return Path(
                    hub.hf_hub_download(
                        self.repository, str(self.path), revision=self.commit
                    )
                )
            paths = [str(self.path / item) for item in items]
            files = [*paths, *(f"{path}/*" for path in paths)]
            return _snapshot(hub, self.repository, self.commit, files) / self.path


def _snapshot(hub, repository, revision, files):
    """Returns a revision's folder in the cache, with these files if it has them."""
    root = hub.snapshot_download(repository, revision=revision, allow_patterns=files)
    return Path(root)


def _cached(hub, repository, revision):
    """Returns the folder of a revision in the cache, by default of main.

    Where main was never asked for, it is the newest.
    """
    try:
        return _snapshot(hub, repository, revision, [])
    except hub.errors.LocalEntryNotFoundError:
        if revision:
            raise
    found = [
        snapshot
        for cached in hub.scan_cache_dir().repos
        if (cached.repo_type, cached.repo_id) == ("model", repository)
        for snapshot in cached.revisions
    ]
    if not found:
        raise FileNotFoundError("it is not in the cache, and HF_HUB_OFFLINE is set.")
    newest = max(found, key=lambda snapshot: snapshot.last_modified)
    log.warning("hf://%s is taken from commit %s", repository, newest.commit_hash)
    return newest.snapshot_path


def push(
    directory,
    url: str,
    private: bool = False,
    message: str = "",
    replaced: Sequence[str] = (),
) -> None:
    """Uploads a folder to a repository, in one commit; creates the repository.

    Args:
        directory: A local folder.
        url: hf://USER/NAME.
        private: Whether a new repository is private.
        message: The commit's.
        replaced: Patterns of files that the commit removes unless the folder has them.

    Raises:
        UnreachableStorage: The Hub refuses it or does not answer.
    """
    repository = check_repository(url)
    with _naming(url) as hub:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message=message,
            delete_patterns=[*replaced],
        )


def check_repository(url: str) -> str:
    """Returns USER/NAME of hf://USER/NAME; raises UnreachableStorage of other URLs."""
    repository, revision, path = _parse(url)
    if revision or path:
        raise UnreachableStorage(f"{url}: a release is uploaded to hf://USER/NAME.")
    return repository


def _parse(url):
    """Splits a URL into repository, revision or None, and path."""
    if not (parts := _URL.fullmatch(os.fspath(url))):
        raise UnreachableStorage(
            f"{url} is no model on the Hub, which is hf://USER/NAME, or "
            "hf://USER/NAME@REVISION/PATH."
        )
    repository, revision, path = parts.groups()
    return repository, revision, (path or "").strip("/")


@contextlib.contextmanager
def _naming(url):
    """Gives huggingface_hub; turns its errors into UnreachableStorage."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UnreachableStorage(
            f"{url} needs a package: pip install huggingface_hub"
        ) from error
    try:
        yield huggingface_hub
    except errors.GatedRepoError as error:
        why = "its terms must be accepted on its page first"
        raise UnreachableStorage(f"{url} cannot be reached: {why}.") from error
    except errors.RepositoryNotFoundError as error:
        raise UnreachableStorage(
            f"{url}: there is no such model repository, or it is private. To read a "
            "private one, set HF_TOKEN or log in with: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnreachableStorage(f"{url}: there is no such revision.") from error
    except Exception as error:  # HTTP errors, of huggingface_hub and of its client
        response = getattr(error, "response", None)
        why = str(error).strip() or type(error).__name__
        if getattr(response, "status_code", None) in (401, 403):
            why = f"{why}. Set HF_TOKEN, or log in with: hf auth login"
        raise UnreachableStorage(f"{url} cannot be reached: {why}") from error
