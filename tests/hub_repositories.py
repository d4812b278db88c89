"""What the stand-in Hub of hub_server.py holds: accounts, and repositories with their commits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
LARGE = (".safetensors", ".arrow", ".parquet", ".png")


@dataclass(frozen=True)
class Account:
    user: str
    namespaces: tuple[str, ...]
    writes: bool


ACCOUNTS = {
    OWNER: Account("owner", ("owner", "org"), writes=True),
    READER: Account("owner", ("owner", "org"), writes=False),
    STRANGER: Account("stranger", ("stranger",), writes=True),
}


@dataclass(frozen=True)
class Blob:
    """The content of a file; a large one is stored apart, and git holds a pointer to it."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        stored = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    def describe(self, path: str) -> dict[str, Any]:
        info: dict[str, Any] = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.large:
            info["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return info


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    message: str
    files: dict[str, Blob]


@dataclass
class Repository:
    kind: str
    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        requests = {f"refs/pr/{number}": sha for number, sha in self.pull_requests.items()}
        sha = (self.branches | self.tags | requests).get(revision, revision)
        if sha not in self.commits:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def add(self, parent: str | None, message: str, changes: dict[str, Blob | None]) -> str:
        """A commit after `parent`; None as the content deletes a file."""
        files = dict(self.commits[parent].files) if parent else {}
        files = {path: blob for path, blob in (files | changes).items() if blob is not None}
        tree = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}\n{parent}\n{message}\n{tree}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, message, files)
        return sha

    @property
    def path(self) -> str:
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"


class RefusalError(Exception):
    """An answer that is not the one asked for."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
