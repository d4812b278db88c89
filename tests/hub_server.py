"""A Hugging Face Hub on loopback for the real client: repositories, commits, large files, rights, and faults on demand.

    with HubServer() as hub:               # or the fixture `hub`, which also points the client at it
        hub.url                            # the endpoint; large files come from another port, as on the real Hub
        hub.commit("org/name", {"README.md": b"by hand"})           # what somebody else does there; returns the commit
        hub.files("org/name", "main")      # path -> bytes at a branch, tag, commit or refs/pr/N
        hub.repository("org/name")         # branches, tags, pull_requests, commits, private, gated
        hub.fail("GET", "/lfs/", drop_after=1000)                   # cut the next such connection after 1000 bytes
        hub.fail("POST", "/commit/", status=503, times=2)           # answer 503 twice
        hub.before("PUT", "/lfs/", action) # call action() when the next such request arrives
        hub.forbids_public = True          # what is created is private, unless it is asked to be public: an error
        hub.requests                       # "METHOD /path[ RANGE]" of every request, in order

Both kinds of repository are served: model (the default) and dataset. The accounts are in hub_repositories.py: OWNER
may write to the namespaces `owner` and `org`, READER only reads there, STRANGER writes elsewhere; a private repository
is seen by the first two. `datasets` reads HF_ENDPOINT when it is imported: test load_dataset in a subprocess.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_repositories import ACCOUNTS, LARGE, Account, Blob, Commit, RefusalError, Repository

DATE = "2024-01-01T00:00:00.000Z"
INVALID_NAME = re.compile(r"--|\.\.|\.git$")


class DroppedError(Exception):
    """The connection is to be cut here."""


@dataclass
class Fault:
    method: str
    path: re.Pattern[str]
    times: int
    status: int | None
    drop_after: int | None
    headers: dict[str, str]
    action: Callable[[], object] | None = None


class HubServer:
    """The server; see the module's description."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.forbids_public = False
        self.lock = threading.RLock()
        self._ports = [Port(self, handler) for handler in (HubHandler, StorageHandler)]
        self.url, self.storage_url = (f"http://127.0.0.1:{port.server_port}" for port in self._ports)

    def __enter__(self) -> HubServer:
        for port in self._ports:
            threading.Thread(target=port.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for port in self._ports:
            port.shutdown()
            port.server_close()

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def create(self, name: str, kind: str = "model", *, private: bool = False, gated: bool = False) -> Repository:
        repository = self.repositories[kind, name] = Repository(kind, name, private, gated)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
        first = {".gitattributes": Blob(attributes.encode(), large=False)}
        repository.branches["main"] = repository.add(None, "initial commit", first)
        return repository

    def commit(
        self,
        name: str,
        files: dict[str, bytes | None],
        *,
        branch: str = "main",
        message: str = "by hand",
        kind: str = "model",
        **creation: bool,
    ) -> str:
        """Commit as somebody else would, to a repository that is created if it does not exist; None deletes a file."""
        with self.lock:
            known = self.repositories.get((kind, name))
            repository = known or self.create(name, kind, **creation)
            blobs = {path: None if content is None else self.blob(path, content) for path, content in files.items()}
            parent = repository.branches.get(branch, repository.branches["main"])
            repository.branches[branch] = repository.add(parent, message, blobs)
            return repository.branches[branch]

    def blob(self, path: str, content: bytes) -> Blob:
        blob = Blob(content, path.endswith(LARGE))
        if blob.large:
            self.storage[blob.sha256] = content
        return blob

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Path -> content at a revision."""
        commit = self.repository(name, kind).resolve(revision)
        return {path: blob.content for path, blob in commit.files.items() if path != ".gitattributes"}

    def fail(
        self,
        method: str,
        path: str,
        *,
        times: int = 1,
        status: int | None = None,
        drop_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Spoil the next `times` requests of a method whose path matches a regular expression.

        Answer `status`, or cut the connection after `drop_after` bytes of the body (of a GET's answer, or of what a
        PUT or POST brings).
        """
        self.faults.append(Fault(method, re.compile(path), times, status, drop_after, headers or {}))

    def before(self, method: str, path: str, action: Callable[[], object]) -> None:
        """Do something, once, when such a request arrives."""
        self.faults.append(Fault(method, re.compile(path), 1, None, None, {}, action))

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None


class Port(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, handler: type[Handler]) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that goes away in the middle is what some tests are about.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler, ABC):
    """What both ports share: reading, answering and faults."""

    protocol_version = "HTTP/1.1"
    # Small answers would otherwise wait for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    server: Port
    fault: Fault | None

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, *arguments: object) -> None:
        pass

    def handle_request(self) -> None:
        path = unquote(self.path)
        self.hub.requests.append(" ".join(filter(None, (self.command, path, self.headers.get("Range")))))
        self.fault = self.hub.fault_for(self.command, path)
        try:
            self.content = self.read_body()
            if self.fault and self.fault.action:
                self.fault.action()
            if self.fault and self.fault.status:
                raise RefusalError(self.fault.status, "spoilt on demand", headers=self.fault.headers)
            with self.hub.lock:
                answer = self.route(urlsplit(self.path))
            answer()
        except RefusalError as refusal:
            self.answer_json({"error": refusal.message}, refusal.status, refusal.headers)
        except (DroppedError, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    @abstractmethod
    def route(self, url: Any) -> Callable[[], None]:
        """What answers a request of this address."""

    def read_body(self) -> bytes:
        limit = self.fault.drop_after if self.fault and self.command != "GET" else None
        body = b""
        for length in self.body_lengths():
            if limit is not None and len(body) + length >= limit:
                self.rfile.read(limit - len(body))
                raise DroppedError
            body += self.rfile.read(length)
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                self.rfile.readline()
        return body

    def body_lengths(self) -> Any:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while length := int(self.rfile.readline(), 16):
                yield length
            self.rfile.readline()
        elif length := int(self.headers.get("Content-Length") or 0):
            yield length

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.command == "GET" and self.fault and self.fault.drop_after is not None:
            self.wfile.write(body[: self.fault.drop_after])
            raise DroppedError
        self.wfile.write(body)

    def answer_json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def answer_content(self, content: bytes, headers: dict[str, str]) -> None:
        """The content, or what the header Range asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(content, headers={"Accept-Ranges": "bytes", **headers})
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        span = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return self.answer(content[start : end + 1], 206, {**span, **headers})


class StorageHandler(Handler):
    """Large files by their SHA-256."""

    def route(self, url: Any) -> Callable[[], None]:
        oid = url.path.removeprefix("/lfs/")
        if self.command == "PUT":
            if hashlib.sha256(self.content).hexdigest() != oid:
                raise RefusalError(400, "the content does not have this checksum")
            self.hub.storage[oid] = self.content
            return lambda: self.answer(b"")
        if oid not in self.hub.storage:
            raise RefusalError(404, "no such object")
        return lambda: self.answer_content(self.hub.storage[oid], {"ETag": f'"{oid}"'})


class HubHandler(Handler):
    """The Hub's own routes."""

    def route(self, url: Any) -> Callable[[], None]:
        self.query = parse_qs(url.query)
        words = [unquote(word) for word in url.path.strip("/").split("/")]
        match [self.command, *words]:
            case ["GET", "api", "whoami-v2"]:
                return self.say(self.whoami())
            case ["POST", "api", "repos", "create"]:
                return self.say(self.create())
            case ["POST", "api", "validate-yaml"]:
                return self.validate_yaml()
            case [_, "api", "models" | "datasets" as kinds, owner, name, *rest]:
                return self.api(kinds.removesuffix("s"), f"{owner}/{name}", rest)
            case [_, "datasets", owner, name, *rest]:
                return self.plain("dataset", f"{owner}/{name}", rest)
            case [_, owner, name, *rest]:
                return self.plain("model", f"{owner}/{name}", rest)
        raise RefusalError(404, "no such route")

    def say(self, value: object) -> Callable[[], None]:
        return lambda: self.answer_json(value)

    def api(self, kind: str, name: str, rest: list[str]) -> Callable[[], None]:
        match [self.command, *rest]:
            case ["GET"]:
                return self.say(self.describe(self.readable(kind, name), "main"))
            case ["GET", "revision", revision]:
                return self.say(self.describe(self.readable(kind, name), revision))
            case ["GET", "tree", revision, *folder]:
                return self.say(self.tree(self.readable(kind, name).resolve(revision), "/".join(folder)))
            case ["POST", "paths-info", revision]:
                return self.say(self.paths_info(self.readable(kind, name).resolve(revision)))
            case ["GET", "refs"]:
                return self.say(self.refs(self.readable(kind, name)))
            case ["GET", "commits", revision]:
                return self.say(self.history(self.readable(kind, name), revision))
            case ["POST", "preupload", revision]:
                return self.say(self.preupload(self.proposable(kind, name).resolve(revision)))
            case ["POST", "commit", revision]:
                return self.say(self.push(kind, name, revision))
            case ["POST", "branch", branch]:
                return self.say(self.create_branch(self.writable(kind, name), branch))
            case ["POST", "tag", revision]:
                return self.say(self.create_tag(self.writable(kind, name), revision))
        raise RefusalError(404, "no such route")

    def plain(self, kind: str, name: str, rest: list[str]) -> Callable[[], None]:
        match [self.command, *rest]:
            case ["GET" | "HEAD", "resolve", revision, *path]:
                return self.resolve(self.readable(kind, name), revision, "/".join(path))
            case ["POST", "info", "lfs", "objects", "batch"]:
                return self.say(self.lfs_batch(self.proposable(kind, name.removesuffix(".git"))))
            case ["POST", "info", "lfs", "objects", "verify"]:
                return self.verify()
        raise RefusalError(404, "no such route")

    # Rights

    def account(self) -> Account | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in ACCOUNTS:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return ACCOUNTS.get(given)

    def unseen(self) -> NoReturn:
        """Whether a repository exists is no business of those who may not read it."""
        if self.account() is None:
            raise RefusalError(401, "Invalid username or password.")
        raise RefusalError(404, "Repository not found", "RepoNotFound")

    def readable(self, kind: str, name: str) -> Repository:
        account, repository = self.account(), self.hub.repositories.get((kind, name))
        inside = account is not None and name.split("/")[0] in account.namespaces
        if repository is None or (repository.private and not inside):
            self.unseen()
        if repository.gated and not inside and {"resolve", "tree"} & set(self.path.split("/")):
            raise RefusalError(403 if account else 401, f"Access to {kind} {name} is restricted", "GatedRepo")
        return repository

    def proposable(self, kind: str, name: str) -> Repository:
        """Readable, by somebody who has a name: enough for a pull request."""
        repository, account = self.readable(kind, name), self.account()
        if account is None:
            raise RefusalError(401, "Invalid username or password.")
        if not account.writes:
            raise RefusalError(403, "Forbidden: you must use a write token to upload to a repository.")
        return repository

    def writable(self, kind: str, name: str) -> Repository:
        repository, account = self.proposable(kind, name), self.account()
        if account is None or name.split("/")[0] not in account.namespaces:
            raise RefusalError(403, "Forbidden: you are not allowed to write to this repository")
        return repository

    # Reading

    def whoami(self) -> dict[str, Any]:
        account = self.account()
        if account is None:
            raise RefusalError(401, "Invalid username or password.")
        orgs = [{"name": name} for name in account.namespaces if name != account.user]
        token = {"displayName": "test", "role": "write" if account.writes else "read"}
        return {"type": "user", "name": account.user, "orgs": orgs, "auth": {"accessToken": token}}

    def describe(self, repository: Repository, revision: str) -> dict[str, Any]:
        commit = repository.resolve(revision)
        return {
            "_id": "0",
            "id": repository.name,
            "author": repository.name.split("/")[0],
            "sha": commit.sha,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "lastModified": DATE,
            "createdAt": DATE,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in commit.files],
        }

    def tree(self, commit: Commit, folder: str) -> list[dict[str, Any]]:
        everything = self.entries(commit)
        inside = f"{folder}/" if folder else ""
        if folder and folder not in everything:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        below = {path: info for path, info in everything.items() if path.startswith(inside)}
        return [info for path, info in below.items() if recursive or "/" not in path.removeprefix(inside)]

    def paths_info(self, commit: Commit) -> list[dict[str, Any]]:
        everything = self.entries(commit)
        asked = parse_qs(self.content.decode()).get("paths", [])
        return [everything[path] for path in asked if path in everything]

    def entries(self, commit: Commit) -> dict[str, dict[str, Any]]:
        """Path -> description, of files and of the folders that they lie in."""
        found: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(commit.files.items()):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            found[path] = blob.describe(path)
        return found

    def refs(self, repository: Repository) -> dict[str, Any]:
        def described(prefix: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": sha} for name, sha in names.items()]

        answer = {
            "branches": described("refs/heads/", repository.branches),
            "tags": described("refs/tags/", repository.tags),
            "converts": [],
        }
        if "include_prs" in self.query:
            numbered = {str(number): sha for number, sha in repository.pull_requests.items()}
            answer["pullRequests"] = described("refs/pr/", numbered)
        return answer

    def history(self, repository: Repository, revision: str) -> list[dict[str, Any]]:
        found, commit = [], repository.resolve(revision)
        while True:
            found.append({"id": commit.sha, "title": commit.message, "message": "", "authors": [], "date": DATE})
            if commit.parent is None:
                return found
            commit = repository.commits[commit.parent]

    def resolve(self, repository: Repository, revision: str, path: str) -> Callable[[], None]:
        commit = repository.resolve(revision)
        headers = {"X-Repo-Commit": commit.sha}
        blob = commit.files.get(path)
        if blob is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound", headers)
        if not blob.large:
            return lambda: self.answer_content(blob.content, {"ETag": f'"{blob.oid}"', **headers})
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        headers["Location"] = f"{self.hub.storage_url}/lfs/{blob.sha256}"
        return lambda: self.answer(b"", 302, headers)

    # Writing

    def create(self) -> dict[str, Any]:
        asked, account = json.loads(self.content), self.account()
        if account is None:
            raise RefusalError(401, "Invalid username or password.")
        name = f"{asked.get('organization') or account.user}/{asked['name']}"
        kind = asked.get("type") or "model"
        if name.split("/")[0] not in account.namespaces or not account.writes:
            raise RefusalError(403, f"You don't have the rights to create a {kind} under this namespace")
        if INVALID_NAME.search(name):
            raise RefusalError(400, f"Invalid repository name {name}")
        if (kind, name) in self.hub.repositories:
            raise RefusalError(409, f"You already created this {kind} repo")
        visibility = asked.get("visibility") or ("private" if self.hub.forbids_public else "public")
        if visibility == "public" and self.hub.forbids_public:
            raise RefusalError(403, f"{name.split('/')[0]} forbids the creation of public {kind}s")
        repository = self.hub.create(name, kind, private=visibility == "private")
        return {"url": f"{self.hub.url}/{repository.path}", "name": name, "id": name}

    def validate_yaml(self) -> Callable[[], None]:
        text = json.loads(self.content)["content"]
        header = re.match(r"---\n(.*?)\n---(\n|$)", text, re.DOTALL)
        try:
            valid = header is None or isinstance(yaml.safe_load(header[1]), dict)
        except yaml.YAMLError:
            valid = False
        answer: dict[str, Any] = {"errors": [] if valid else [{"message": "the metadata is not YAML"}], "warnings": []}
        return lambda: self.answer_json(answer, 200 if valid else 400)

    def preupload(self, commit: Commit) -> dict[str, Any]:
        files = []
        for asked in json.loads(self.content)["files"]:
            path = asked["path"]
            known = commit.files.get(path)
            oid = (known.sha256 if known.large else known.oid) if known else None
            mode = "lfs" if path.endswith(LARGE) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files, "commitOid": commit.sha}

    def lfs_batch(self, repository: Repository) -> dict[str, Any]:
        objects = []
        for asked in json.loads(self.content)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.storage_url}/lfs/{asked['oid']}"},
                "verify": {"href": f"{self.hub.url}/{repository.path}.git/info/lfs/objects/verify"},
            }
            objects.append(asked if asked["oid"] in self.hub.storage else {**asked, "actions": actions})
        return {"transfer": "basic", "objects": objects}

    def verify(self) -> Callable[[], None]:
        asked = json.loads(self.content)
        if len(self.hub.storage.get(asked["oid"], b"")) != asked["size"]:
            raise RefusalError(422, "the object was not uploaded")
        return self.say({"ok": True})

    def push(self, kind: str, name: str, revision: str) -> dict[str, Any]:
        proposal = "create_pr" in self.query
        repository = self.proposable(kind, name) if proposal else self.writable(kind, name)
        lines = [json.loads(line) for line in self.content.splitlines()]
        header = lines[0]["value"]
        head = repository.resolve(revision)
        base = header.get("parentCommit", head.sha)
        if base != head.sha and not proposal:
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        if not proposal and revision not in repository.branches:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        sha = repository.add(base, header["summary"], dict(self.change(head, line) for line in lines[1:]))
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repository.path}/commit/{sha}"}
        if proposal:
            number = len(repository.pull_requests) + 1
            repository.pull_requests[number] = sha
            return {**answer, "pullRequestUrl": f"{self.hub.url}/{repository.path}/discussions/{number}"}
        repository.branches[revision] = sha
        return answer

    def change(self, head: Commit, line: dict[str, Any]) -> tuple[str, Blob | None]:
        value = line["value"]
        match line["key"]:
            case "file":
                return value["path"], Blob(base64.b64decode(value["content"]), large=False)
            case "lfsFile" if value["oid"] in self.hub.storage:
                return value["path"], Blob(self.hub.storage[value["oid"]], large=True)
            case "deletedFile" if value["path"] in head.files:
                return value["path"], None
        raise RefusalError(404, f"{line['key']} {value['path']}: no such object", "EntryNotFound")

    def create_branch(self, repository: Repository, branch: str) -> dict[str, Any]:
        start = json.loads(self.content or b"{}").get("startingPoint", "main")
        if branch in repository.branches:
            raise RefusalError(409, "Reference already exists")
        repository.branches[branch] = repository.resolve(start).sha
        return {}

    def create_tag(self, repository: Repository, revision: str) -> dict[str, Any]:
        tag = json.loads(self.content)["tag"]
        if tag in repository.tags:
            raise RefusalError(409, "Tag reference exists already")
        repository.tags[tag] = repository.resolve(revision).sha
        return {}
