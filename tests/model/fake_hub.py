"""A model hub on 127.0.0.1: the four requests that huggingface_hub makes, served from memory.

It records what was asked for and can break off a file half-way, by closing the connection or by falling silent.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

REPOSITORY = "Qwen/Qwen-1_8B-Chat-Int4"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Break:
    """The next download of `name` stops after `after` bytes."""

    name: str
    after: int
    how: Literal["close", "silence"]


@dataclass
class Hub:
    """What is served, what is to go wrong, what was asked for."""

    files: dict[str, bytes]
    url: str = ""
    next_break: Break | None = None
    # (file, first byte) of each download, in order
    downloads: list[tuple[str, int]] = field(default_factory=list)
    silent: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def downloaded(self) -> set[str]:
        return {name for name, _ in self.downloads}

    def starts_of(self, name: str) -> list[int]:
        return [start for file, start in self.downloads if file == name]


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve `files` as the repository's content until the block ends."""
    hub = Hub(files)

    class Handler(_Handler):
        served = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()


def _is_large(name: str) -> bool:
    """Kept in LFS on the real hub, and so listed with its SHA-256."""
    return name.endswith(".safetensors")


def _etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if _is_large(name) else hashlib.sha1(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    served: Hub

    def log_message(self, *_: object) -> None:
        """Quiet: pytest's output is for failures."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        api, files = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{COMMIT}/"
        if path.startswith(f"{api}/tree/"):
            self._json([self._entry(name) for name in self.served.files])
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self._json(
                {"id": REPOSITORY, "sha": COMMIT, "siblings": [self._sibling(n) for n in self.served.files]}
            )
        elif path.startswith(files) and path.removeprefix(files) in self.served.files:
            self._file(path.removeprefix(files), body=body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _entry(self, name: str) -> dict[str, object]:
        content = self.served.files[name]
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        if _is_large(name):
            entry["lfs"] = {"oid": _etag(name, content), "size": len(content), "pointerSize": 130}
        return entry

    def _sibling(self, name: str) -> dict[str, object]:
        content = self.served.files[name]
        sibling: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
        if _is_large(name):
            sibling["lfs"] = {"sha256": _etag(name, content), "size": len(content), "pointerSize": 130}
        return sibling

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _file(self, name: str, *, body: bool) -> None:
        content = self.served.files[name]
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{_etag(name, content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not body:
            return
        self.served.downloads.append((name, start))
        fault = self.served.next_break
        if fault is None or fault.name != name:
            self.wfile.write(content[start:])
            return
        self.served.next_break = None
        self.wfile.write(content[start : fault.after])
        self.wfile.flush()
        if fault.how == "silence":
            self.served.silent.set()
            self.served.closing.wait()
        self.close_connection = True
