"""Domains on the Hub: published, opened again, and read by `datasets`, with the real clients."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer
from huggingface_hub import DatasetCard
from stages import bivrec, in_subprocess, settings, succeed

from bivrec.data.domain import Domain, write_domain
from bivrec.data.info import SPLITS
from bivrec.data.sequences import Sequences
from bivrec.domain_hub import publish_domain
from bivrec.errors import BivrecError
from bivrec.features.encode import encode_texts
from bivrec.features.text import HashingTextEncoder
from bivrec.files import sha256
from bivrec.training.run import Run, domain_record

pytest_plugins = ("stage_fixtures",)

LOAD = """
import json, sys
from datasets import load_dataset
name, users, items = sys.argv[1], {}, None
for split, rows in load_dataset(name).items():
    users[split] = [[row["user_id"], row["items"], row["timestamps"]] for row in rows]
items = load_dataset(name, "items", split="items")
print(json.dumps({"users": users, "items": items.to_list(), "columns": str(items.features)}))
"""


def fault(*arguments: object) -> str:
    result = bivrec(*arguments)
    assert result.exit_code == 1, result.output
    # Above it only the client's progress bars.
    assert result.stderr.count("Error") == 1, result.stderr
    return str(result.stderr.splitlines()[-1].removeprefix("Error: "))


def content(domain: Domain) -> dict[str, Any]:
    """What `LOAD` prints of a published Domain."""
    users = {}
    for split in SPLITS:
        part = domain.sequences(split)
        ends = list(zip(part.offsets, part.offsets[1:], strict=False))
        users[split] = [
            [user, part.items[first:last].tolist(), part.timestamps[first:last].tolist()]
            for user, (first, last) in zip(part.user_ids, ends, strict=True)
        ]
    table = domain.item_table()
    return {"users": users, "items": table.to_list(), "columns": str(table.features)}


# There and back


def test_it_comes_back_bit_for_bit(hub: HubServer, source: Domain) -> None:
    succeed("publish-domain", source.path, "--to", "org/shop")
    opened = Domain.open("hub:org/shop")
    opened.verify()
    assert opened.info.files == source.info.files
    assert (opened.name, opened.info.features, opened.item_ids()) == (
        source.name,
        source.info.features,
        source.item_ids(),
    )
    record, original = domain_record(opened), domain_record(source)
    commit = hub.repository("org/shop", "dataset").branches["main"]
    assert record.pop("path") == opened.location == f"hub:org/shop@{commit}"
    assert original.pop("path")
    assert record == original


@pytest.mark.parametrize(("content", "line"), [('{"format_version": 99}', "upgrade bivrec"), (None, "not a Domain")])
def test_what_cannot_be_read_is_not_fetched(hub: HubServer, source: Domain, content: str | None, line: str) -> None:
    hub.create("org/shop", "dataset")
    info = {} if content is None else {"domain.json": content.encode()}
    hub.commit("org/shop", {**info, "items/data.arrow": bytes(100)}, kind="dataset")
    assert line in fault("evaluate", "hub:org/shop", "--floor", "popularity")
    assert not any("data.arrow" in request for request in hub.requests)


def test_evaluations_are_those_of_the_original(hub: HubServer, source: Domain, pretrained: Run) -> None:
    succeed("publish-domain", source.path, "--to", "org/shop")
    options = ("--run", pretrained.path, "--floor", "item-knn", "--json")
    assert succeed("evaluate", "hub:org/shop", *options) == succeed("evaluate", source.path, *options)


def test_datasets_reads_the_repository(hub: HubServer, source: Domain, tmp_path: Path) -> None:
    succeed("publish-domain", source.path, "--to", "org/shop", "--private")
    loaded = in_subprocess("-c", LOAD, "org/shop", cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout) == content(source)


def test_datasets_reads_the_folder(source: Domain, tmp_path: Path) -> None:
    succeed("publish-domain", source.path, "--to", tmp_path / "shop")
    loaded = in_subprocess("-c", LOAD, tmp_path / "shop", env={**os.environ, "HF_HOME": str(tmp_path / "hf")})
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout) == content(source)
    assert Domain.open(tmp_path / "shop").info.files == source.info.files


def test_datasets_reads_a_domain_that_lacks_a_split(small_domain: Domain, tmp_path: Path) -> None:
    sequences = {split: small_domain.sequences(split) for split in SPLITS}
    nobody = np.array([], np.int32)
    sequences["validation"] = Sequences(np.array([0]), nobody, nobody, [])
    counts = [{**counted, "validation": 0} for counted in (small_domain.info.users, small_domain.info.interactions)]
    info = dataclasses.replace(small_domain.info, users=counts[0], interactions=counts[1])
    (tmp_path / "domain").mkdir()
    write_domain(tmp_path / "domain", info, sequences, small_domain.item_table().data.table)
    succeed("publish-domain", tmp_path / "domain", "--to", tmp_path / "shop")
    loaded = in_subprocess("-c", LOAD, tmp_path / "shop", env={**os.environ, "HF_HOME": str(tmp_path / "hf")})
    assert loaded.returncode == 0, loaded.stderr
    expected = content(Domain.open(tmp_path / "domain"))
    assert expected["users"].pop("validation") == []
    assert json.loads(loaded.stdout) == expected


def test_the_card_is_there(hub: HubServer, source: Domain) -> None:
    succeed("publish-domain", source.path, "--to", "org/shop", "--message", "first", "--tag", "v1")
    card = DatasetCard.load("org/shop")
    assert [entry["config_name"] for entry in card.data.to_dict()["configs"]] == ["sequences", "items"]
    repository = hub.repository("org/shop", "dataset")
    assert repository.tags == {"v1": repository.branches["main"]}
    card.validate(repo_type="dataset")


# Revisions


def test_a_folder_of_the_name_does_not_hide_the_hub(
    hub: HubServer, source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_domain(source, "org/source")
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Domain.open("hub:org/source").item_ids() == source.item_ids()
    assert "not in the folder org that is here; to ask the Hub, start from elsewhere" in fault("info", "org/source")


def test_a_revision_stays_what_it_was(hub: HubServer, source: Domain, target: Domain) -> None:
    publish_domain(source, "org/shop", tag="v1")
    publish_domain(target, "org/shop")
    assert Domain.open("hub:org/shop@v1").item_ids() == source.item_ids()
    assert Domain.open("hub:org/shop").item_ids() == target.item_ids()


def test_features_that_are_gone_are_deleted(hub: HubServer, source: Domain, small_domain: Domain) -> None:
    publish_domain(source, "org/shop")
    publish_domain(small_domain, "org/shop")
    assert "features.safetensors" not in hub.files("org/shop", kind="dataset")
    assert not Domain.open("hub:org/shop").info.features


def test_a_run_names_the_commit_and_resumes_from_it(
    hub: HubServer, source: Domain, target: Domain, tmp_path: Path, offline: Callable[[], None]
) -> None:
    publish_domain(source, "org/shop")
    commit = hub.repository("org/shop", "dataset").branches["main"]
    steps = settings(training={"steps": 2})
    succeed("pretrain", "hub:org/shop", "--to", tmp_path / "run", *steps)
    publish_domain(target, "org/shop")
    assert Run.open(tmp_path / "run").info.domain["path"] == f"hub:org/shop@{commit}"
    assert "not on those of hub:org/shop@" in fault("evaluate", "hub:org/shop", "--run", tmp_path / "run")
    offline()
    assert Run.open(tmp_path / "run").open_domain().item_ids() == source.item_ids()
    succeed("pretrain", "--to", tmp_path / "run", "--resume")
    succeed("evaluate", f"hub:org/shop@{commit}", "--run", tmp_path / "run")


def test_a_tower_of_it_names_it(hub: HubServer, source: Domain, tmp_path: Path) -> None:
    publish_domain(source, "org/shop")
    succeed("pretrain", "hub:org/shop", "--to", tmp_path / "run", *settings(training={"steps": 1}))
    succeed("publish", tmp_path / "run", "--to", tmp_path / "tower")
    card = (tmp_path / "tower" / "README.md").read_text()
    assert "\ndatasets:\n- org/shop\n" in card
    assert hub.repository("org/shop", "dataset").branches["main"] in card


# What is kept, and what is refused


def test_nothing_of_the_machine_is_published(hub: HubServer, source: Domain) -> None:
    assert source.info.images
    publish_domain(source, "org/shop")
    published = hub.files("org/shop", kind="dataset")
    assert json.loads(published["domain.json"])["images"] is None
    for name in ("domain.json", "README.md"):
        assert str(source.path.parent).encode() not in published[name]


def test_a_dry_run_shows_what_would_be_published(hub: HubServer, source: Domain) -> None:
    listing, _, card = succeed("publish-domain", source.path, "--to", "org/shop", "--dry-run").partition("\n\n")
    assert hub.requests == []
    sizes = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listing.splitlines()}
    publish_domain(source, "org/shop")
    published = hub.files("org/shop", kind="dataset")
    assert published.pop("README.md").startswith(card.encode())
    assert sizes.pop("README.md") == len(card.encode())
    assert sizes == {name: len(content) for name, content in published.items()}


def test_the_terms_are_told(hub: HubServer, small_domain: Domain, source: Domain, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_domain.path, tmp_path / "copy"))
    info = json.loads((copy / "domain.json").read_text())
    (copy / "domain.json").write_text(json.dumps({**info, "source": {"reader": "movielens"}}))
    warned = bivrec("publish-domain", copy, "--to", "org/films")
    assert warned.exit_code == 0
    assert warned.stderr.startswith("Warning: MovieLens is for research")
    assert DatasetCard.load("org/films").data.license == "other"
    assert bivrec("publish-domain", copy, "--to", tmp_path / "folder").stderr == ""
    assert "Warning" not in bivrec("publish-domain", source.path, "--to", "org/shop").stderr


def test_a_domain_that_was_changed_is_not_published(hub: HubServer, small_domain: Domain, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_domain.path, tmp_path / "copy"))
    data = copy / "items" / "data-00000-of-00001.arrow"
    content = bytearray(data.read_bytes())
    content[-200] ^= 1
    data.write_bytes(content)
    assert "the checksum differs" in fault("publish-domain", copy, "--to", "org/shop")
    assert hub.requests == []


def test_a_domain_of_the_hub_is_not_changed(hub: HubServer, source: Domain) -> None:
    publish_domain(source, "org/shop")
    opened = Domain.open("hub:org/shop")
    before = {name: sha256(opened.path / name) for name in opened.info.files}
    for domain in ("hub:org/shop", opened.path):
        assert "--repo-type dataset --local-dir FOLDER" in fault("encode", domain, "--text", "hashing")
    with pytest.raises(BivrecError, match="cannot be changed"):
        encode_texts(opened, HashingTextEncoder())
    assert {name: sha256(opened.path / name) for name in opened.info.files} == before
    assert not list(opened.path.glob(".encode*"))


def test_the_copy_that_the_error_names_can_be_changed(hub: HubServer, small_domain: Domain, tmp_path: Path) -> None:
    publish_domain(small_domain, "org/shop")
    message = fault("encode", "hub:org/shop", "--text", "hashing")
    command = message.split("`")[1].replace("FOLDER", str(tmp_path / "copy"))
    program, *arguments = command.split()
    assert program == "hf"
    assert in_subprocess("-m", "huggingface_hub.cli.hf", *arguments).returncode == 0
    succeed("encode", tmp_path / "copy", "--text", "hashing")
    assert set(Domain.open(tmp_path / "copy").info.features) == {"text"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:org/nothing", "no such repository"),
        ("hub:org/shop@v9", "no such branch, tag or commit"),
        ("hub:org/model", "no such repository"),
        ("hub:org/other", "not a Domain"),
    ],
)
def test_what_cannot_be_opened(hub: HubServer, small_domain: Domain, name: str, message: str) -> None:
    publish_domain(small_domain, "org/shop")
    hub.commit("org/model", {"config.json": b"{}"})
    hub.commit("org/other", {"data.csv": b"a,b\n"}, kind="dataset")
    assert message in fault("evaluate", name, "--floor", "popularity")


@pytest.mark.parametrize("name", ["hub:shop", "hub:", "hub:org/shop@", "hub:a/b/c"])
def test_what_names_no_repository(name: str) -> None:
    result = bivrec("evaluate", name, "--floor", "popularity")
    assert result.exit_code == 2
    assert "expected a folder or hub:ORG/NAME[@REVISION]" in result.stderr


def test_a_truncated_file_is_found(hub: HubServer, small_domain: Domain) -> None:
    publish_domain(small_domain, "org/shop")
    items = "items/data-00000-of-00001.arrow"
    hub.commit("org/shop", {items: hub.files("org/shop", kind="dataset")[items][:-8]}, kind="dataset")
    assert "bytes where" in fault("evaluate", "hub:org/shop", "--floor", "popularity")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..\\outside"])
def test_a_file_outside_of_the_domain_is_refused(small_domain: Domain, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(small_domain.path, tmp_path / "copy"))
    info = json.loads((copy / "domain.json").read_text())
    info["files"][name] = {"bytes": 1, "sha256": "0"}
    (copy / "domain.json").write_text(json.dumps(info))
    with pytest.raises(BivrecError, match="outside of its folder"):
        Domain.open(copy)


def test_options_of_the_hub_are_not_for_folders(source: Domain, tmp_path: Path) -> None:
    message = fault("publish-domain", source.path, "--to", tmp_path / "shop", "--private", "--create-pr")
    assert "--private, --create-pr is for a repository ORG/NAME" in message
    assert "leave --overwrite out" in fault("publish-domain", source.path, "--to", "org/shop", "--overwrite")


def test_a_pull_request(hub: HubServer, source: Domain, target: Domain) -> None:
    publish_domain(source, "org/shop")
    printed = succeed("publish-domain", target.path, "--to", "org/shop", "--create-pr")
    assert "/discussions/1" in printed
    assert Domain.open("hub:org/shop").item_ids() == source.item_ids()
    assert Domain.open("hub:org/shop@refs/pr/1").item_ids() == target.item_ids()


def test_an_edited_card_is_kept(hub: HubServer, source: Domain) -> None:
    publish_domain(source, "org/shop")
    hub.commit("org/shop", {"README.md": b"by hand"}, kind="dataset")
    assert "--overwrite-card" in fault("publish-domain", source.path, "--to", "org/shop")
    assert hub.files("org/shop", kind="dataset")["README.md"] == b"by hand"
    succeed("publish-domain", source.path, "--to", "org/shop", "--overwrite-card")
    assert DatasetCard.load("org/shop").data.pretty_name == "source"
