"""A stand-in for Google Cloud Storage on 127.0.0.1, its objects in memory.

The real clients talk to it, in this process and in workers: gcsfs, tensorstore and
array_record.
"""

import functools
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gcsfs
from etils import epath


class Storage:
    """Objects, and the server that gives and takes them.

    Attributes:
        objects: (bucket, name) -> (bytes, generation).
        requests: (method, path) of every request.
        forbidden: (bucket, beginning of names) that nobody may read, "" for none.
        refusal: HTTP status that says so.
        hidden: Buckets that nobody may look up, by `storage.buckets.get`.
    """

    def __init__(self):
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[tuple[str, str], bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.forbidden, self.refusal = ("", ""), 403
        self.hidden: set[str] = set()
        self.lock, self.generation = threading.RLock(), 0
        handler = type("Handler", (_Handler,), {"storage": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, at, data: bytes) -> int:
        with self.lock:
            self.generation += 1
            self.objects[at] = data, self.generation
            return self.generation

    def forbids(self, at) -> bool:
        bucket, beginning = self.forbidden
        return bool(bucket) and at[0] == bucket and at[1].startswith(beginning)

    def upload(self, source, bucket: str, prefix: str = "") -> None:
        """Puts a local file, or all files of a directory, into a bucket."""
        files = [source] if source.is_file() else source.rglob("*")
        for file in files:
            if file.is_file():
                name = str(file.relative_to(source)) if file != source else ""
                at = "/".join(part for part in (prefix, name) if part)
                self.put((bucket, at), file.read_bytes())

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(
                name
                for b, name in self.objects
                if b == bucket and name.startswith(prefix)
            )


@functools.cache
def _storage() -> Storage:
    """The one storage of this process: tensorstore keeps the address it first reads."""
    storage = Storage()
    threading.Thread(target=storage.server.serve_forever, daemon=True).start()
    return storage


def use(monkeypatch) -> Storage:
    """Has the clients of gs:// use a storage."""
    storage = _storage()
    for name, value in {
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": storage.url,  # array_record
        "STORAGE_EMULATOR_HOST": storage.url,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": storage.url,
        "TENSORSTORE_GCS_HTTP_VERSION": "1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    # Clients keep addresses and listings.
    gcsfs.GCSFileSystem.clear_instance_cache()
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    return storage


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients may end a connection at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: Storage

    def do_GET(self):
        self._answer()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def _answer(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self._body()
        path = url.path.removeprefix("/download").removeprefix("/storage/v1")
        self.storage.requests.append((self.command, url.path))
        with self.storage.lock:
            if "/upload/" in url.path:
                return self._upload(url, query, body)
            if found := re.fullmatch(
                r"/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", path
            ):
                bucket, name, to, new = map(urllib.parse.unquote, found.groups())
                if (bucket, name) not in self.storage.objects:
                    return self._json({}, 404)
                data, _ = self.storage.objects[bucket, name]
                self.storage.put((to, new), data)
                return self._json({"done": True, "resource": {"name": new}})
            if found := re.fullmatch(r"/b/([^/]+)/o/([^/]+)", path):
                at = tuple(map(urllib.parse.unquote, found.groups()))
                if self.storage.forbids(at):
                    return self._json({}, self.storage.refusal)
                if query.get("alt") == "media":
                    return self._media(at, query)
                if at not in self.storage.objects:
                    return self._json({}, 404)
                if self.command == "DELETE":
                    del self.storage.objects[at]
                    return self._send(204, b"")
                return self._json(self._resource(at))
            if found := re.fullmatch(r"/b/([^/]+)/o", path):
                return self._list(found[1], query)
            if found := re.fullmatch(r"/b/([^/]+)", path):
                if found[1] in self.storage.hidden:
                    return self._json({}, 403)
                return self._json({"name": found[1], "location": "US"})
            self._json({}, 404)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _upload(self, url, query, body):
        bucket = re.search(r"/b/([^/]+)/o", url.path)[1]
        if query.get("upload_id"):
            return self._upload_part(query, body)
        at = bucket, query["name"]
        if query["uploadType"] == "resumable":
            number = str(len(self.storage.uploads))
            self.storage.uploads[number] = at, b""
            at = f"/upload/storage/v1/b/{bucket}/o?upload_id={number}"
            where = self.storage.url + at
            return self._send(200, b"", {"Location": where})
        if self._refused(at, query):
            return self._json({}, 412)
        self.storage.put(at, body)
        return self._json(self._resource(at))

    def _upload_part(self, query, body):
        number = query["upload_id"]
        at, data = self.storage.uploads[number]
        data += body
        self.storage.uploads[number] = at, data
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or len(data) < int(total):
            span = {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
            self._send(308, b"", span)
        else:
            self.storage.put(at, data)
            self._json(self._resource(at))

    def _refused(self, at, query):
        wanted = query.get("ifGenerationMatch")
        _, generation = self.storage.objects.get(at, (b"", 0))
        return wanted is not None and int(wanted) != generation

    def _media(self, at, query):
        if at not in self.storage.objects:
            return self._send(404, b"")
        data, generation = self.storage.objects[at]
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._send(304, b"")
        if self._refused(at, query):
            return self._send(412, b"")
        headers, status = {"x-goog-generation": str(generation)}, 200
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            if span[1]:
                first, last = int(span[1]), int(span[2] or len(data))
            else:  # the last so many
                first, last = max(len(data) - int(span[2]), 0), len(data)
            last = min(last, len(data) - 1)
            if first >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self._send(status, data, headers)

    def _list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in self.storage.names(bucket, prefix):
            rest = name[len(prefix) :]
            if name < query.get("startOffset", "") or name >= query.get(
                "endOffset", "\U0010ffff"
            ):
                continue
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self._resource((bucket, name)))
        items = items[: int(query.get("maxResults", 10**6))]
        self._json({"items": items, "prefixes": sorted(prefixes)})

    def _resource(self, at):
        data, generation = self.storage.objects[at]
        return {
            "name": at[1],
            "bucket": at[0],
            "size": str(len(data)),
            "generation": str(generation),
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def _json(self, value, status=200):
        content = {"Content-Type": "application/json"}
        self._send(status, json.dumps(value).encode(), content)

    def _send(self, status, data, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass
