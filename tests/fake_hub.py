"""A model hub on this machine: what huggingface_hub asks for, answered from folders."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ERRORS = {"RepoNotFound": 401, "GatedRepo": 403, "RevisionNotFound": 404, "EntryNotFound": 404}


def commit_of(revision: str) -> str:
    """The commit that a branch points to."""
    return hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def fake_hub(models: dict[str, dict[str, Path]], gated=()):
    """Serve {hub id: {branch: folder}}; yields the address and the list of requests seen."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def log_message(self, *_):
            pass

        def answer(self, with_body):
            path = unquote(urlsplit(self.path).path).strip("/")
            asked.append(f"{self.command} {path}")
            parts = path.removeprefix("api/models/").split("/")
            name, rest = "/".join(parts[:2]), parts[2:]
            if name not in models:
                return self.fail("RepoNotFound")
            if name in gated:
                return self.fail("GatedRepo")
            branches = models[name]
            if path.startswith("api/"):
                return self.api(branches, rest, with_body)
            # resolve/<revision>/<file>
            folder = self.folder(branches, rest[1])
            if folder is None:
                return self.fail("RevisionNotFound")
            file = folder.joinpath(*rest[2:])
            if not file.is_file():
                return self.fail("EntryNotFound", rest[1])
            body = file.read_bytes()
            start, _, end = (
                self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            )
            part = body[int(start) : int(end) + 1 if end else None]
            return self.send(
                part,
                206 if "Range" in self.headers else 200,
                with_body,
                {
                    "X-Repo-Commit": self.commit(branches, rest[1]),
                    "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
                    "Accept-Ranges": "bytes",
                    "Content-Range": f"bytes {start}-{int(start) + len(part) - 1}/{len(body)}",
                },
            )

        def commit(self, branches, revision):
            return commit_of(revision) if revision in branches else revision

        def folder(self, branches, revision):
            by_commit = {commit_of(branch): folder for branch, folder in branches.items()}
            return branches.get(revision) or by_commit.get(revision)

        def api(self, branches, rest, with_body):
            if rest[:1] == ["refs"]:
                refs = [
                    {"name": b, "ref": f"refs/heads/{b}", "targetCommit": commit_of(b)}
                    for b in branches
                ]
                found = {"branches": refs, "tags": [], "converts": []}
            elif rest[:1] in (["revision"], []):
                revision = rest[1] if rest else "main"
                if self.folder(branches, revision) is None:
                    return self.fail("RevisionNotFound")
                found = {"id": "x/y", "sha": self.commit(branches, revision), "siblings": []}
            elif rest[:1] == ["tree"]:
                return self.fail("EntryNotFound", rest[1])
            else:
                return self.fail("EntryNotFound", "main")
            return self.send(json.dumps(found).encode(), 200, with_body, {})

        def fail(self, code, revision=None):
            headers = {"X-Error-Code": code, "X-Error-Message": code}
            self.send(b"{}", ERRORS[code], True, headers)

        def send(self, body, status, with_body, headers):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body and self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
