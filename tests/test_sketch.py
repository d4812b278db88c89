"""What a tower was trained on is recognised by its items, whatever their order and number."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from stages import bivrec, config

from bivrec.artefact import Tower, load
from bivrec.data import domain as domains
from bivrec.data.domain import Domain, write_domain
from bivrec.data.info import SPLITS
from bivrec.data.prepare import prepare
from bivrec.data.sketch import SKETCH_SIZE, item_sketch, join_sketches, share_known
from bivrec.data.synthetic import DomainSize, World
from bivrec.errors import BivrecError
from bivrec.features.encode import encode_texts, store
from bivrec.features.text import HashingTextEncoder
from bivrec.finetune import finetune, finetune_config
from bivrec.hub import publish, tower_of_run
from bivrec.merge import merge
from bivrec.pretrain import pretrain
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

Catalogue = Callable[[Sequence[int]], Domain]


@pytest.fixture(scope="module")
def catalogue(small_domain: Domain, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Makes Domains with the items of these numbers, in this order."""

    def make(numbers: Sequence[int]) -> Domain:
        folder = tmp_path_factory.mktemp("catalogue")
        rows = [(f"i{number}", None if number % 5 == 0 else f"Title {number}", "text", None) for number in numbers]
        items = pa.table(dict(zip(("item_id", "title", "text", "image"), zip(*rows, strict=True), strict=True)))
        nobody = domains.Sequences(np.array([0, 1]), np.array([1], np.int32), np.array([0]), ["u"])
        info = dataclasses.replace(small_domain.info, num_items=len(rows), features={}, missing={"text": 0, "image": 0})
        write_domain(folder, info, dict.fromkeys(SPLITS, nobody), items)
        return Domain.open(folder)

    return make


def test_a_sketch_is_the_smallest_hashes_of_ids_and_titles(catalogue: Catalogue) -> None:
    domain = catalogue(range(1000))
    hashes = sorted(
        hashlib.blake2b(f"{row['item_id']}\n{row['title'] or ''}".encode(), digest_size=8).hexdigest()
        for row in domain.item_table()
    )
    assert item_sketch(domain) == hashes[:SKETCH_SIZE]
    assert item_sketch(catalogue(range(1, 4))) == item_sketch(catalogue([3, 1, 2]))


def test_parts_of_a_catalogue_make_no_difference(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    domain, other = catalogue(range(1000)), catalogue(range(500, 1700))
    whole, share = item_sketch(domain), share_known(other, item_sketch(domain))
    monkeypatch.setattr("bivrec.data.sketch.ROWS_AT_ONCE", 70)
    assert item_sketch(domain) == whole
    assert share_known(other, whole) == share


def test_a_joined_sketch_is_that_of_all_items(catalogue: Catalogue) -> None:
    parts = [item_sketch(catalogue(part)) for part in (range(600), range(400, 1000), range(1000, 1100))]
    assert join_sketches(*parts, []) == item_sketch(catalogue(range(1100)))


@pytest.mark.parametrize("trained", [100, 1000, 20_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_known_items(catalogue: Catalogue, trained: int, share: float) -> None:
    """Exact for few items; otherwise within four standard errors of a sample."""
    sketch = item_sketch(catalogue(range(trained)))
    size = 4000 if trained > SKETCH_SIZE else 60
    known = min(round(size * share), trained)
    asked = catalogue([*range(trained - known, trained), *range(10**6, 10**6 + size - known)])
    truth = known / size
    compared = size * min(1.0, SKETCH_SIZE / trained)
    assert share_known(asked, sketch) == pytest.approx(
        truth, abs=0 if trained < SKETCH_SIZE else 4 * (truth * (1 - truth) / compared) ** 0.5
    )


def test_nothing_is_known_where_nothing_was_recorded(catalogue: Catalogue) -> None:
    assert share_known(catalogue(range(10)), []) == 0.0


def test_another_title_is_another_item(catalogue: Catalogue, tmp_path: Path) -> None:
    """Numbers as ids are in every catalogue."""
    ours, others = catalogue(range(1, 100)), catalogue(range(1, 100))
    titles = pa.array(["Something else"] * 99)
    items = others.item_table().data.table.combine_chunks().set_column(1, "title", titles)
    path = tmp_path / "titled"
    path.mkdir()
    write_domain(path, others.info, {split: others.sequences(split) for split in SPLITS}, items)
    assert share_known(Domain.open(path), item_sketch(ours)) == 0.0


def test_a_merged_catalogue_knows_those_that_it_was_made_of(source: Domain, target: Domain, tmp_path: Path) -> None:
    bare = [with_name(domain, domain.name, tmp_path) for domain in (source, target)]
    sketch = item_sketch(merge(bare, tmp_path / "both (a+b)"))
    nested = merge([Domain.open(tmp_path / "both (a+b)"), with_name(target, "other.shop", tmp_path)], tmp_path / "all")
    for known in (sketch, item_sketch(nested)):
        assert [share_known(domain, known) for domain in (source, target)] == [1.0, 1.0]


def with_name(domain: Domain, name: str, folder: Path) -> Domain:
    path = folder / name
    path.mkdir()
    items = domain.item_table().data.table
    info = dataclasses.replace(domain.info, name=name, features={}, missing={"text": 0, "image": 0})
    write_domain(path, info, {split: domain.sequences(split) for split in SPLITS}, items)
    return Domain.open(path)


# In trainings, published models and evaluations


def test_a_training_records_its_items(source: Domain, pretrained: Run, tower: Path) -> None:
    assert pretrained.info.item_sketch == item_sketch(source)
    assert Tower.from_pretrained(tower).item_sketch == tower_of_run(pretrained).item_sketch == item_sketch(source)


def test_a_finetuned_tower_knows_both_catalogues(source: Domain, target: Domain, tower: Path, tmp_path: Path) -> None:
    published = Tower.from_pretrained(tower)
    wanted = finetune_config({"training": {"steps": 1, "batch_size": 16, "warmup_steps": 0}}, published)
    for name, from_scratch in (("tuned", False), ("scratch", True)):
        finetune(target, tmp_path / name, wanted, published, from_scratch=from_scratch)
    both, alone = (Run.open(tmp_path / name).info.item_sketch for name in ("tuned", "scratch"))
    assert both == join_sketches(item_sketch(source), item_sketch(target))
    assert alone == item_sketch(target)


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Domain]:
    """Seed -> the same interactions, with other users to train on, so that the items have another order."""
    folder = tmp_path_factory.mktemp("seeds")
    raw = World.create(topics=6).domain("shop", DomainSize(200, 80, 12)).raw
    return {seed: with_texts(prepare(raw, folder / f"seed-{seed}", k_core=2, seed=seed)) for seed in (0, 1)}


def with_texts(domain: Domain) -> Domain:
    store(domain, encode_texts(domain, HashingTextEncoder()))
    return Domain.open(domain.path)


@pytest.fixture(scope="module")
def of_the_shop(shops: dict[int, Domain], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Run of both views on the Domain of seed 0, and its tower and joint model."""
    folder = tmp_path_factory.mktemp("models")
    run = pretrain(shops[0], folder / "run", config(model={"modalities": ["text"]}, training={"steps": 1}))
    publish(run, str(folder / "tower"))
    publish(run, str(folder / "joint"), "joint")
    return folder


def rows(domain: Domain, *arguments: object) -> tuple[list[str], list[str]]:
    """Names of the rows without the folder, and the warnings of an evaluation."""
    result = bivrec("evaluate", domain.path, *arguments, "--json")
    assert result.exit_code == 0, result.output
    names = [name.split("/")[-1].partition(" ")[2] for name in json.loads(result.stdout)["results"]]
    return names, [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]


@pytest.mark.parametrize("model", [("--from-hub", "tower"), ("--from-hub", "joint"), ("--run", "run")])
def test_the_same_data_with_another_seed_is_not_zero_shot(
    shops: dict[int, Domain], of_the_shop: Path, model: tuple[str, str]
) -> None:
    assert shops[0].item_ids() != shops[1].item_ids()
    option, name = model
    names, warnings = rows(shops[1], option, of_the_shop / name, "--zero-shot")
    assert names == ["trained on 100 % of these items"]
    assert len(warnings) == 1
    assert f"{of_the_shop / name}: trained on 100 % of these items" in warnings[0]
    assert "--without" in warnings[0]


def test_its_own_domain_is_not_strange_to_a_tower(shops: dict[int, Domain], of_the_shop: Path) -> None:
    assert rows(shops[0], "--from-hub", of_the_shop / "tower") == (["mm"], [])


def test_some_items_are_known_until_they_are_left_out(tmp_path: Path) -> None:
    raw = World.create(topics=6).domain("shop", DomainSize(200, 80, 12)).raw
    few = raw.items < 30
    part = dataclasses.replace(raw, users=raw.users[few], items=raw.items[few], timestamps=raw.timestamps[few])
    old = with_texts(prepare(part, tmp_path / "old", k_core=2))
    whole = with_texts(prepare(raw, tmp_path / "whole", k_core=2))
    new = with_texts(prepare(raw, tmp_path / "new", k_core=2, without=old))
    pretrain(old, tmp_path / "run", config(model={"modalities": ["text"]}, training={"steps": 1, "views": ["mm"]}))
    shared = len(set(old.item_ids()) & set(whole.item_ids()))
    assert 1 < shared < whole.num_items
    percent = round(100 * shared / whole.num_items)
    evaluated = ("--run", tmp_path / "run", "--zero-shot")
    assert rows(whole, *evaluated)[0] == [f"trained on {percent} % of these items"]
    assert rows(new, *evaluated) == (["zero-shot"], [])


@pytest.mark.parametrize("value", [None, 3, "0" * 16, [1], ["0" * 15], ["g" * 16], ["0" * 16] * 257, {"0" * 16: 1}])
def test_a_spoilt_sketch_is_refused(of_the_shop: Path, tmp_path: Path, value: object) -> None:
    spoilt = Path(shutil.copytree(of_the_shop / "tower", tmp_path / "spoilt"))
    values = json.loads((spoilt / "config.json").read_text())
    values["training"]["item_sketch"] = value
    (spoilt / "config.json").write_text(json.dumps(values))
    with pytest.raises(BivrecError, match="item_sketch: expected up to 256 hashes"):
        load(str(spoilt))
