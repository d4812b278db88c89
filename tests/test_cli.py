"""The commands end to end, in the order in which a user types them, and with everything that may be wrong."""

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors import SafetensorError
from scipy import stats
from stages import bivrec, in_subprocess, interrupt_at, new_run, same, settings, succeed, tower_weights, weights

from bivrec.artefact import Tower
from bivrec.cli import COMMANDS, main
from bivrec.cli.quickstart import commands as quickstart_commands
from bivrec.data.domain import Domain
from bivrec.data.info import INFO_FILE
from bivrec.files import sha256
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

SYNTHETIC = "--users 120 --items 60 --mean-length 12 --target-users 80 --target-items 44 --target-mean-length 9"
SHORT = settings(training={"steps": 2, "evaluate_every": 1})
TRAINING = settings(model={}, training={"steps": 2, "evaluate_every": 1})
# The architecture comes with the tower.
TUNING = [word for pair in zip(SHORT[::2], SHORT[1::2], strict=True) if "training." in pair[1] for word in pair]


def fail(*arguments: object) -> str:
    """The complaint of a command that must fail: one line, no traceback."""
    result = bivrec(*arguments)
    assert isinstance(result.exception, SystemExit), f"{result.exception!r}"
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


def rows(output: str) -> dict[str, list[float]]:
    """Values of a table of results, by its first column."""
    lines = [line for line in output.splitlines() if line and line[-1].isdigit()]
    table = [line.rsplit(maxsplit=len(lines[0].split()) - 1) for line in lines if "@" not in line]
    return {name.strip(): [float(value) for value in values] for name, *values in table}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage was run by its command."""
    folder = tmp_path_factory.mktemp("chain")
    source, target = folder / "world/source", folder / "world/target"
    succeed("prepare", "synthetic", "--to", folder / "world", *SYNTHETIC.split(), "--topics", 6, "--k-core", 2)
    for domain in (source, target):
        succeed("encode", domain, "--text", "hashing", "--image", "descriptor", "--whiten")
    succeed("pretrain", source, "--to", folder / "pretrained", *TRAINING)
    succeed("publish", folder / "pretrained", "--to", folder / "tower")
    succeed("finetune", target, "--from-hub", folder / "tower", "--to", folder / "finetuned", *TUNING)
    return folder


# What works


def test_pretrain_reports_the_test_users(chain: Path, tmp_path: Path) -> None:
    printed = succeed("pretrain", chain / "world/source", "--to", tmp_path / "run", *TRAINING)
    run = Run.open(tmp_path / "run")
    assert f"best weights, of step {run.progress().best_step}" in printed
    for view, values in rows(printed).items():
        at_20 = [100 * value for metric, value in run.results()[view].items() if metric.endswith("@20")]
        assert values == pytest.approx(at_20, abs=0.01)
    assert set(rows(printed)) == {"id", "mm", "both"}


def test_where_a_training_started_is_recorded(chain: Path) -> None:
    assert Run.open(chain / "finetuned").info.started_from == Tower.from_pretrained(str(chain / "tower")).source


@pytest.mark.parametrize(
    ("option", "views"),
    [("id", ["id"]), ("mm", ["mm"]), ("both", ["id", "mm"])],
)
def test_views(chain: Path, tmp_path: Path, option: str, views: list[str]) -> None:
    succeed("pretrain", chain / "world/source", "--to", tmp_path / "run", *TRAINING, "--views", option)
    assert list(Run.open(tmp_path / "run").config.training.views) == views


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--freeze-tower"], {"frozen_tower_steps": -1}),
        (["--freeze-steps", "5"], {"frozen_tower_steps": 5}),
        (["--tower-learning-rate", "0"], {"tower_learning_rate": 0.0}),
        (["--views", "mm", "--freeze-steps", "2"], {"views": ("mm",), "frozen_tower_steps": 2}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_leave_the_tower_as_it_is(
    chain: Path, tmp_path: Path, options: list[str], expected: dict[str, Any]
) -> None:
    succeed(
        "finetune", chain / "world/target", "--from-hub", chain / "tower", "--to", tmp_path / "run", *TUNING, *options
    )
    run = Run.open(tmp_path / "run")
    assert {key: getattr(run.config.training, key) for key in expected} == expected
    assert same(tower_weights(run), Tower.from_pretrained(str(chain / "tower")).weights)


def test_from_scratch(chain: Path, tmp_path: Path) -> None:
    options = ("--from-hub", chain / "tower", *TUNING)
    runs = []
    for name, more in (("tuned", ()), ("scratch", ("--from-scratch",))):
        succeed("finetune", chain / "world/target", *options, *more, "--to", tmp_path / name)
        runs.append(Run.open(tmp_path / name))
    tuned, scratch = runs
    assert scratch.config == tuned.config
    assert scratch.feature_specs == tuned.feature_specs
    assert scratch.info.started_from is None
    assert not same(weights(scratch), weights(tuned))


def test_a_recipe_of_ones_own(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(succeed("recipes", "show", "pretrain/default", *TRAINING))
    succeed("pretrain", chain / "world/source", "--to", tmp_path / "run", "--recipe", tmp_path / "mine.yaml")
    assert Run.open(tmp_path / "run").config == Run.open(chain / "pretrained").config


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_resume(chain: Path, tmp_path: Path, command: str) -> None:
    name = {"pretrain": "pretrained", "finetune": "finetuned"}[command]
    run = Run.open(shutil.copytree(chain / name, tmp_path / "run"))
    (run.path / "results.json").unlink()
    succeed(command, "--to", run.path, "--resume")
    assert run.results() == Run.open(chain / name).results()


def test_resume_on_a_domain_that_was_moved(chain: Path, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(chain / "pretrained", tmp_path / "run"))
    (run.path / "results.json").unlink()
    record = json.loads((run.path / "run.json").read_text())
    record["domain"]["path"] = str(tmp_path / "gone")
    (run.path / "run.json").write_text(json.dumps(record))
    resume = ("pretrain", "--to", run.path, "--resume")
    assert fail(*resume) == (
        f"Error: {tmp_path / 'gone'}: the Domain that {run.path} was trained on is not there any more; put it back, or "
        "name the folder where it is now (DOMAIN with --resume, --domain of refit)"
    )
    assert "was trained on the items of source" in fail(*resume, chain / "world/target")
    succeed(*resume, chain / "world/source")
    assert run.results() == Run.open(chain / "pretrained").results()


def test_a_training_that_has_not_ended_is_told(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, run = chain / "world/source", tmp_path / "the run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=4)
        recipe = settings(training={"steps": 60, "evaluate_every": 2})
        assert "interrupted at step 5" in bivrec("pretrain", source, "--to", run, *recipe).stderr
    publish = ("publish", run, "--to", tmp_path / "model", "--overwrite")
    evaluate = ("evaluate", source, "--run", run)
    recommend = ("recommend", source, "--run", run, "--to", tmp_path / "lists.csv", "--overwrite")
    elsewhere = ("recommend", chain / "world/target", *recommend[2:], "--zero-shot")
    for command in (publish, evaluate, recommend, elsewhere):
        result = bivrec(*command)
        assert result.exit_code == 0, result.output
        assert result.stderr == (
            f"Warning: {run}: not ended (step 5 of 60): its weights are the best so far; "
            f"go on with `bivrec pretrain --to '{run}' --resume`\n"
        )
        assert not bivrec(command[0], *(chain / "pretrained" if part == run else part for part in command[1:])).stderr


MADE_BY_OTHERS = {
    "prepare synthetic": "prepare synthetic --to {0} --users 30 --target-users 30 --no-images --overwrite",
    "pretrain": "pretrain {chain}/world/source --to {0} --overwrite",
    "finetune": "finetune {chain}/world/target --from-hub {chain}/tower --to {0} --overwrite",
    "publish": "publish {chain}/pretrained --to {0} --overwrite",
    "publish-domain": "publish-domain {chain}/world/source --to {0} --overwrite",
    "quickstart": "quickstart --to {0} --overwrite",
}


@pytest.mark.parametrize("command", MADE_BY_OTHERS.values(), ids=MADE_BY_OTHERS)
def test_overwrite_replaces_nothing_of_another_kind(chain: Path, tmp_path: Path, command: str) -> None:
    # A folder of models of other libraries, of all Runs or Domains, of a project that holds a world, and a file.
    others = [tmp_path / name for name in ("bert", "runs", "domains", "project", "table.csv")]
    others[0].mkdir()
    (others[0] / "config.json").write_text("{}")
    for folder, name in ((others[1], "pretrained"), (others[2], "world/source"), (others[3], "world")):
        shutil.copytree(chain / name, folder / Path(name).name)
    (others[3] / "thesis.txt").write_text("years of work")
    others[4].write_text("user_id,item_id,timestamp\n")
    before = whole_tree(tmp_path)
    for other in others:
        assert fail(*command.format(other, chain=chain).split()).startswith(f"Error: {other}")
    assert whole_tree(tmp_path) == before


def test_a_run_and_a_published_model_are_not_the_same(chain: Path, tmp_path: Path) -> None:
    run = shutil.copytree(chain / "pretrained", tmp_path / "run")
    assert "no config.json" in fail("publish", run, "--to", run, "--overwrite")
    assert Run.open(run).results()


OVERWRITTEN = {
    "world": "prepare synthetic --users 200 --items 60 --mean-length 12 --target-users 200 --no-images",
    "run": "pretrain {chain}/world/source --set training.steps=1",
    "tower": "publish {chain}/pretrained",
    "published": "publish-domain {chain}/world/source",
    "tables": "export {chain}/world/source",
}


@pytest.mark.parametrize(("name", "command"), OVERWRITTEN.items(), ids=OVERWRITTEN)
def test_overwrite(chain: Path, tmp_path: Path, name: str, command: str) -> None:
    arguments = [*command.format(chain=chain).split(), "--to", tmp_path / name, "--overwrite"]
    for _ in range(2):
        succeed(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name / "notes.txt").write_text("a day of thought")
    assert "holds notes.txt, which bivrec did not make" in fail(*arguments)


# evaluate


def evaluated(chain: Path, *options: object) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(succeed("evaluate", chain / "world/target", *options, "--json"))
    return results


def test_evaluate_everything(chain: Path) -> None:
    options = [word for floor in ("popularity", "item-knn", "content-knn") for word in ("--floor", floor)]
    everything = [*options, "--from-hub", chain / "tower", "--run", chain / "finetuned"]
    results = evaluated(chain, *everything)
    expected = ["popularity", "item-knn", "content-knn", f"{chain / 'tower'} zero-shot"]
    expected += [f"finetuned {view}" for view in ("id", "mm", "both")]
    assert list(results["results"]) == expected
    assert (results["domain"], results["split"]) == ("target", "test")
    assert results["users"] == Domain.open(chain / "world/target").info.users["test"]
    printed = succeed("evaluate", chain / "world/target", *everything)
    assert set(rows(printed)) == set(expected)
    for name, values in rows(printed).items():
        wanted = [100 * value for value in results["results"][name].values()]
        assert values == pytest.approx(wanted, abs=0.01)
    assert f"{results['users']} test users of target" in printed


def test_evaluate_repeats_what_training_reported(chain: Path) -> None:
    results = evaluated(chain, "--run", chain / "finetuned", "--k", 10, "--k", 20, "--k", 50)["results"]
    reported = Run.open(chain / "finetuned").results()
    assert {name.removeprefix("finetuned "): values for name, values in results.items()} == reported


@pytest.mark.parametrize("view", ["id", "mm", "both"])
def test_view(chain: Path, view: str) -> None:
    assert list(evaluated(chain, "--run", chain / "finetuned", "--view", view)["results"]) == [f"finetuned {view}"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_split(chain: Path, split: str) -> None:
    results = evaluated(chain, "--floor", "popularity", "--split", split)
    assert results["split"] == split
    assert 0 < results["users"] <= Domain.open(chain / "world/target").info.users[split]
    rows = ("--floor", "item-knn", "--floor", "content-knn", "--run", chain / "finetuned")
    complaint = bivrec("evaluate", chain / "world/target", *rows, "--split", split).stderr
    told = f"Warning: --split train: item-knn, {chain / 'finetuned'} learned from what these users are asked for\n"
    assert complaint == (told if split == "train" else "")


def test_list_lengths(chain: Path) -> None:
    values = evaluated(chain, "--floor", "popularity", "--k", 1, "--k", 7)["results"]["popularity"]
    assert {name.partition("@")[2] for name in values} == {"1", "7"}


def test_a_long_list_finds_everything(chain: Path) -> None:
    items = Domain.open(chain / "world/target").num_items
    values = evaluated(chain, "--run", chain / "finetuned", "--view", "mm", "--k", items)["results"]["finetuned mm"]
    assert values[f"recall@{items}"] == 1


def test_removing_what_was_seen_only_helps_without_repeats(chain: Path) -> None:
    """No user of the synthetic world has an item twice, which the finetuned model has learnt."""
    options = ("--from-hub", chain / "tower", "--run", chain / "finetuned", "--view", "both")
    kept, removed = (list(evaluated(chain, *options, *more)["results"].values()) for more in ((), ("--remove-seen",)))
    assert kept[0] != removed[0]
    assert removed[0]["recall@20"] >= kept[0]["recall@20"]
    assert kept[1] == removed[1]


def test_cold_start_reads_less(chain: Path) -> None:
    options = ("--run", chain / "finetuned", "--view", "id", "--floor", "popularity")
    whole, cold = (evaluated(chain, *options, *more)["results"] for more in ((), ("--cold", 1)))
    assert whole["popularity"] == cold["popularity"]
    assert whole["finetuned id"] != cold["finetuned id"]
    long = evaluated(chain, *options, "--cold", 1000)["results"]
    assert long == whole


def test_the_protocol_is_told(chain: Path) -> None:
    options = ("evaluate", chain / "world/target", "--floor", "popularity")
    printed = succeed(*options)
    assert printed.endswith("items ranked\nseen items kept\n")
    printed = succeed(*options, "--remove-seen", "--cold", 1)
    assert printed.endswith("\nseen items removed; of each history the last item is read\n")
    assert succeed(*options, "--cold", 2).endswith("\nseen items kept; of each history the last 2 items are read\n")
    told = evaluated(chain, "--floor", "popularity", "--k", 5, "--remove-seen", "--cold", 2)
    assert {key: told[key] for key in ("k", "remove_seen", "cold")} == {"k": [5], "remove_seen": True, "cold": 2}
    assert told["items"] == Domain.open(chain / "world/target").num_items
    assert evaluated(chain, "--floor", "popularity")["cold"] is None


def test_rows_are_known_by_their_weights(chain: Path) -> None:
    sources = evaluated(
        chain, "--run", chain / "finetuned", "--from-hub", chain / "tower", "--floor", "popularity", "--view", "mm"
    )["sources"]
    run, tower = chain / "finetuned", chain / "tower"
    assert sources == {
        "popularity": {"kind": "floor", "name": "popularity"},
        f"{tower} zero-shot": {
            "kind": "model",
            "name": str(tower),
            "revision": None,
            "sha256": sha256(tower / "model.safetensors"),
        },
        "finetuned mm": {
            "kind": "run",
            "name": str(run),
            "revision": None,
            "sha256": sha256(run / "best.safetensors"),
        },
    }


def test_the_weight_of_the_views_is_told(chain: Path, tmp_path: Path) -> None:
    run = Run.open(chain / "finetuned")
    weight = run.id_weight()
    assert weight == pytest.approx(float(weights(run, "best")["id_weight"]), abs=1e-6)
    mixture = f"both = {weight} id + {round(1 - weight, 1)} mm"
    assert f"finetuned {mixture}\n" in succeed("evaluate", chain / "world/target", "--run", run.path)
    assert evaluated(chain, "--run", run.path)["id_weights"] == {"finetuned both": weight}
    assert evaluated(chain, "--run", run.path, "--view", "mm")["id_weights"] == {}
    succeed("publish", run.path, "--to", tmp_path / "joint")
    assert evaluated(chain, "--from-hub", tmp_path / "joint")["id_weights"] == {f"{tmp_path / 'joint'} both": weight}
    trained = succeed("pretrain", chain / "world/source", "--to", tmp_path / "run", *TRAINING)
    weight = Run.open(tmp_path / "run").id_weight()
    assert trained.endswith(f"\nboth = {weight} id + {round(1 - weight, 1)} mm\n")


def test_zero_shot_is_the_same_from_a_run_and_from_its_published_tower(chain: Path) -> None:
    published = evaluated(chain, "--from-hub", chain / "tower")["results"]
    run = evaluated(chain, "--run", chain / "pretrained", "--zero-shot")["results"]
    assert list(run) == ["pretrained zero-shot"]
    assert list(published.values()) == list(run.values())


def test_a_modality_that_a_domain_lacks_is_told(chain: Path, small_domain: Domain, tmp_path: Path) -> None:
    """A tower of texts and images ranks items without images by zeros."""
    domain, tower = shutil.copytree(small_domain.path, tmp_path / "small"), chain / "tower"
    succeed("encode", domain, "--text", "hashing", "--whiten")
    told = "Warning: {}: reads text and image, but no item of small has image; it reads text alone\n"
    recommend = ("recommend", domain, "--zero-shot", "--to", tmp_path / "lists.csv", "--overwrite")
    for command in (("evaluate", domain, "--zero-shot"), recommend):
        for source, model in (("--run", chain / "pretrained"), ("--from-hub", tower)):
            result = bivrec(*command, source, model)
            assert result.exit_code == 0, result.output
            assert result.stderr == told.format(model)
    assert not bivrec("evaluate", chain / "world/target", "--from-hub", tower).stderr
    finetuned = bivrec("finetune", domain, "--from-hub", tower, "--to", tmp_path / "finetuned", *TRAINING)
    assert finetuned.exit_code == 0, finetuned.output
    assert finetuned.stderr.startswith(told.format(tower))


def test_a_shop_whose_images_were_forgotten_is_told(chain: Path, tmp_path: Path) -> None:
    """Its catalogue is that of the Run, which ranks it, and is trained on it again."""
    domain = shutil.copytree(chain / "world/source", tmp_path / "source")
    info = json.loads((domain / INFO_FILE).read_text())
    info["missing"]["image"] = info["num_items"]
    del info["features"]["image"]
    (domain / INFO_FILE).write_text(json.dumps(info))
    told = (
        f"Warning: {chain / 'pretrained'}: reads text and image, but no item of source has image; it reads text alone\n"
    )
    for command in (
        ("evaluate", domain, "--run", chain / "pretrained"),
        ("recommend", domain, "--run", chain / "pretrained", "--to", tmp_path / "lists.csv"),
        ("refit", chain / "pretrained", "--domain", domain, "--with-test", "--to", tmp_path / "refit"),
    ):
        result = bivrec(*command)
        assert result.exit_code == 0, result.output
        assert result.stderr.startswith(told), result.stderr


def test_per_user(chain: Path, tmp_path: Path) -> None:
    options = ("--run", chain / "finetuned", "--floor", "popularity", "--from-hub", chain / "tower")
    results = evaluated(chain, *options, "--per-user", tmp_path / "users")
    tables = {path.stem: pq.read_table(path) for path in (tmp_path / "users").iterdir()}
    assert len(tables) == len(results["results"])
    users = Domain.open(chain / "world/target").sequences("test").user_ids
    for name, metrics in results["results"].items():
        table = tables[name.replace(" ", "_").replace("/", "_")]
        assert table["user_id"].to_pylist() == users
        means = {metric: sum(table[metric].to_pylist()) / len(users) for metric in metrics}
        assert means == pytest.approx(metrics)


def test_leads_are_tested_as_by_scipy(chain: Path, tmp_path: Path) -> None:
    """Of two rows there is one test, which needs no correction."""
    options = ("--run", chain / "finetuned", "--view", "both", "--floor", "popularity")
    told = evaluated(chain, *options, "--test", "--per-user", tmp_path / "users")
    one, other = (pq.read_table(path) for path in sorted((tmp_path / "users").iterdir()))
    for metric in next(iter(told["results"].values())):
        ((name, found),) = told["p_values"][metric].items()
        assert name == "popularity"
        expected = stats.ttest_rel(one[metric].to_pylist(), other[metric].to_pylist()).pvalue
        assert found["t_test"] == pytest.approx(expected)
    printed = succeed("evaluate", chain / "world/target", *options, "--test").splitlines()
    rows = [line.split() for line in printed[printed.index("seen items kept") + 1 :]]
    assert rows[0][:3] == ["p", "(t-test)", "recall@20"]
    assert [row[-1] for row in rows[1:3]] == [f"{found['t_test']:.4f}" if found["t_test"] >= 1e-4 else "0.0001", "best"]
    assert "p_values" not in evaluated(chain, *options)


def test_a_row_that_was_named_is_tested(chain: Path) -> None:
    options = ("--run", chain / "finetuned", "--floor", "popularity", "--test")
    told = evaluated(chain, *options, "--reference", "finetuned mm")
    assert all(
        set(of_rows) == {"popularity", "finetuned id", "finetuned both"} for of_rows in told["p_values"].values()
    )
    printed = succeed("evaluate", chain / "world/target", *options, "--reference", "finetuned mm")
    assert "(how likely so large a difference to finetuned mm is by chance;" in printed
    assert "Holm-corrected over the rows)" in printed
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith("finetuned mm")][1] == "tested"
    assert "leave --reference out: of no use without --test" in fail(
        "evaluate", chain / "world/target", *options[:-1], "--reference", "finetuned mm"
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--run {0} --test --reference mm", "--reference 'mm': there is no such row, but popularity, finetuned id"),
        ("--run {0} --run {0}", "two rows are called '{0} id'; leave one out, or rename its file or folder"),
        ("--floor popularity", "two rows are called 'popularity'; leave one out"),
        ("--run {0} --run {1}", "{1} was trained on the items of source"),
        # Of users, both would be in finetuned_id.parquet.
        (
            "--run {0} --lists {2}/finetuned_id.csv --per-user {2}/users",
            "two rows are called 'finetuned_id.parquet'; leave one out, or rename its file or folder",
        ),
    ],
)
def test_nothing_is_ranked_before_all_rows_are_known(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, complaint: str
) -> None:
    places = chain / "finetuned", chain / "pretrained", tmp_path
    monkeypatch.setattr("bivrec.evaluation.ranking.evaluate", lambda *_: pytest.fail("something was ranked"))
    words = options.format(*places).split()
    assert complaint.format(*places) in fail("evaluate", chain / "world/target", "--floor", "popularity", *words)


def test_plot(chain: Path, tmp_path: Path) -> None:
    evaluated(chain, "--run", chain / "finetuned", "--k", 5, "--plot", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    # Again, with other bars: what bivrec drew is replaced.
    before = (tmp_path / "p.png").read_bytes()
    evaluated(chain, "--floor", "popularity", "--plot", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes() != before


@pytest.mark.parametrize("kind", ["a photograph", "an empty file", "a text"])
def test_no_picture_of_others_is_replaced(chain: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.png"
    if kind == "a photograph":
        Image.new("RGB", (8, 8), "red").save(path)
    else:
        path.write_text("" if kind == "an empty file" else "a text")
    before = path.read_bytes()
    for command in (
        ("plot", chain / "pretrained", "--to"),
        ("evaluate", chain / "none", "--floor", "popularity", "--plot"),
    ):
        assert "is no picture that bivrec drew" in fail(*command, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("names", [["pretrained"], ["pretrained", "finetuned"]])
def test_curves_of_runs(chain: Path, tmp_path: Path, names: list[str]) -> None:
    printed = bivrec("plot", *(chain / name for name in names), "--to", tmp_path / "p.png")
    assert printed.exit_code == 0, printed.output
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_name_are_told_apart(chain: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(chain / "finetuned", tmp_path / "finetuned")
    results = evaluated(chain, "--run", chain / "finetuned", "--run", twin, "--view", "id")["results"]
    assert len(results) == 2


def test_a_run_where_one_is_has_its_name(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(chain / "finetuned")
    monkeypatch.chdir(chain / "finetuned")
    for run, name in ((".", "finetuned"), ("../finetuned/../finetuned", "finetuned"), (tmp_path / "link", "link")):
        assert list(evaluated(chain, "--run", run, "--view", "id")["results"]) == [f"{name} id"]
    assert "of finetuned both to" in succeed("recommend", "../world/target", "--run", ".", "--to", tmp_path / "l.csv")


# What is wrong


def whole_tree(*folders: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        "export {source} --to {new} --format csv",
        "recommend {source} --run {run} --to {new}.jsonl --split train",
        "publish {run} --to {new}",
        "plot {run} --to {new}.png",
    ],
)
def test_a_full_disk_is_told_in_one_line(chain: Path, tmp_path: Path, command: str) -> None:
    """Here a limit on the size of files, which fails in the same way."""
    folders = {"source": chain / "world/source", "run": chain / "pretrained", "new": tmp_path / "new"}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        result = bivrec(*command.format(**folders).split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit)
    assert result.stderr.startswith(f"Error: {tmp_path / 'new'}")
    assert ": no room for it; make room on its disk" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_disk_is_told_in_one_line(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)")

    monkeypatch.setattr("bivrec.training.checkpoint.save_file", broken)
    complaint = fail("pretrain", chain / "world/source", "--to", tmp_path / "run", "--set", "training.steps=1")
    assert complaint.splitlines()[-1] == "Error: Error while serializing: I/O error: Input/output error (os error 5)"


def test_a_fault_of_the_disk_without_a_name_is_one_line(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of Arrow, which puts the file into its message."""

    def unreadable(*arguments: object) -> None:
        raise PermissionError("Failed to open local file 'test.arrow'. Detail: [errno 13] Permission denied")

    monkeypatch.setattr("bivrec.data.domain.Domain.sequences", unreadable)
    complaint = fail("evaluate", chain / "world/target", "--floor", "popularity")
    assert complaint == "Error: Failed to open local file 'test.arrow'. Detail: [errno 13] Permission denied"


# Words in braces are folders of the chain; {new} must not exist afterwards, and that it is no Domain is found out only
# when a ranking begins.
WRONG = {
    "prepare into a folder that exists": ("prepare synthetic --to {chain}/world", "exists already"),
    "prepare an impossible world": ("prepare synthetic --to {new} --users 3", "expected at least 10 users"),
    "encode no Domain": ("encode {new} --text hashing", "not a Domain"),
    "encode a Run": ("encode {run} --text hashing", "not a Domain"),
    "encode without the encoder": ("encode {bare} --text {new}", "no such folder"),
    "pretrain nothing": ("pretrain --to {new}", "DOMAIN: expected the folder of a prepared Domain"),
    "compare with seeds that stand apart": ("compare {chain}/world/source --to {new} --seeds 0 1 2", "--seeds 0,1,2"),
    "pretrain on no Domain": ("pretrain {new} --to {new}", "not a Domain"),
    "pretrain on a Run": ("pretrain {run} --to {new}", "not a Domain"),
    "pretrain into a folder that exists": ("pretrain {source} --to {run}", "exists already; pass --resume"),
    "pretrain by no recipe": ("pretrain {source} --to {new} --recipe nonesuch", "there are pretrain/"),
    "pretrain by no file": ("pretrain {source} --to {new} --recipe none.yaml", "no such file"),
    "pretrain with an unknown key": (
        "pretrain {source} --to {new} --set model.hiden_size=3",
        "unknown key; did you mean hidden_size",
    ),
    "pretrain with an impossible value": (
        "pretrain {source} --to {new} --set model.dropout=7 --set training.steps=-1",
        "model.dropout: 7 is above the greatest allowed value 0.95; training.steps: -1 is below",
    ),
    "pretrain with half a setting": ("pretrain {source} --to {new} --set hidden_size", "expected section.key=value"),
    "pretrain with too long a history": (
        "pretrain {source} --to {new} --set training.min_history=1000",
        "no training user has more than 1000 items",
    ),
    "pretrain without features": ("pretrain {bare} --to {new}", "bivrec encode"),
    "pretrain with no tracker": ("pretrain {source} --to {new} --track nosuchtracker", "expected one of aim, "),
    "pretrain below a file": ("pretrain {source} --to {file}/run", "{file}"),
    "resume no Run": ("pretrain --to {new} --resume", "not a Run"),
    "resume a Domain": ("pretrain --to {source} --resume", "not a Run"),
    "publish no Run": ("publish {new} --to {new}", "not a Run"),
    "publish a Domain": ("publish {source} --to {new}", "not a Run"),
    "publish into a folder that exists": ("publish {run} --to {tower}", "exists already"),
    "compare no models": ("compare {source} --to {new} --models ,", "--models: expected at least one"),
    "compare no seeds": ("compare {source} --to {new} --models popularity --seeds ,", "--seeds: expected at least one"),
    "experiment with features that there are not": (
        "experiment modalities {bare} --to {new}",
        "{bare}; make them with `bivrec encode`",
    ),
    "publish an untrained Run": ("publish {untrained} --to {new}", "no such checkpoint"),
    "publish as a Domain is opened": ("publish {run} --to hub:org/name", "expected ORG/NAME on the Hub, or a folder"),
    "publish to an address": (
        "publish-domain {target} --to https://huggingface.co/a/b",
        "expected ORG/NAME on the Hub",
    ),
    "publish to a revision": ("publish {run} --to org/name@v1 --dry-run", "a version with --tag"),
    "publish below a file": ("publish {run} --to {file}/a/b", "{file}"),
    "finetune nothing": ("finetune --from-hub {tower} --to {new}", "DOMAIN: expected"),
    "finetune no tower": ("finetune {target} --to {new}", "--from-hub: expected a published tower"),
    "finetune a Run": ("finetune {target} --from-hub {run} --to {new}", "config.json"),
    "finetune from nowhere": ("finetune {target} --from-hub {new} --to {new}", "no such folder"),
    "pretrain a tower at a rate of its own": (
        "pretrain {source} --to {new} --set training.tower_learning_rate=0.1",
        "for `bivrec finetune`, which starts from a published tower",
    ),
    "finetune by a recipe with an unknown key": (
        "finetune {target} --from-hub {tower} --to {new} --recipe quickstart --set model.hiden_size=3",
        "recipe quickstart: model.hiden_size: unknown key",
    ),
    "finetune without features": ("finetune {bare} --from-hub {tower} --to {new}", "features differ"),
    "finetune another architecture": (
        "finetune {target} --from-hub {tower} --to {new} --set model.hidden_size=16",
        "model.hidden_size: the tower has 8, the recipe 16",
    ),
    "finetune the ID view": ("finetune {target} --from-hub {tower} --to {new} --views id", "multimodal view"),
    "finetune nothing but a frozen tower": (
        "finetune {target} --from-hub {tower} --to {new} --views mm --freeze-tower",
        "frozen",
    ),
    "finetune a frozen tower at a rate": (
        "finetune {target} --from-hub {tower} --to {new} --freeze-tower --tower-learning-rate 0.1",
        "--freeze-tower leaves nothing to learn at --tower-learning-rate; leave one of them out",
    ),
    "finetune at a negative rate": (
        "finetune {target} --from-hub {tower} --to {new} --tower-learning-rate -1",
        "training.tower_learning_rate: -1.0 is below",
    ),
    "evaluate nothing": ("evaluate {target}", "nothing to evaluate"),
    "evaluate a view of a method without one": (
        "evaluate {target} --floor popularity --zero-shot --view id",
        "leave --zero-shot, --view out: of no use without --run or --from-hub",
    ),
    "evaluate on no Domain": ("evaluate {new} --floor popularity", "not a Domain"),
    "evaluate no Run": ("evaluate {target} --run {new}", "not a Run"),
    "evaluate a tower as a Run": ("evaluate {target} --run {tower}", "not a Run"),
    "evaluate on other items": ("evaluate {target} --run {run}", "was trained on the items of source"),
    "evaluate an untrained Run": ("evaluate {source} --run {untrained}", "no such checkpoint"),
    "evaluate a view that is not there": ("evaluate {source} --run {id} --view mm", "the model has only id"),
    "evaluate the ID view of a tower": ("evaluate {target} --from-hub {tower} --view id", "only the multimodal view"),
    "evaluate the ID view zero-shot": (
        "evaluate {target} --run {run} --zero-shot --view id",
        "only the multimodal view",
    ),
    "evaluate an ID tower zero-shot": ("evaluate {target} --run {id} --zero-shot", "ID view alone"),
    "evaluate zero-shot without features": ("evaluate {bare} --from-hub {tower}", "features differ"),
    "evaluate contents without features": ("evaluate {bare} --floor content-knn", "no text features"),
    "evaluate into a folder that exists": (
        "evaluate {new} --floor popularity --per-user {run}",
        "exists already; choose another folder",
    ),
    "evaluate into a file": ("evaluate {new} --floor popularity --per-user {file}", "{file}: is a file"),
    "plot no Run": ("plot {tower} --to {new}.png", "not a Run"),
    "plot a Run before its first evaluation": ("plot {untrained} --to {new}.png", "not evaluated yet"),
    "plot a metric that is not there": ("plot {run} --to {new}.png --metric recall@3", "choose one of recall@20"),
    "plot a view that is not there": ("plot {id} --to {new}.png --view mm", "no view mm; it has id"),
    "plot into a folder": ("evaluate {new} --floor popularity --plot {dot_png}", "is a folder"),
    "plot in another format": ("plot {run} --to {new}.jpg", "unknown format '.jpg'; pictures are .png"),
    "evaluate and plot in another format": (
        "evaluate {new} --floor popularity --plot {new}.svg",
        "unknown format '.svg'; pictures are .png",
    ),
    "recommend into a folder": ("recommend {source} --run {run} --to {dot_csv} --overwrite", "is a folder"),
    "plot below a file": ("evaluate {new} --floor popularity --plot {file}/p.png", "{file}"),
    "show no recipe": ("recipes show nonesuch", "no such recipe"),
    "show a recipe without its stage": (
        "recipes show quickstart",
        "quickstart: a recipe belongs to a stage; say pretrain/quickstart or finetune/quickstart",
    ),
    "show a recipe with an unknown key": ("recipes show pretrain/default --set model.x=1", "unknown key"),
    "quickstart into a folder that exists": ("quickstart --to {run}", "exists already"),
}


@pytest.mark.parametrize(("command", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(
    chain: Path, small_domain: Domain, id_only: Run, tmp_path: Path, command: str, message: str
) -> None:
    source = Domain.open(chain / "world/source")
    (tmp_path / "file").write_text("no folder")
    places = {
        "chain": chain,
        "source": source.path,
        "target": chain / "world/target",
        "run": chain / "pretrained",
        "tower": chain / "tower",
        "id": shutil.copytree(id_only.path, tmp_path / "id"),
        "bare": small_domain.path,
        "untrained": new_run(tmp_path / "untrained", source, Run.open(chain / "pretrained").config).path,
        "file": tmp_path / "file",
        "new": tmp_path / "new",
        "dot_png": tmp_path / "folder.png",
        "dot_csv": tmp_path / "folder.csv",
    }
    for name in ("dot_png", "dot_csv"):
        places[name].mkdir()
    if "{id} --view" in command:
        # The catalogue must be that of the Run, or another fault comes first.
        places["source"] = Path(id_only.info.domain["path"])
    before = whole_tree(chain, tmp_path)
    complaint = fail(*(word.format(**places) for word in command.split()))
    assert message.format(**places) in complaint
    assert whole_tree(chain, tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", ["--set training.steps=9", "--views mm", "--overwrite"])
def test_resuming_with_other_settings_is_refused(chain: Path, options: str) -> None:
    assert "--resume" in fail("pretrain", "--to", chain / "pretrained", "--resume", *options.split())


@pytest.mark.parametrize("options", ["--from-hub {}", "--freeze-tower", "--freeze-steps 3", "--tower-learning-rate 1"])
def test_resuming_a_finetuning_with_other_settings_is_refused(chain: Path, options: str) -> None:
    words = options.format(chain / "tower").split()
    assert "--resume" in fail("finetune", "--to", chain / "finetuned", "--resume", *words)


@pytest.mark.parametrize(
    "options", ["--from-scratch --freeze-tower", "--freeze-tower --freeze-steps 3", "--from-scratch --freeze-steps 3"]
)
def test_options_that_contradict_each_other_are_refused(chain: Path, tmp_path: Path, options: str) -> None:
    tower = ("--from-hub", chain / "tower")
    fail("finetune", chain / "world/target", *tower, "--to", tmp_path / "run", *TUNING, *options.split())
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_one_line(chain: Path, tmp_path: Path) -> None:
    run = shutil.copytree(chain / "finetuned", tmp_path / "run")
    for name, command in (
        ("best", ("evaluate", chain / "world/target", "--run", run)),
        ("best", ("publish", run, "--to", tmp_path / "tower")),
        ("last", ("finetune", "--to", run, "--resume")),
    ):
        path = run / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        assert f"{path}: not a checkpoint of bivrec, or damaged" in fail(*command)
    assert not (tmp_path / "tower").exists()


# The group


HEAVY = {"torch", "accelerate", "datasets", "transformers", "pyarrow", "numpy", "matplotlib", "PIL", "scipy"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from bivrec.cli import main; "
        "print(CliRunner().invoke(main, ['--help']).output); "
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    printed = in_subprocess("-c", code).stdout
    assert printed.splitlines()[-1] == "[]"
    for name, (_, line) in COMMANDS.items():
        assert f"{name} " in printed
        assert line.split(";")[0][:30] in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = bivrec(name, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage: " in result.stdout


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    found = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [leaf for name, part in found if part is not None for leaf in leaves(part, (*path, name))]


@pytest.mark.parametrize("path", leaves(main), ids=" ".join)
def test_every_option_says_what_it_does(path: tuple[str, ...]) -> None:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    assert command.help
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonesuch"],
        ["pretrain", "--nonesuch"],
        ["evaluate"],
        ["prepare", "nonesuch"],
        ["prepare", "tables", "--interactions", "a.csv", "--interactions", "b.csv", "--to", "c"],
        ["evaluate", "none", "--floor", "popularity", "--view", "id", "--view", "mm"],
        ["evaluate", "none", "--k", str(1 << 64)],
        ["evaluate", "none", "--cold", str(1 << 64)],
    ],
)
def test_usage_errors(arguments: list[str]) -> None:
    result: Result = bivrec(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_of_a_process_goes_to_stderr(tmp_path: Path) -> None:
    result = in_subprocess("-m", "bivrec", "evaluate", tmp_path / "none", "--floor", "popularity", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"Error: {tmp_path / 'none'}: not a Domain (no domain.json); make one with `bivrec prepare`"
    ]


@pytest.mark.parametrize("arguments", quickstart_commands(Path("some folder")), ids=lambda words: words[0])
def test_the_commands_of_the_quickstart_parse(arguments: list[str]) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        name, *arguments = arguments
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    command.make_context(command.name, arguments)


def test_the_quickstart_runs_its_commands_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [["recipes"], ["evaluate", str(tmp_path / "none")], ["recipes"]]
    monkeypatch.setattr("bivrec.cli.quickstart.commands", lambda folder: commands)
    result = CliRunner().invoke(main, ["quickstart", "--to", str(tmp_path / "q")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: nothing to evaluate")
    assert result.stdout.count("$ bivrec recipes") == 1


def test_a_folder_that_is_no_quickstart_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bivrec.cli.quickstart.commands", lambda folder: [])
    (tmp_path / "thesis.txt").write_text("years of work")
    fail("quickstart", "--to", tmp_path, "--overwrite")
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(chain: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    fail("publish", chain / "pretrained", "--to", tmp_path / "tower")


def test_best_weights_are_what_a_command_publishes(chain: Path) -> None:
    assert same(
        Tower.from_pretrained(str(chain / "tower")).weights,
        weights(Run.open(chain / "pretrained"), "best", "towers.mm."),
    )
