"""A small server on this machine that speaks the part of the Hugging Face Hub's protocol that uploads and reads models.

Large files (safetensors) go through git LFS's batch protocol, small ones inside the commit. Every commit is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"


class Hub:
    """The repositories of a server: their commits, oldest first, each with its files."""

    def __init__(self) -> None:
        self.address = ""
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.large: dict[str, bytes] = {}  # uploaded files by SHA-256
        self.tampered: dict[str, bytes] = {}  # served in place of a file's content, under the digest of the true one
        self.requested: list[str] = []  # paths of all requests

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit whose tree is `files`; return its hash."""
        earlier = self.commits.setdefault(repo, [])
        name = hashlib.sha1(repr((repo, len(earlier), sorted(files))).encode()).hexdigest()
        earlier.append((name, files))
        return name

    def tree(self, repo: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        """Return the commit of a revision with its files; None if there is none."""
        commits = self.commits.get(repo, [])
        return next((c for c in reversed(commits) if revision in ("main", c[0])), None)


def digest_on_hub(path: str, content: bytes) -> str:
    """Return the ETag of a file: SHA-256 of a large file, git's SHA-1 of another."""
    if path.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Write nothing."""

    def _answer(self, status: int = 200, value: Any = None, content: bytes | None = None, **headers: str) -> None:
        body = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _missing(self, code: str) -> None:
        self._answer(404, {"error": "not found"}, **{"X-Error-Code": code, "X-Error-Message": "not found"})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requested.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            found = self.hub.tree(repo, parts[5] if len(parts) > 5 else "main")
            if found is None:
                return self._missing("RevisionNotFound" if repo in self.hub.commits else "RepoNotFound")
            if parts[4:5] == ["tree"]:
                items = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in found[1].items()]
                return self._answer(value=items)
            siblings = [{"rfilename": name} for name in found[1]]
            return self._answer(value={"id": repo, "sha": found[0], "siblings": siblings, "tags": []})
        if "resolve" not in parts:
            return self._answer(404, {"error": f"this server knows no {path}"})
        repo, (_, revision, *name) = "/".join(parts[:2]), parts[2:]
        found = self.hub.tree(repo, revision)
        file = "/".join(name)
        if found is None or file not in found[1]:
            return self._missing("EntryNotFound" if found else "RepoNotFound")
        etag, content = digest_on_hub(file, found[1][file]), self.hub.tampered.get(file, found[1][file])
        return self._answer(content=content, ETag=f'"{etag}"', X_Repo_Commit=found[0])

    do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.large[hashlib.sha256(body).hexdigest()] = body
        self._answer(value={})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.hub.requested.append(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and "validate-yaml" not in path:
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs"})  # as the Hub does
            return self._answer(value={"url": f"{self.hub.address}/{repo}"})
        if path == "/api/validate-yaml":
            return self._answer(value={"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{o['oid']}", "header": {}}}}
                for o in json.loads(body)["objects"]
            ]
            return self._answer(value={"transfer": "basic", "objects": objects})
        repo = "/".join(path.strip("/").split("/")[2:4])
        if "/preupload/" in path:
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return self._answer(value={"files": [{**f, "shouldIgnore": False} for f in modes]})
        assert "/commit/" in path, path
        files: dict[str, bytes] = dict((self.hub.tree(repo) or ("", {}))[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        name = self.hub.commit(repo, files)
        return self._answer(value={"commitUrl": f"{self.hub.address}/{repo}/commit/{name}", "commitOid": name})


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty Hub on a free port during the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
