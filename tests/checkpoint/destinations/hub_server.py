"""A stand-in for the Hugging Face hub: the part of its HTTP protocol that publishing speaks, kept in memory.

Written from the requests and answers that huggingface_hub's own client makes and checks: repositories, branches and
commits with a parent that must be the head, large files by git-lfs's batch protocol (a file that is there is not asked
for), and downloads. It checks what the hub checks: tokens, digests of uploads, parents.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TOKEN = "hf_test"


@dataclass
class Commit:
    title: str
    files: dict[str, bytes]
    number: int

    @property
    def oid(self) -> str:
        return hashlib.sha1(f"{self.number} {self.title} {sorted(self.files)}".encode()).hexdigest()


@dataclass
class Hub:
    """Repositories as branches of commits; `uploads` are the large files in the order in which they came."""

    branches: dict[str, dict[str, list[Commit]]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    private: dict[str, bool] = field(default_factory=dict)
    before: Callable[[str, str], None] = lambda method, path: None  # a test's chance to interfere
    commits: int = 0

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        return self.branches[repository][revision][-1].files

    def commit(self, repository: str, revision: str, title: str, files: dict[str, bytes]) -> Commit:
        self.commits += 1
        made = Commit(title, files, self.commits)
        self.branches[repository][revision].append(made)
        return made


class RefusedError(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


def serve(hub: Hub) -> http.server.ThreadingHTTPServer:
    """Starts the server on a free port of 127.0.0.1, in a thread."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        body = self._body()
        headers: dict[str, str] = {}
        try:
            if self.headers.get("authorization") != f"Bearer {TOKEN}" and parts[0] != "lfs":
                raise RefusedError(401)
            self.hub.before(self.command, url.path)
            status, content, headers = self._route(parts, body)
        except RefusedError as refused:
            status, content, headers = refused.status, b'{"error": "refused"}', {"X-Error-Code": refused.code}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, parts: list[str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if parts[:3] == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts[0] == "lfs":
            return self._upload(parts[1], body)
        if parts[2:4] == ["info", "lfs"]:
            return self._batch(json.loads(body))
        if parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], parts[4])
        repository, verb, revision = "/".join(parts[2:4]), parts[4], parts[5]
        branches = self.hub.branches.get(repository)
        if branches is None:
            raise RefusedError(404, "RepoNotFound")
        if verb == "branch":
            return self._branch(branches, revision, json.loads(body))
        if revision not in branches:
            raise RefusedError(404, "RevisionNotFound")
        answer = {
            "commits": lambda: _told([_commit_told(commit) for commit in reversed(branches[revision])]),
            "preupload": lambda: self._preupload(branches[revision][-1], json.loads(body)),
            "commit": lambda: self._commit(repository, revision, body),
            "paths-info": lambda: self._paths_info(branches[revision][-1], body),
            "tree": lambda: _told([self._file_told(*item) for item in branches[revision][-1].files.items()]),
        }
        return answer[verb]()

    def _create(self, wanted: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        name = f"{wanted['organization']}/{wanted['name']}"
        told = {"url": f"http://{self.headers['host']}/{name}", "name": name}
        if name in self.hub.branches:
            return 409, json.dumps(told).encode(), {"Content-Type": "application/json"}
        self.hub.branches[name] = {"main": []}
        self.hub.private[name] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.commit(name, "main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return _told(told)

    def _branch(
        self, branches: dict[str, list[Commit]], name: str, wanted: dict[str, Any]
    ) -> tuple[int, bytes, dict[str, str]]:
        if name in branches:
            raise RefusedError(409)
        start = next(one for one in branches["main"] if one.oid == wanted["startingPoint"])
        branches[name] = [start]
        return _told({})

    def _preupload(self, head: Commit, wanted: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                **({"oid": self._oid(one["path"], head.files[one["path"]])} if one["path"] in head.files else {}),
            }
            for one in wanted["files"]
        ]
        return _told({"files": files})

    def _batch(self, wanted: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        objects = []
        for one in wanted["objects"]:
            upload = {"upload": {"href": f"http://{self.headers['host']}/lfs/{one['oid']}", "header": {}}}
            objects.append(one if one["oid"] in self.hub.large else {**one, "actions": upload})
        return _told({"objects": objects, "transfer": "basic"})

    def _upload(self, oid: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400)
        self.hub.large[oid] = body
        self.hub.uploads.append(oid)
        return _told({})

    def _commit(self, repository: str, revision: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        head = self.hub.branches[repository][revision][-1]
        files, title = dict(head.files), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", head.oid) != head.oid:
                    raise RefusedError(412)
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile", line
                del files[value["path"]]
        made = self.hub.commit(repository, revision, title, files)
        url = f"http://{self.headers['host']}/{repository}/commit/{made.oid}"
        return _told({"success": True, "commitUrl": url, "commitOid": made.oid, "hookOutput": ""})

    def _paths_info(self, head: Commit, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        wanted = urllib.parse.parse_qs(body.decode())["paths"]
        return _told([self._file_told(path, head.files[path]) for path in wanted if path in head.files])

    def _file_told(self, path: str, content: bytes) -> dict[str, Any]:
        told = {"type": "file", "path": path, "size": len(content), "oid": self._oid(path, content)}
        if path.endswith(".safetensors"):
            told["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return told

    def _oid(self, path: str, content: bytes) -> str:
        if path.endswith(".safetensors"):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _resolve(self, repository: str, revision: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        head = self.hub.branches[repository][revision][-1]
        content = head.files[name]
        return 200, content, {"X-Repo-Commit": head.oid, "ETag": f'"{self._oid(name, content)}"'}


def _commit_told(commit: Commit) -> dict[str, Any]:
    return {"id": commit.oid, "authors": [], "date": "2026-01-01T00:00:00.000Z", "title": commit.title, "message": ""}


def _told(answer: object) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}
