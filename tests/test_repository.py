"""Fetching and pushing with the real client, against the Hub of hub_server.py."""

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_repositories import OWNER, READER, STRANGER
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard

from bivrec.errors import BivrecError
from bivrec.repository import fetch, file_sizes, is_repository, push, resolve

NAME = "org/name"
WEIGHTS = os.urandom(1_000_000)
CARD = b"---\nlicense: mit\n---\n# A card\n"
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "README.md": CARD}
EVERYTHING = ["*"]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits between attempts, the client's and ours, a hundred times shorter."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 100))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "folder", FILES)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def fault(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    with pytest.raises(BivrecError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def push_fault(folder: Path, **options: Any) -> str:
    return fault(push, folder, NAME, message="Publish", **options)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commits(name: str = NAME, **options: Any) -> list[str]:
    return [commit.title for commit in HfApi().list_repo_commits(name, **options)]


def asked(hub: HubServer, words: str) -> list[str]:
    return [request for request in hub.requests if words in request]


def half_written(hub_cache: Path) -> list[Path]:
    return [path for path in hub_cache.rglob("*") if path.name.endswith((".incomplete", ".tmp"))]


# Names


@pytest.mark.parametrize("source", ["nowhere", "./org/name", "a/b/c", "org/", "@main"])
def test_neither_folder_nor_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert fault(fetch, source, EVERYTHING) == f"{source}: no such folder, and not of the form ORG/NAME[@revision]"


def test_a_local_folder_goes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_repository("org/name")
    (tmp_path / "org").mkdir()
    assert not is_repository("org/name")


def test_a_folder_is_where_it_is(folder: Path) -> None:
    assert fetch(str(folder), EVERYTHING) == fetch(str(folder), ["config.json"])
    fetched = fetch(str(folder), EVERYTHING)
    assert (fetched.folder, fetched.commit) == (folder, None)


# Fetching


def test_what_was_pushed_is_fetched(hub: HubServer, folder: Path) -> None:
    pushed = push(folder, NAME, message="Publish")
    fetched = fetch(NAME, ["*.json", "*.safetensors"])
    assert read(fetched.folder) == {name: FILES[name] for name in ("config.json", "model.safetensors")}
    assert fetched.commit == pushed.commit == hub.repository(NAME).branches["main"]


def test_a_branch_a_tag_a_commit_and_a_pull_request(hub: HubServer, folder: Path) -> None:
    first = hub.commit(NAME, {"config.json": b"1"})
    hub.commit(NAME, {"config.json": b"2"}, branch="dev")
    HfApi().create_tag(NAME, tag="v1", revision=first)
    hub.commit(NAME, {"config.json": b"3"})
    (folder / "config.json").write_bytes(b"4")
    push(folder, NAME, message="Propose", create_pr=True)
    for revision, content in {"dev": b"2", "v1": b"1", first: b"1", "main": b"3", "refs/pr/1": b"4"}.items():
        fetched = fetch(f"{NAME}@{revision}", ["config.json"])
        assert (fetched.folder / "config.json").read_bytes() == content
        assert fetched.commit == hub.repository(NAME).resolve(revision).sha


def test_more_of_the_same_commit_after_somebody_pushed(hub: HubServer) -> None:
    hub.commit(NAME, {"config.json": b"old", "model.safetensors": b"old"})
    first = fetch(NAME, ["config.json"])
    hub.commit(NAME, {"config.json": b"newer", "model.safetensors": b"newer"})
    assert file_sizes(NAME, commit=first.commit)["model.safetensors"] == 3
    assert not asked(hub, "/lfs/")
    second = fetch(NAME, ["model.safetensors"], commit=first.commit)
    assert read(second.folder) == {"config.json": b"old", "model.safetensors": b"old"}
    assert file_sizes(NAME)["model.safetensors"] == 5


def test_data_sets_are_apart_from_models(hub: HubServer) -> None:
    hub.commit(NAME, {"a.json": b"model"})
    hub.commit(NAME, {"a.json": b"data"}, kind="dataset")
    assert read(fetch(NAME, EVERYTHING, "dataset").folder)["a.json"] == b"data"
    assert read(fetch(NAME, EVERYTHING).folder)["a.json"] == b"model"


def test_offline_from_the_cache(hub: HubServer, offline: Callable[[], None]) -> None:
    hub.commit(NAME, FILES)
    online = fetch(NAME, EVERYTHING)
    offline()
    asked_before = len(hub.requests)
    assert fetch(NAME, EVERYTHING) == online
    assert fetch(f"{NAME}@{online.commit}", EVERYTHING) == online
    assert file_sizes(NAME)["model.safetensors"] == len(WEIGHTS)
    assert len(hub.requests) == asked_before


def test_from_the_cache_when_the_hub_is_away(hub: HubServer) -> None:
    hub.commit(NAME, FILES)
    online = fetch(NAME, EVERYTHING)
    hub.fail("GET", "/api/models/", status=503, times=100)
    assert fetch(NAME, EVERYTHING) == online


def test_a_commit_that_is_cached_is_not_asked_for(hub: HubServer) -> None:
    hub.commit(NAME, FILES)
    online = fetch(NAME, EVERYTHING)
    asked_before = len(hub.requests)
    assert fetch(f"{NAME}@{online.commit}", EVERYTHING) == online
    assert len(hub.requests) == asked_before


@pytest.mark.parametrize("revision", ["", "@main", "@" + "0" * 40])
def test_offline_and_not_in_the_cache(hub: HubServer, offline: Callable[[], None], revision: str) -> None:
    hub.commit(NAME, FILES)
    offline()
    assert "not in the local cache, and HF_HUB_OFFLINE is set" in fault(fetch, NAME + revision, EVERYTHING)


def test_offline_and_only_a_part_is_in_the_cache(hub: HubServer, offline: Callable[[], None]) -> None:
    hub.commit(NAME, FILES)
    fetch(NAME, ["config.json"])
    offline()
    assert "not in the local cache, and HF_HUB_OFFLINE is set" in fault(fetch, NAME, ["*.safetensors"])


def test_unreachable(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for ask in (lambda name: fetch(name, EVERYTHING), resolve):
        complaint = fault(ask, f"{NAME}@v1")
        assert "not in the local cache, and the Hub cannot be reached" in complaint
        assert complaint.endswith(f"; for a folder write ./{NAME}")
    # hub:ORG/NAME of a Domain is never a folder.
    assert "for a folder" not in fault(fetch, NAME, EVERYTHING, "dataset")


@pytest.mark.parametrize("token", [OWNER, STRANGER])
def test_a_folder_may_have_been_meant(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert fault(fetch, "pub/tower", EVERYTHING).endswith("; for a folder write ./pub/tower")
    hub.commit(NAME, FILES)
    assert "for a folder" not in fault(fetch, f"{NAME}@nosuch", EVERYTHING)


def test_something_that_is_not_a_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.storage_url)
    assert fault(fetch, NAME, EVERYTHING).startswith(f"{NAME}: the Hub refuses (status 404")


# Rights to read


def test_a_private_repository(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(NAME, FILES, private=True)
    assert fetch(NAME, EVERYTHING).commit
    for token, advice in {
        STRANGER: "no such repository, or one that your token may not see; check the name and the token",
        "hf_expired": "the Hub does not know your token; log in with `hf auth login` or set HF_TOKEN",
        "": "no such repository, or a private one; check the name, or log in with `hf auth login` or set HF_TOKEN",
    }.items():
        monkeypatch.setenv("HF_TOKEN", token)
        cache = tmp_path / f"cache-{token}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        assert fault(fetch, f"{NAME}@v1", EVERYTHING) == f"{NAME}@v1: {advice}; for a folder write ./{NAME}"
        assert not cache.exists()


def test_no_such_repository(hub: HubServer) -> None:
    assert "no such repository" in fault(fetch, NAME, EVERYTHING)
    assert "no such repository" in fault(file_sizes, NAME)


def test_a_name_that_no_repository_can_have(hub: HubServer) -> None:
    assert "--" in fault(fetch, "org/a--b", EVERYTHING)


@pytest.mark.parametrize("revision", ["v2", "0" * 40])
def test_no_such_revision(hub: HubServer, revision: str) -> None:
    hub.commit(NAME, FILES)
    assert fault(fetch, f"{NAME}@{revision}", EVERYTHING) == (f"{NAME}@{revision}: no such branch, tag or commit there")


def test_restricted_access(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(NAME, FILES, gated=True)
    for token, advice in {STRANGER: "ask", "": "log in with `hf auth login` or set HF_TOKEN, and ask"}.items():
        monkeypatch.setenv("HF_TOKEN", token)
        assert fault(fetch, NAME, EVERYTHING) == (
            f"{NAME}: access must be granted to you first; {advice} for it on the repository's page"
        )


# Downloads that fail


def test_a_lost_connection_is_resumed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client resumes after whole chunks, of 10 MB unless told otherwise.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.commit(NAME, FILES)
    hub.fail("GET", "/lfs/", drop_after=300_000, times=2)
    assert (fetch(NAME, EVERYTHING).folder / "model.safetensors").read_bytes() == WEIGHTS
    starts = [request.partition("bytes=")[2] for request in asked(hub, "GET /lfs/")]
    assert starts == ["", "300000-", "600000-"]


def test_a_connection_that_is_always_lost(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(NAME, FILES)
    hub.fail("GET", "/lfs/", drop_after=0, times=100)
    assert "no connection to the Hub, or it was lost" in fault(fetch, NAME, EVERYTHING)
    assert not half_written(tmp_path / "hf")
    hub.faults.clear()
    assert read(fetch(NAME, ["*.safetensors"]).folder)["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("path", ["/api/models/org/name$", "/tree/"], ids=["resolve", "list"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again(hub: HubServer, path: str, status: int) -> None:
    hub.commit(NAME, FILES)
    hub.fail("GET", path, status=status, times=2)
    assert fetch(NAME, EVERYTHING).commit
    assert hub.faults[0].times == 0


def test_a_busy_store_is_asked_again(hub: HubServer) -> None:
    hub.commit(NAME, FILES)
    hub.fail("GET", "/lfs/", status=429)
    assert (fetch(NAME, EVERYTHING).folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.faults[0].times == 0


@pytest.mark.parametrize(("status", "message"), [(429, "too many requests"), (503, "a fault of its own (status 503)")])
def test_a_hub_that_stays_busy(hub: HubServer, status: int, message: str) -> None:
    hub.commit(NAME, FILES)
    hub.fail("GET", "/api/models/", status=status, times=100)
    assert message in fault(fetch, NAME, EVERYTHING)


def test_a_large_file_that_the_store_lost(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(NAME, FILES)
    hub.storage.clear()
    assert "status 404" in fault(fetch, NAME, EVERYTHING)
    assert not half_written(tmp_path / "hf")


def test_a_full_disk(hub: HubServer, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's."""
    hub.commit(NAME, FILES)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    script = f"from bivrec.repository import fetch; fetch({NAME!r}, ['*'])"
    done = subprocess.run(
        [sys.executable, "-c", script], preexec_fn=limit, capture_output=True, text=True, check=False, timeout=60
    )
    assert f"no room for it in the cache ({os.strerror(errno.EFBIG)}); make room in {tmp_path}" in done.stderr
    assert not half_written(tmp_path / "hf")


@pytest.mark.parametrize("path", ["../x.json", "a/../../x.json", "/x.json", "..\\x.json", "C:x.json", "a\\b.json"])
def test_a_file_name_that_leads_out(hub: HubServer, tmp_path: Path, path: str) -> None:
    hub.commit(NAME, {**FILES, path: b"{}"})
    for call in (lambda: fetch(NAME, ["*.json"]), lambda: fetch(NAME, ["config.json"]), lambda: file_sizes(NAME)):
        assert "outside of its folder; do not use it" in fault(call)
    assert not list(tmp_path.rglob("*.json"))
    assert not asked(hub, "/resolve/")


# Pushing


def test_one_commit_with_every_file(hub: HubServer, folder: Path) -> None:
    write(folder, {"data/part.json": b"[]", "empty.json": b""})
    pushed = push(folder, NAME, message="Publish a tower")
    repository = hub.repository(NAME)
    assert commits() == ["Publish a tower", "initial commit"]
    assert not repository.private
    assert pushed.commit == repository.branches["main"]
    assert pushed.url == f"{hub.url}/{NAME}/commit/{pushed.commit}"
    assert pushed.pull_request_url is None
    there = hub.files(NAME)
    assert there.pop("README.md").startswith(CARD)
    assert there == {name: content for name, content in read(folder).items() if name != "README.md"}


def test_the_folder_is_left_as_it_was(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    before = read(folder)
    push(folder, NAME, message="Publish")
    assert read(folder) == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == ["folder"]


def test_the_marked_card_is_a_card(hub: HubServer, folder: Path) -> None:
    push(folder, NAME, message="Publish")
    assert ModelCard.load(NAME).data.license == "mit"


def test_a_private_data_set(hub: HubServer, folder: Path) -> None:
    pushed = push(folder, NAME, message="Publish", repo_type="dataset", private=True)
    assert hub.repository(NAME, "dataset").private
    assert pushed.url == f"{hub.url}/datasets/{NAME}/commit/{pushed.commit}"


def test_an_organisation_that_forbids_what_is_public(hub: HubServer, folder: Path) -> None:
    hub.forbids_public = True
    push(folder, NAME, message="Publish")
    assert hub.repository(NAME).private


def test_a_new_repository_without_a_token(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    advice = "log in with `hf auth login` or set HF_TOKEN"
    assert push_fault(folder) == f"{NAME}: to create it, {advice}"


def test_a_repository_that_the_token_may_not_see(hub: HubServer, folder: Path) -> None:
    hub.commit(NAME, FILES, private=True)
    hub.fail("GET", f"/api/models/{NAME}", status=404, times=10)
    assert "exists, but your token may not see it" in push_fault(folder)


def test_private_is_not_promised_of_a_public_repository(hub: HubServer, folder: Path) -> None:
    hub.commit(NAME, {"a.json": b"{}"})
    assert "exists and is public" in push_fault(folder, private=True)
    assert commits() == ["by hand", "initial commit"]


def test_a_second_push(hub: HubServer, folder: Path) -> None:
    push(folder, NAME, message="First")
    (folder / "README.md").write_bytes(CARD + b"More.\n")
    push(folder, NAME, message="Second")
    assert commits() == ["Second", "First", "initial commit"]
    assert hub.files(NAME)["README.md"].count(b"bivrec card sha256") == 1


def test_the_same_again_is_the_same_commit(hub: HubServer, folder: Path) -> None:
    pushed = push(folder, NAME, message="First")
    assert push(folder, NAME, message="Second") == pushed
    # What was fetched brings its mark along.
    assert push(fetch(NAME, [*FILES]).folder, NAME, message="Third") == pushed


def test_files_of_a_former_publication_go(hub: HubServer, folder: Path) -> None:
    write(folder, {"data/0.json": b"0", "data/1.json": b"1"})
    push(folder, NAME, message="First")
    hub.commit(NAME, {"notes.txt": b"somebody's"})
    (folder / "data/1.json").unlink()
    push(folder, NAME, message="Second", delete_patterns=["data/*"])
    assert sorted(hub.files(NAME)) == sorted([*FILES, "data/0.json", "notes.txt"])
    assert len(commits()) == 4


# The card


@pytest.mark.parametrize(
    "edit",
    [lambda card: card + b"PS\n", lambda card: card.replace(b"A card", b"My card"), lambda card: b"\xff\xfe"],
    ids=["appended", "changed", "replaced"],
)
def test_a_card_that_somebody_edited_is_kept(hub: HubServer, folder: Path, edit: Callable[[bytes], bytes]) -> None:
    push(folder, NAME, message="First")
    edited = edit(hub.files(NAME)["README.md"])
    hub.commit(NAME, {"README.md": edited})
    (folder / "config.json").write_bytes(b"[]")
    message = push_fault(folder)
    assert "--create-pr" in message
    assert "--overwrite-card" in message
    assert hub.files(NAME)["README.md"] == edited
    assert hub.files(NAME)["config.json"] == b"{}"
    push(folder, NAME, message="Propose", create_pr=True)
    assert hub.files(NAME)["README.md"] == edited
    push(folder, NAME, message="Second", overwrite_card=True)
    assert hub.files(NAME)["README.md"].startswith(CARD)
    assert hub.files(NAME)["config.json"] == b"[]"


def test_a_card_of_before_is_kept(hub: HubServer, folder: Path) -> None:
    hub.commit(NAME, {"README.md": b"# Mine\n"})
    assert "written or edited by somebody else" in push_fault(folder)


def test_a_card_that_was_deleted_comes_back(hub: HubServer, folder: Path) -> None:
    push(folder, NAME, message="First")
    hub.commit(NAME, {"README.md": None})
    push(folder, NAME, message="Second")
    assert hub.files(NAME)["README.md"].startswith(CARD)


def test_the_card_of_the_branch_counts(hub: HubServer, folder: Path) -> None:
    push(folder, NAME, message="First")
    hub.commit(NAME, {"README.md": b"# Mine\n"}, branch="dev")
    assert "written or edited by somebody else" in push_fault(folder, revision="dev")
    push(folder, NAME, message="Second")


def test_metadata_that_the_hub_refuses(hub: HubServer, folder: Path) -> None:
    (folder / "README.md").write_bytes(b"---\n[\n---\n")
    assert "Invalid metadata in README.md" in push_fault(folder)
    assert commits() == ["initial commit"]


# Branches, pull requests, tags


def test_a_branch_is_made_from_main(hub: HubServer, folder: Path) -> None:
    hub.commit(NAME, {"notes.txt": b"notes"})
    pushed = push(folder, NAME, message="Publish", revision="dev/2")
    assert hub.repository(NAME).branches["dev/2"] == pushed.commit
    assert set(hub.files(NAME, "dev/2")) == {*FILES, "notes.txt"}
    assert set(hub.files(NAME)) == {"notes.txt"}
    (folder / "config.json").write_bytes(b"[]")
    push(folder, NAME, message="Again", revision="dev/2")
    assert commits(revision="dev/2") == ["Again", "Publish", "by hand", "initial commit"]


def test_a_pull_request_by_somebody_without_write_access(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(NAME, {"README.md": b"# Mine\n"})
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert "your token may not do this" in push_fault(folder, overwrite_card=True)
    pushed = push(folder, NAME, message="Propose", create_pr=True)
    assert pushed.pull_request_url == f"{hub.url}/{NAME}/discussions/1"
    assert hub.files(NAME) == {"README.md": b"# Mine\n"}
    assert set(hub.files(NAME, "refs/pr/1")) == set(FILES)


def test_a_tag(hub: HubServer, folder: Path) -> None:
    pushed = push(folder, NAME, message="Publish", tag="v1")
    assert hub.repository(NAME).tags == {"v1": pushed.commit}
    (folder / "config.json").write_bytes(b"[]")
    assert "has a tag v1 already" in push_fault(folder, tag="v1")
    assert len(commits()) == 2
    assert "cannot be tagged" in push_fault(folder, tag="v2", create_pr=True)


def test_a_tag_that_fails_says_what_was_done(hub: HubServer, folder: Path) -> None:
    hub.fail("POST", "/tag/", status=503)
    message = push_fault(folder, tag="v1")
    assert message.startswith(f"{NAME}: published as {hub.repository(NAME).branches['main']}, but not tagged v1: ")


# Rights to write


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "log in with `hf auth login` or set HF_TOKEN"),
        ("hf_expired", "the Hub does not know your token"),
        (READER, "your token may not do this"),
        (STRANGER, "your token may not do this"),
    ],
    ids=["none", "expired", "read-only", "stranger"],
)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "known"])
def test_no_right_to_write(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str, exists: bool
) -> None:
    if exists:
        hub.commit(NAME, {"a.json": b"{}"})
    monkeypatch.setenv("HF_TOKEN", token)
    assert message in push_fault(folder)
    assert len(hub.repositories) == exists
    assert not exists or set(hub.files(NAME)) == {"a.json"}


def test_a_name_that_the_hub_refuses(hub: HubServer, folder: Path) -> None:
    assert "--" in fault(push, folder, "org/a--b", message="Publish")


def test_pushing_offline(hub: HubServer, folder: Path, offline: Callable[[], None]) -> None:
    offline()
    assert push_fault(folder) == f"{NAME}: HF_HUB_OFFLINE is set; unset it to use the Hub; for a folder write ./{NAME}"


def test_pushing_to_nobody(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    complaint = push_fault(folder)
    assert "no connection to the Hub" in complaint
    assert complaint.endswith(f"; for a folder write ./{NAME}")


# Pushes that fail


def test_somebody_else_pushes_in_between(hub: HubServer, folder: Path) -> None:
    hub.commit(NAME, {"a.json": b"{}"})
    hub.before("PUT", "/lfs/", lambda: hub.commit(NAME, {"config.json": b"theirs"}))
    assert "somebody else changed the repository meanwhile" in push_fault(folder)
    assert hub.files(NAME) == {"a.json": b"{}", "config.json": b"theirs"}
    push(folder, NAME, message="Again")
    assert commits() == ["Again", "by hand", "by hand", "initial commit"]


@pytest.mark.parametrize("spoilt", [{"drop_after": 100_000}, {"status": 503}, {"status": 429}])
def test_an_upload_is_repeated(hub: HubServer, folder: Path, spoilt: dict[str, int]) -> None:
    hub.fail("PUT", "/lfs/", times=2, **spoilt)
    push(folder, NAME, message="Publish")
    assert hub.faults[0].times == 0
    assert hub.files(NAME)["model.safetensors"] == WEIGHTS
    assert commits() == ["Publish", "initial commit"]


@pytest.mark.parametrize(
    ("method", "path", "spoilt", "message"),
    [
        ("PUT", "/lfs/", {"drop_after": 100_000}, "no connection to the Hub, or it was lost"),
        ("PUT", "/lfs/", {"status": 503}, "a fault of its own (status 503)"),
        ("POST", "/preupload/", {"drop_after": 1}, "no connection to the Hub, or it was lost"),
        ("POST", "/commit/", {"drop_after": 1}, "no connection to the Hub, or it was lost"),
        ("POST", "/commit/", {"status": 500}, "a fault of its own (status 500)"),
        ("POST", "/commit/", {"status": 413}, "the Hub refuses (status 413"),
        ("GET", "/refs", {"status": 429}, "too many requests"),
        ("POST", "/repos/create", {"status": 402}, "the Hub refuses (status 402"),
    ],
)
def test_a_push_that_fails_commits_nothing_and_is_done_again(
    hub: HubServer, folder: Path, tmp_path: Path, method: str, path: str, spoilt: dict[str, int], message: str
) -> None:
    before = read(folder)
    hub.fail(method, path, times=100, **spoilt)
    assert message in push_fault(folder)
    assert not hub.repositories or set(hub.files(NAME)) == set()
    assert read(folder) == before
    hub.faults.clear()
    push(folder, NAME, message="Publish")
    assert commits() == ["Publish", "initial commit"]


def test_what_was_uploaded_is_not_sent_again(hub: HubServer, folder: Path) -> None:
    hub.fail("POST", "/commit/", status=500)
    push_fault(folder)
    push(folder, NAME, message="Publish")
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    assert asked(hub, "PUT ") == [f"PUT /lfs/{oid}"]


def test_the_environment_alone_is_enough(hub: HubServer, folder: Path) -> None:
    """HF_ENDPOINT, HF_TOKEN and HF_HOME, as a user sets them."""
    script = (
        "import json; from pathlib import Path; from bivrec.repository import fetch, push; "
        f"pushed = push(Path({str(folder)!r}), {NAME!r}, message='Publish', private=True); "
        f"fetched = fetch({NAME!r}, ['config.json']); "
        "print(json.dumps([pushed.commit, fetched.commit, str(fetched.folder)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    pushed, fetched, path = json.loads(done.stdout)
    assert pushed == fetched == hub.repository(NAME).branches["main"]
    assert path.startswith(os.environ["HF_HOME"])
