"""Several Domains as one."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from stages import bivrec, settings, succeed

from bivrec.card_facts import public_source
from bivrec.data.domain import Domain, write_domain
from bivrec.data.info import SPLITS, FeatureSpec
from bivrec.domain_hub import preview
from bivrec.errors import BivrecError
from bivrec.features.encode import encode_texts, store
from bivrec.features.text import HashingTextEncoder
from bivrec.features.whitening import SHRINKAGE
from bivrec.merge import merge

pytest_plugins = ("stage_fixtures",)


@pytest.fixture(scope="module")
def merged(source: Domain, target: Domain, tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return merge([source, target], tmp_path_factory.mktemp("merged") / "both")


def copy(domain: Domain, folder: Path) -> Domain:
    shutil.copytree(domain.path, folder)
    return Domain.open(folder)


def without_features(domain: Domain, folder: Path) -> Domain:
    """A copy."""
    folder.mkdir()
    sequences = {split: domain.sequences(split) for split in SPLITS}
    without = dataclasses.replace(domain.info, features={})
    write_domain(folder, without, sequences, domain.item_table().data.table)
    return Domain.open(folder)


def histories(domain: Domain, split: str, prefix: str = "") -> dict[str, tuple[list[str], list[int]]]:
    """User id -> ids of the items, and timestamps."""
    part, ids = domain.sequences(split), domain.item_ids()
    return {
        prefix + user: (
            [prefix + ids[item - 1] for item in part[place]],
            part.timestamps[part.offsets[place] : part.offsets[place + 1]].tolist(),
        )
        for place, user in enumerate(part.user_ids)
    }


@pytest.mark.parametrize("split", SPLITS)
def test_users_keep_split_items_and_times(merged: Domain, source: Domain, target: Domain, split: str) -> None:
    assert histories(merged, split) == histories(source, split, "source:") | histories(target, split, "target:")


def test_items_keep_texts_and_features(merged: Domain, source: Domain, target: Domain) -> None:
    merged.verify()
    assert merged.name == "both"
    assert merged.num_items == source.num_items + target.num_items
    described = {row["item_id"]: row for row in merged.item_table()}
    features = dict(zip(merged.item_ids(), merged.features(("text", "image"))[1:], strict=True))
    for domain in (source, target):
        for row, expected in zip(domain.item_table(), domain.features(("text", "image"))[1:], strict=True):
            item = f"{domain.name}:{row['item_id']}"
            assert described[item] == row | {"item_id": item, "image": None}
            assert torch.allclose(features[item], expected, atol=1e-6)


def test_items_are_in_the_order_of_popularity(merged: Domain) -> None:
    counts = torch.bincount(torch.from_numpy(merged.sequences("train").items.copy()))[1:]
    assert counts.diff().max() <= 0


def test_what_a_domain_lacks_its_items_lack(source: Domain, target: Domain, tmp_path: Path) -> None:
    bare = without_features(target, tmp_path / "bare")
    half = merge(
        [source, store(bare, encode_texts(bare, HashingTextEncoder(), whitening=SHRINKAGE))], tmp_path / "half"
    )
    assert half.info.missing["image"] == target.num_items
    has_image = half.has_modality("image")[1:].tolist()
    assert [item.startswith("source:") for item in half.item_ids()] == has_image


def test_items_of_the_merged_domains_can_be_left_out(merged: Domain, target: Domain, tmp_path: Path) -> None:
    """By the ids that they have there."""
    ids = target.item_ids()[:30]
    rows = [f"u{user},{item},{place}" for user in range(12) for place, item in enumerate([*ids, "new-1", "new-2"])]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    options = ("--interactions", tmp_path / "log.csv", "--k-core", "0", "--without", merged.path)
    succeed("prepare", "tables", *options, "--to", tmp_path / "new")
    assert set(Domain.open(tmp_path / "new").item_ids()) == {"new-1", "new-2"}


def test_a_tower_of_several_sources(world: Path, tmp_path: Path) -> None:
    """Merged, trained, published, and asked to rank."""
    run, tower = tmp_path / "run", tmp_path / "tower"
    said = succeed("prepare", "merge", world / "source", world / "target", "--to", tmp_path / "both")
    assert "both (merge)" in said
    succeed("pretrain", tmp_path / "both", "--views", "mm", "--to", run, *settings())
    succeed("publish", run, "--to", tower)
    assert "trained on 100 % of these items" in succeed("evaluate", world / "target", "--from-hub", tower)
    assert "invented by `bivrec prepare synthetic`" in (tower / "README.md").read_text()


def test_the_terms_of_all_sources(source: Domain, target: Domain, tmp_path: Path) -> None:
    shop = copy(target, tmp_path / "ml-1m")
    shop.name, shop.info.source["reader"] = "ml-1m", "tables"
    card = preview(merge([source, shop], tmp_path / "both"), "org/both")[-1]
    for words in ("license_name: several-sources", "MovieLens (GroupLens", "The data is invented", "Harper"):
        assert words in card


def test_sources_with_paths_are_published_without(source: Domain, target: Domain, tmp_path: Path) -> None:
    films = copy(source, tmp_path / "films")
    films.info.source["texts"] = "/home/me/plots.csv"
    both = merge([films, target], tmp_path / "both")
    assert public_source(both.info.source)["domains"]["source"]["texts"] == "plots.csv"


def test_what_cannot_be_merged(source: Domain, target: Domain, tmp_path: Path) -> None:
    other = copy(target, tmp_path / "other")
    store(other, encode_texts(other, HashingTextEncoder(), whitening=None))
    arguments = {
        "one Domain cannot be merged": ([source], tmp_path / "to"),
        "two Domains have the name target": ([source, target, copy(target, tmp_path / "copy")], tmp_path / "to"),
        "is to be read; choose another folder": ([source, target], target.path),
        r"features differ: text of \S+ is hashing.*whitened.*, of \S+/other is hashing@1 \(256-d, sum\); run `": (
            [source, Domain.open(other.path)],
            tmp_path / "to",
        ),
        r"bare: has no features, \S+ has some; run `bivrec encode \S+/bare --text hashing --whiten && bivrec encode": (
            [without_features(target, tmp_path / "bare"), source],
            tmp_path / "to",
        ),
    }
    for words, (domains, path) in arguments.items():
        with pytest.raises(BivrecError, match=words):
            merge(domains, path, overwrite=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bare", "copy", "other"]


def test_features_agree_by_the_weights_of_their_encoder(source: Domain, target: Domain, tmp_path: Path) -> None:
    """As a tower takes them: the name of the folder that the encoder lay in says nothing."""
    named = []
    for domain, name in ((source, "mini"), (target, "org-mini")):
        bare = without_features(domain, tmp_path / domain.name)
        rows = torch.rand(domain.num_items + 1, 4)
        spec = FeatureSpec(name, "sha256:0123", 4, "mean", whitening=None)
        named.append(bare.with_features({"text": rows}, {"text": rows.any(1)}, {"text": spec}))
    assert merge(named, tmp_path / "to").info.features == named[0].info.features


def test_wrong_input_on_the_command_line(world: Path, tmp_path: Path) -> None:
    result = bivrec("prepare", "merge", world / "source", tmp_path / "none", "--to", tmp_path / "both")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {tmp_path / 'none'}: not a Domain (no domain.json)")
