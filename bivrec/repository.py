"""Repositories on the Hugging Face Hub: fetching files from them and pushing folders to them.

Whatever goes wrong, on the Hub, on the way or on the disk, becomes a BivrecError of one line that says what to do.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath
from typing import TypedDict, TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoFile

from bivrec.errors import FULL_DISK, BivrecError

CARD_FILE = "README.md"
MAIN = "main"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_CARD_MARK = re.compile(rb"\n<!-- bivrec card sha256:([0-9a-f]{64}) -->\n\Z")
# HfHubHTTPError derives from the HTTP library's own base, whose errors the client raises without a connection.
_CONNECTION_FAULT: type[BaseException] = HfHubHTTPError.__bases__[0]
# The client raises ValueError for names and answers that it refuses, RuntimeError around a failed upload.
_FAULTS = (_CONNECTION_FAULT, RevisionResolutionError, OSError, ValueError, RuntimeError)
_BUSY = (429, 500, 502, 503, 504)
_WAITS = (1.0, 2.0, 4.0)
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Fetched:
    """Files that lie on this machine."""

    folder: Path
    commit: str | None
    """Hash of the commit that they are from; None for a folder that was never on the Hub."""


@dataclass(frozen=True)
class Pushed:
    """A folder that now lies on the Hub."""

    url: str
    """Address of the commit."""
    commit: str
    pull_request_url: str | None
    """None unless a pull request was asked for."""

    @property
    def address(self) -> str:
        """Of the pull request if there is one, else of the commit."""
        return self.pull_request_url or self.url


def is_repository(name: str) -> bool:
    """Whether a name means `ORG/NAME` on the Hub: it has that form, and no local folder begins like it."""
    return _has_form(name) and not Path(name.split("/")[0]).is_dir()


def resolve(source: str) -> str | None:
    """Hash of the commit that the model `ORG/NAME[@revision]` on the Hub stands for now; None for a folder.

    Raises BivrecError like `fetch`.
    """
    if Path(source).is_dir():
        return None
    return commit_of(*_parse(source))


def commit_of(name: str, revision: str | None) -> str:
    """Hash of the commit that a revision of a model on the Hub stands for; names without an ORG are as old as the Hub.

    Raises BivrecError if it cannot be had.
    """
    with _one_line(name if revision is None else f"{name}@{revision}", name):
        return _resolve(name, revision, "model")


def fetch(
    source: str, names: Sequence[str], repo_type: str = "model", *, commit: str | None = None, local: bool = True
) -> Fetched:
    """The files of a folder, or of `ORG/NAME[@revision]` on the Hub, whose names match one of the patterns `names`.

    From the Hub they come through its cache, so that what is there already is not asked for again, and works offline.
    `commit` fetches more from the commit that an earlier call resolved, whatever was pushed in between. That a file
    of that name exists is not checked. local: whether `source` may be a folder.
    Raises BivrecError if they cannot be had, or if any file name in the repository leads out of it.
    """
    if local and Path(source).is_dir():
        return Fetched(Path(source), None)
    name, revision = _parse(source, local)
    with _one_line(source, name if repo_type == "model" else None):
        commit = commit or _resolve(name, revision, repo_type)
        # Offline only the cache is read, and nothing is written that a name could lead astray.
        if not huggingface_hub.is_offline_mode():
            _list_files(name, commit, repo_type)
        folder = huggingface_hub.snapshot_download(
            name, repo_type=repo_type, revision=commit, allow_patterns=list(names)
        )
    return Fetched(Path(folder), commit)


def file_sizes(source: str, *, commit: str | None = None) -> dict[str, int]:
    """Name -> bytes of every file of the model `ORG/NAME[@revision]` on the Hub, none of which is fetched.

    Raises BivrecError like `fetch`.
    """
    name, revision = _parse(source)
    with _one_line(source):
        return _list_files(name, commit or _resolve(name, revision, "model"), "model")


class PushOptions(TypedDict, total=False):
    """What a user may ask of a push beside its message (see `push`)."""

    private: bool
    revision: str | None
    create_pr: bool
    tag: str | None
    overwrite_card: bool


def push(
    folder: Path,
    repository: str,
    *,
    message: str,
    repo_type: str = "model",
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    overwrite_card: bool = False,
    delete_patterns: Sequence[str] = (),
) -> Pushed:
    """Push every file of a folder to `ORG/NAME` on the Hub, in one commit.

    The repository is created if it does not exist, and so is the branch `revision` (from main). Files there that
    match `delete_patterns` and are not in the folder are deleted in the same commit. README.md is marked, so that the
    next push knows it again; one that somebody else wrote or edited is overwritten only with `overwrite_card`, or
    proposed with `create_pr`. `tag` names the new commit. If nothing differs there is no new commit, but the last one.
    Raises BivrecError if it cannot be done, or if somebody else pushed in between; nothing was committed then, except
    where the message says so.
    """
    if create_pr and tag:
        raise BivrecError(f"{repository}: a pull request cannot be tagged; tag the commit when it was merged")
    api, branch = HfApi(), revision or MAIN
    with _one_line(repository, repository):
        _create_repository(api, repository, repo_type, private)
        refs = _patiently(lambda: api.list_repo_refs(repository, repo_type=repo_type))
        if tag in {ref.name for ref in refs.tags}:
            raise BivrecError(f"{repository}: has a tag {tag} already; choose another")
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        parent = heads.get(branch, heads.get(MAIN))
        if parent and not (create_pr or overwrite_card):
            _check_card(repository, repo_type, parent)
        operations = _operations(folder, api, repository, repo_type, parent, delete_patterns)
        if branch not in heads:
            api.create_branch(repository, branch=branch, revision=parent, repo_type=repo_type)
        # create_commit rather than upload_folder, which may cut a large folder into several commits.
        commit = api.create_commit(
            repository,
            operations,
            commit_message=message,
            repo_type=repo_type,
            revision=branch,
            create_pr=create_pr,
            parent_commit=parent,
        )
    if tag:
        with _one_line(f"{repository}: published as {commit.oid}, but not tagged {tag}"):
            api.create_tag(repository, tag=tag, revision=commit.oid, repo_type=repo_type)
    return Pushed(str(commit.commit_url), commit.oid, commit.pr_url)


# Fetching


def _has_form(name: str) -> bool:
    return bool(_REPOSITORY.fullmatch(name)) and name[0] not in "./~"


def _parse(source: str, local: bool = True) -> tuple[str, str | None]:
    """local: whether a name that begins like a folder means one in it."""
    name, _, revision = source.partition("@")
    if not _has_form(name):
        raise BivrecError(f"{source}: {'no such folder, and ' if local else ''}not of the form ORG/NAME[@revision]")
    if local and not is_repository(name):
        folder = name.split("/")[0]
        raise BivrecError(f"{source}: not in the folder {folder} that is here; to ask the Hub, start from elsewhere")
    return name, revision or None


def _resolve(name: str, revision: str | None, repo_type: str) -> str:
    """Hash of the commit that a revision stands for now, or, if the Hub cannot be reached, when it was last asked."""
    return _patiently(lambda: HfApi().resolve_revision(name, revision=revision, repo_type=repo_type)).resolved


def _list_files(name: str, commit: str, repo_type: str) -> dict[str, int]:
    """Name -> bytes of every file of a commit, none of which leads out of its folder."""
    try:
        files = huggingface_hub.get_cached_repo_tree(name, revision=commit, repo_type=repo_type)
    except CachedRepoTreeNotFoundError:
        entries = HfApi().list_repo_tree(name, recursive=True, revision=commit, repo_type=repo_type)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
    for file in files:
        if _leads_out(file.path):
            raise BivrecError(f"{name}: holds a file named {file.path!r}, outside of its folder; do not use it")
    return {file.path: file.size for file in files}


def _leads_out(path: str) -> bool:
    windows = PureWindowsPath(path)
    return bool(windows.anchor) or "\\" in path or ".." in windows.parts


# Pushing


def _create_repository(api: HfApi, name: str, repo_type: str, private: bool) -> None:
    try:
        found = _patiently(lambda: api.repo_info(name, repo_type=repo_type))
    except HfHubHTTPError as fault:
        # Without the right to see it, the Hub says the same of a repository as if it did not exist.
        if fault.response.status_code not in (401, 404):
            raise
        _create_unseen(api, name, repo_type, private)
        return
    if private and not found.private:
        raise BivrecError(f"{name}: exists and is public; make it private in its settings, or leave --private out")


def _create_unseen(api: HfApi, name: str, repo_type: str, private: bool) -> None:
    try:
        # None leaves it to the organisation, which may not allow what is public.
        api.create_repo(name, repo_type=repo_type, private=private or None)
    except HfHubHTTPError as fault:
        if fault.response.status_code == 401 and "Invalid credentials" not in (fault.server_message or ""):
            raise BivrecError(f"{name}: to create it, {_LOG_IN}") from None
        if fault.response.status_code == 409:
            raise BivrecError(
                f"{name}: exists, but your token may not see it; {_LOG_IN} with the rights for it"
            ) from None
        raise


def _check_card(name: str, repo_type: str, commit: str) -> None:
    """Raises BivrecError if the commit has a card that is not as a push left it."""
    try:
        path = huggingface_hub.hf_hub_download(name, CARD_FILE, repo_type=repo_type, revision=commit)
    except RemoteEntryNotFoundError:
        return
    card = Path(path).read_bytes()
    mark = _CARD_MARK.search(card)
    if not mark or hashlib.sha256(card[: mark.start()]).hexdigest().encode() != mark[1]:
        raise BivrecError(
            f"{name}: its {CARD_FILE} was written or edited by somebody else; propose yours with --create-pr, or "
            f"replace it with --overwrite-card"
        )


def _marked(card: bytes) -> bytes:
    card = _CARD_MARK.sub(b"", card)
    return card + f"\n<!-- bivrec card sha256:{hashlib.sha256(card).hexdigest()} -->\n".encode()


def _operations(
    folder: Path, api: HfApi, name: str, repo_type: str, commit: str | None, delete_patterns: Sequence[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    additions = [
        CommitOperationAdd(name, _marked(path.read_bytes()) if name == CARD_FILE else path)
        for name, path in paths.items()
    ]
    if not delete_patterns:
        return [*additions]
    there = api.list_repo_files(name, revision=commit, repo_type=repo_type)
    obsolete = {path for path in there if any(fnmatch(path, pattern) for pattern in delete_patterns)} - set(paths)
    return [*additions, *(CommitOperationDelete(path, is_folder=False) for path in sorted(obsolete))]


# Faults


def _patiently(ask: Callable[[], _Answer]) -> _Answer:
    """What a question is answered with; asked again, with waits, while the Hub is busy.

    For the questions that the client itself asks only once.
    """
    for wait in _WAITS:
        try:
            return ask()
        except (HfHubHTTPError, RevisionResolutionError) as fault:
            cause = _cause(fault)
            if not (isinstance(cause, HfHubHTTPError) and cause.response.status_code in _BUSY):
                raise
        time.sleep(wait)
    return ask()


@contextmanager
def _one_line(subject: str, folder: str | None = None) -> Iterator[None]:
    """folder: what a user may have meant who gave the name of a repository that is not to be found."""
    try:
        yield
    except _FAULTS as fault:
        advice = f"; for a folder write ./{folder}" if folder and _is_out_of_reach(fault) else ""
        raise BivrecError(f"{subject}: {_explain(fault)}{advice}") from None


def _is_out_of_reach(fault: BaseException) -> bool:
    """Whether there is no such repository, or nobody could be asked."""
    cause = _cause(fault)
    if isinstance(cause, HfHubHTTPError):
        unseen = isinstance(cause, RepositoryNotFoundError) or cause.response.status_code == 401
        return unseen and not isinstance(cause, GatedRepoError)
    return isinstance(cause, OfflineModeIsEnabled | _CONNECTION_FAULT)


def _cause(fault: BaseException) -> BaseException:
    """The fault that the client wrapped, if any."""
    wrapped = isinstance(fault, RevisionResolutionError | LocalEntryNotFoundError | RuntimeError)
    return fault.__cause__ if wrapped and fault.__cause__ is not None else fault


def _explain(fault: BaseException) -> str:
    cause = _cause(fault)
    missing = isinstance(fault, RevisionResolutionError | LocalEntryNotFoundError)
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{'not in the local cache, and ' if missing else ''}HF_HUB_OFFLINE is set; unset it to use the Hub"
    if isinstance(cause, HfHubHTTPError):
        return _explain_refusal(cause)
    if missing:
        return f"not in the local cache, and the Hub cannot be reached ({_flat(cause)})"
    if isinstance(cause, _CONNECTION_FAULT):
        return f"no connection to the Hub, or it was lost ({_flat(cause)}); try again"
    if isinstance(cause, OSError) and cause.errno in FULL_DISK:
        cache = huggingface_hub.constants.HF_HUB_CACHE
        return f"no room for it in the cache ({cause.strerror}); make room in {cache}, or set HF_HOME"
    return _flat(cause)


def _explain_refusal(fault: HfHubHTTPError) -> str:
    status, said = fault.response.status_code, fault.server_message or ""
    if isinstance(fault, GatedRepoError):
        advice = f"{_LOG_IN}, and ask" if status == 401 else "ask"
        return f"access must be granted to you first; {advice} for it on the repository's page"
    if isinstance(fault, RevisionNotFoundError):
        return "no such branch, tag or commit there"
    if status == 401 and "Invalid credentials" in said:
        return f"the Hub does not know your token; {_LOG_IN}"
    if status == 401:
        return f"no such repository, or a private one; check the name, or {_LOG_IN}"
    if isinstance(fault, RepositoryNotFoundError):
        return "no such repository, or one that your token may not see; check the name and the token"
    if status == 403:
        return f"your token may not do this ({_flat(said)}); {_LOG_IN} with the rights for it"
    if status in (409, 412):
        return "somebody else changed the repository meanwhile; look at it and publish again"
    if status == 429:
        return "too many requests; wait some minutes and try again"
    if status >= 500:
        return f"the Hub has a fault of its own (status {status}); try again later"
    return f"the Hub refuses (status {status}: {_flat(said or fault)})"


def _flat(message: object) -> str:
    """A message of the client in one line."""
    return " ".join(str(message).split()) or type(message).__name__
