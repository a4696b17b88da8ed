"""A stand-in for the Hugging Face Hub on 127.0.0.1, its repositories in memory.

It answers what huggingface_hub asks to list, download and upload models: small files
arrive inside the commit, in base64, and large ones by the LFS protocol before it.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories, and the server that gives and takes them.

    Attributes:
        repositories: USER/NAME -> path -> bytes, of branch main.
        revisions: (USER/NAME, revision) -> path -> bytes, of other branches and tags,
            and of the commits whose hashes were given.
        private: Repositories that need a token.
        commits: (repository, summary) of every commit.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[tuple[str, str]] = []
        self.uploaded: dict[str, bytes] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextlib.contextmanager
def running(monkeypatch, cache):
    """A Hub that huggingface_hub uses, with an empty cache."""
    from huggingface_hub import constants

    hub = Hub()
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self):
        path = self.path.partition("?")[0]
        info = r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?"
        if found := re.fullmatch(info, path):
            if (files := self._files(found[1], found[2] or "main")) is not None:
                siblings, sha = [{"rfilename": name} for name in files], _sha(files)
                self.hub.revisions[found[1], sha] = dict(files)
                self._json({"id": found[1], "sha": sha, "siblings": siblings})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            if (files := self._files(found[1], found[2])) is not None:
                entries = [
                    {"type": "file", "path": name, "size": len(x), "oid": _etag(x)}
                    for name, x in files.items()
                ]
                self._json(entries)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (files := self._files(found[1], found[2])) is None:
                return
            if found[3] not in files:
                return self._refuse(404, "EntryNotFound")
            data = files[found[3]]
            self._send(
                200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": _sha(files)}
            )
        else:
            self._refuse(404, "")

    do_HEAD = do_GET

    def do_PUT(self):
        self.hub.uploaded[self.path.rpartition("/")[2]] = self._body()
        self._send(200, b"")

    def do_POST(self):
        path, body = self.path.partition("?")[0], self._body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                return self._json({"url": f"{self.hub.url}/{name}"}, 409)
            self.hub.repositories[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            self._json({"url": f"{self.hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs"
                    if file["path"].endswith(".safetensors")
                    else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **file,
                    "actions": {"upload": {"href": f"{self.hub.url}/up/{file['oid']}"}},
                }
                for file in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            files = self.hub.repositories[found[1]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.hub.commits.append((found[1], value["summary"]))
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
                elif line["key"] == "lfsFile":
                    data = self.hub.uploaded[value["oid"]]
                    assert hashlib.sha256(data).hexdigest() == value["oid"]
                    files[value["path"]] = data
            url = f"{self.hub.url}/{found[1]}/commit/{_sha(files)}"
            self._json({"commitUrl": url, "commitOid": _sha(files)})
        else:
            self._refuse(404, "")

    def _files(self, name, revision):
        """Returns a revision's files, or answers that it may not be read."""
        allowed = name not in self.hub.private or "Authorization" in self.headers
        if name not in self.hub.repositories or not allowed:
            return self._refuse(404 if allowed else 401, "RepoNotFound")
        revision = urllib.parse.unquote(revision)
        if revision == "main":
            return self.hub.repositories[name]
        if (name, revision) in self.hub.revisions:
            return self.hub.revisions[name, revision]
        self._refuse(404, "RevisionNotFound")

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refuse(self, status, code):
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _json(self, value, status=200):
        content = {"Content-Type": "application/json"}
        self._send(status, json.dumps(value).encode(), content)

    def _send(self, status, data, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def _etag(data):
    return hashlib.sha1(data).hexdigest()


def _sha(files):
    """A repository's commit: the hash of its contents."""
    lines = (f"{name} {_etag(data)}\n" for name, data in sorted(files.items()))
    return _etag("".join(lines).encode())
