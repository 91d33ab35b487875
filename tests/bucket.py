"""A bucket of Google Cloud Storage in the memory of this process: as fsspec's filesystem for gs://, by which etils'
epath reads and writes, and as a server on the loopback address with the part of the JSON API that TensorStore uses.
Both have the same objects."""

import contextlib
import http.server
import itertools
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator
from unittest import mock

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from orbax.checkpoint._src.path import gcs_utils


class BucketFileSystem(MemoryFileSystem):
    """Paths are /bucket/object."""

    protocol = ("gcs", "gs")
    store: dict = {}
    pseudo_dirs = [""]
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


class _Server(http.server.BaseHTTPRequestHandler):
    """Objects are read, written, deleted and listed. Each write gives an object another generation."""

    protocol_version = "HTTP/1.1"
    files = BucketFileSystem()
    generations: dict[str, str] = {}
    counter = itertools.count(1)

    def do_GET(self):
        path, query = self._request()
        if path is None:
            return self._list(query)
        try:
            content = self.files.cat_file(path)
        except (FileNotFoundError, IsADirectoryError):
            return self._answer(404)
        generation = self._generation(path)
        if query.get("ifGenerationNotMatch") == generation:
            return self._answer(304)
        if query.get("ifGenerationMatch", generation) != generation:
            return self._answer(412)
        headers = {"x-goog-generation": generation}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            return self._answer(206, content[first : last + 1], **headers)
        self._answer(200, content, **headers)

    def do_POST(self):
        _, query = self._request()
        bucket = re.search(r"/b/([^/]+)/o", self.path)[1]
        path = f"/{bucket}/{query['name']}"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        here = self._generation(path) if self.files.exists(path) else "0"
        if query.get("ifGenerationMatch", here) != here:
            return self._answer(412)
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(path, body)
        self.generations[path] = str(next(self.counter))
        self._answer(200, json.dumps({"name": query["name"], "generation": self.generations[path]}).encode())

    def do_DELETE(self):
        path, query = self._request()
        if not self.files.exists(path):
            return self._answer(404)
        if query.get("ifGenerationMatch", self._generation(path)) != self._generation(path):
            return self._answer(412)
        self.files.rm_file(path)
        self._answer(204)

    def _request(self):
        """The object's path, None for all of them, and the query."""
        parts = urllib.parse.urlsplit(self.path)
        found = re.search(r"/b/([^/]+)/o/(.+)", parts.path)
        query = dict(urllib.parse.parse_qsl(parts.query)) | {"bucket": re.search(r"/b/([^/]+)", parts.path)[1]}
        return found and f"/{found[1]}/{urllib.parse.unquote(found[2])}", query

    def _list(self, query):
        root = f"/{query['bucket']}/"
        names = sorted(path.removeprefix(root) for path in self.files.store if path.startswith(root))
        names = [
            name for name in names
            if name.startswith(query.get("prefix", "")) and name >= query.get("startOffset", "")
            and (not query.get("endOffset") or name < query["endOffset"])
        ]  # fmt: skip
        items = [
            {"name": name, "size": str(self.files.size(root + name)), "generation": self._generation(root + name)}
            for name in names
        ]
        self._answer(200, json.dumps({"items": items}).encode())

    def _generation(self, path):
        return self.generations.setdefault(path, str(next(self.counter)))

    def _answer(self, code, body=b"", **headers):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def bucket() -> Iterator[str]:
    """gs://bucket, empty."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, BucketFileSystem, clobber=True)
    environment = {
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{server.server_port}", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "EPATH_USE_TF": "false",
    }  # fmt: skip
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False),
    ):
        yield "gs://bucket"
    server.shutdown()
    BucketFileSystem.store.clear()
