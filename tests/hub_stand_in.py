"""A stand-in of the Hugging Face hub on 127.0.0.1: the few routes that uploading and fetching take.

Files of a commit are sent in the commit itself, as the hub asks for of small ones.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "x" * 34


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with its revisions: revision -> file -> content."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def commit_of(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + files[name])
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def _answer(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _allowed(self, *, write: bool, name: str = "") -> bool:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if known or not (write or self.server.private.get(name)):
            return True
        self._answer(401, {"error": "Invalid username or password."})
        return False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if not self._allowed(write=True):
            return None
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in self.server.repositories:
                url = f"{self.server.address}/{name}"
                return self._answer(409, {"error": "exists", "url": url})
            self.server.repositories[name] = {"main": {}}
            self.server.private[name] = asked.get("visibility") == "private" or bool(
                asked.get("private")
            )
            return self._answer(200, {"url": f"{self.server.address}/{name}"})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        if not found or found[1] not in self.server.repositories:
            return self._answer(404, {"error": "Repository not found"})
        name, what, revision = found.groups()
        if what == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if what == "branch":
            self.server.repositories[name][revision] = dict(self.server.repositories[name]["main"])
            return self._answer(201, {})
        content = self.server.repositories[name].get(revision)
        if content is None:
            return self._answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        for line in body.decode().splitlines():
            part = json.loads(line)
            if part["key"] == "header":
                self.server.messages.append(part["value"]["summary"])
            elif part["key"] == "file":
                content[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
        commit = commit_of(content)
        url = f"{self.server.address}/{name}/commit/{commit}"
        return self._answer(200, {"commitOid": commit, "commitUrl": url, "pullRequestUrl": None})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = found or file
        name = match[1] if match else ""
        if not self._allowed(write=False, name=name):
            return None
        revisions = self.server.repositories.get(name)
        if match is None or revisions is None:
            return self._answer(404, {"error": "Not found"}, X_Error_Code="RepoNotFound")
        revision = (found[3] if found else match[2]) or "main"
        content = next((c for key, c in revisions.items() if revision in (key, commit_of(c))), None)
        if content is None:
            return self._answer(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
        commit = commit_of(content)
        if found and found[2] == "tree":
            entries = [
                {
                    "type": "file",
                    "path": one,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for one, data in content.items()
            ]
            return self._answer(200, entries)
        if found:
            siblings = [{"rfilename": one} for one in content]
            return self._answer(200, {"id": name, "sha": commit, "siblings": siblings})
        assert file is not None
        data = content.get(file[3])
        if data is None:
            return self._answer(404, {"error": "no"}, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self._answer(200, data, X_Repo_Commit=commit, ETag=etag)

    do_HEAD = do_GET  # noqa: N815


@contextmanager
def hub() -> Iterator[Hub]:
    """The stand-in, serving in a thread."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
