"""A model hub on the loopback interface: the few endpoints that huggingface_hub asks for one model's files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/tiny"


class FakeHub(ThreadingHTTPServer):
    """Serves the files of `folder` as revision `main`, `v1` and `COMMIT` of the model `NAME`.

    `requests` lists "METHOD path" of everything asked for. `stall` ("info", or a file's name) is answered half, then
    never again until the hub is closed.
    """

    daemon_threads = True

    def __init__(self, folder: Path, stall: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
        }
        self.stall = stall
        self.requests: list[str] = []
        self.closing = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        marker = f"/{NAME}/resolve/"
        return {r.partition(marker)[2].partition("/")[2] for r in self.requests if r.startswith("GET") and marker in r}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        # A connection that the client keeps would outlive this hub.
        self.close_connection = True
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:])
        elif "/".join(parts[:2]) == NAME and parts[2:3] == ["resolve"]:
            self._file(parts[3], "/".join(parts[4:]))
        else:
            self._error("RepoNotFound")

    def _api(self, name: str, rest: list[str]) -> None:
        if name != NAME:
            return self._error("RepoNotFound")
        if len(rest) > 1 and rest[1] not in ("main", "v1", COMMIT):
            return self._error("RevisionNotFound")
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "oid": _git_hash(data), "size": len(data), "path": file}
                | ({"lfs": _lfs(data)} if file.endswith((".safetensors", ".bin")) else {})
                for file, data in self.server.files.items()
            ]
            return self._send(json.dumps(entries).encode(), {})
        siblings = [{"rfilename": file, "size": len(data)} for file, data in self.server.files.items()]
        info = {"_id": "1", "id": NAME, "modelId": NAME, "sha": COMMIT, "private": False, "siblings": siblings}
        return self._send(json.dumps(info).encode(), {}, stall=self.server.stall == "info")

    def _file(self, revision: str, file: str) -> None:
        if revision not in ("main", "v1", COMMIT):
            return self._error("RevisionNotFound")
        if file not in self.server.files:
            return self._error("EntryNotFound")
        data = self.server.files[file]
        headers = {"ETag": f'"{_git_hash(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if file.endswith((".safetensors", ".bin")):
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        return self._send(data, headers, stall=self.server.stall == file and self.command == "GET")

    def _send(self, data: bytes, headers: dict[str, str], *, stall: bool = False) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if stall else data)
        if stall:
            self.wfile.flush()
            self.server.closing.wait()

    def _error(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs(data: bytes) -> dict[str, Any]:
    return {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}


@contextmanager
def fake_hub(folder: Path, stall: str | None = None) -> Iterator[FakeHub]:
    hub = FakeHub(folder, stall)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        hub.server_close()
        thread.join()
