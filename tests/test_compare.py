"""`bivrec compare` end to end: what it trains, resumes, refuses, and writes."""

import csv
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from scipy import stats
from stages import bivrec, in_subprocess, new_run, same, settings, values, weights

from bivrec.baselines.floors import fit_floor
from bivrec.baselines.item_knn import ItemKNN
from bivrec.baselines.popularity import Popularity
from bivrec.config import CONTENT_FLOORS, FLOORS
from bivrec.data.domain import Domain
from bivrec.data.refit import RefitDomain
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.locks import locked
from bivrec.pretrain import pretrain
from bivrec.refit import refit
from bivrec.studies.compare import comparison
from bivrec.studies.execution import LIBRARIES, carry_out
from bivrec.studies.jobs import Job, run_jobs
from bivrec.studies.paper import table1, table2, table3
from bivrec.studies.significance import check_libraries
from bivrec.studies.systems import SYSTEMS
from bivrec.studies.workshop import Workshop
from bivrec.training.run import Run
from bivrec.version import __version__

pytest_plugins = ("stage_fixtures",)

MODELS = "popularity,item-knn,bivrec-id,bivrec-mm,bivrec,pure-id"
SHORT = settings(model={"repeat_bias": False}, training={"steps": 3, "evaluate_every": 1})
"""Without the bias, items that were seen are proposed, and the two protocols differ."""


def compare(*arguments: object, ends: int = 0) -> Result:
    result = bivrec("compare", *arguments, *SHORT)
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    assert result.exit_code == ends, result.output
    return result


def ages(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def lines(folder: Path, name: str = "comparison") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def compared(target: Domain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings, each with two seeds, two at a time."""
    folder = tmp_path_factory.mktemp("compare") / "study"
    printed = compare(target.path, "--models", MODELS, "--seeds", "0,1", "--jobs", 2, "--to", folder).stdout
    assert printed == (folder / "comparison.md").read_text()
    return folder


def test_every_training_is_an_ordinary_run(compared: Path) -> None:
    runs = {path.parent.relative_to(compared / "runs").as_posix() for path in compared.rglob("run.json")}
    # The three rows of BiVRec are views of one model.
    assert runs == {f"target/{model}/seed-{seed}" for model in ("bivrec", "pure-id") for seed in (0, 1)}
    for path in sorted(runs):
        assert Run.open(compared / "runs" / path).config.training.seed == int(path[-1])


def test_a_run_is_what_pretrain_makes(compared: Path, target: Domain, tmp_path: Path) -> None:
    run = Run.open(compared / "runs/target/bivrec/seed-1")
    assert same(weights(pretrain(target, tmp_path / "run", run.config)), weights(run))


def test_the_log_of_a_training_tells_how_it_went(compared: Path) -> None:
    for log in (compared / "logs").rglob("*.log"):
        assert "validation recall@20 " in log.read_text().splitlines()[-1]


def test_the_table_tells_the_results_of_the_runs(compared: Path) -> None:
    table = {line["model"]: line for line in lines(compared) if line["seen"] == "kept"}
    assert list(table) == MODELS.split(",")
    for model, training, view in (
        ("bivrec-id", "bivrec", "id"),
        ("bivrec", "bivrec", "both"),
        ("pure-id",) * 2 + ("id",),
    ):
        runs = [Run.open(compared / f"runs/target/{training}/seed-{seed}") for seed in (0, 1)]
        for metric in ("recall@20", "ndcg@20", "ndcg_hits@20", "hr@20"):
            values = [100 * run.results()[view][metric] for run in runs]
            assert float(table[model][metric]) == pytest.approx(np.mean(values))
            assert float(table[model][f"{metric} std"]) == pytest.approx(np.std(values, ddof=1))
        trained = weights(runs[0], "best")
        # How the views are weighed is kept with the weights, and is not trained.
        told = [tensor.numel() for name, tensor in trained.items() if name not in ("id_weight", "id_trust")]
        assert int(table[model]["parameters"]) == sum(told)
        assert table[model]["seeds"] == "0 1"
    assert table["popularity"]["seeds"] == table["popularity"]["seconds"] == ""


def test_the_weight_of_the_views_is_a_column(compared: Path) -> None:
    fit = [Run.open(compared / f"runs/target/bivrec/seed-{seed}").id_weight() for seed in (0, 1)]
    for line in lines(compared):
        assert (
            line["id weight"] == ""
            if line["model"] != "bivrec"
            else float(line["id weight"]) == pytest.approx(np.mean(fit))
        )


def test_both_protocols_are_those_of_evaluate(compared: Path, target: Domain) -> None:
    users = EvaluationUsers.from_sequences(target.sequences("test"))
    found = {}
    for remove_seen, seen in ((False, "kept"), (True, "removed")):
        of_seeds = []
        for seed in (0, 1):
            model = Run.open(compared / f"runs/target/bivrec/seed-{seed}").load_model(target)
            of_seeds.append(evaluate(ModelScorer(model, "mm"), users, (20,), remove_seen).per_user["ndcg@20"])
        found[seen] = np.mean(of_seeds, 0)
        (line,) = [line for line in lines(compared) if (line["model"], line["seen"]) == ("bivrec-mm", seen)]
        assert float(line["ndcg@20"]) == pytest.approx(100 * found[seen].mean())
    assert (found["kept"] != found["removed"]).any()


def test_the_tests_are_paired_over_users(compared: Path, target: Domain) -> None:
    users = EvaluationUsers.from_sequences(target.sequences("test"))
    table = {line["model"]: line for line in lines(compared) if line["seen"] == "kept"}
    best = max(table, key=lambda model: float(table[model]["recall@20"]))
    assert best == "item-knn"
    assert table[best]["p t-test"] == table[best]["p bootstrap"] == ""
    one, other = (evaluate(floor.fit(target), users, (20,)).per_user["recall@20"] for floor in (ItemKNN, Popularity))
    plain = stats.ttest_rel(one, other).pvalue
    # Of the pairs of six rows, Holm multiplies by 11 to 15.
    assert len(table) == 6
    assert 11 * plain * (1 - 1e-9) <= float(table["popularity"]["p t-test"]) <= min(1.0, 15 * plain) * (1 + 1e-9)


def test_best_and_second_are_marked(compared: Path) -> None:
    first = (compared / "comparison.md").read_text().split("## ")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines() if line[:1] == "|"]
    header, _, *body = rows
    for column in ("recall@20", "ndcg@20", "ndcg_hits@20", "hr@20"):
        cells = [row[header.index(column)] for row in body]
        values = [float(cell.strip("*").replace("<u>", "").split("<")[0].split(" ±")[0]) for cell in cells]
        ranked = sorted(values, reverse=True)
        assert [cell.startswith("**") for cell in cells] == [value == ranked[0] for value in values]
        second = ranked[1] if ranked[1] < ranked[0] else None
        assert [cell.startswith("<u>") for cell in cells] == [value == second for value in values]


def test_latex_has_every_row_and_escapes_names(compared: Path) -> None:
    text = (compared / "comparison.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert text.count("pure-id &") == 2
    assert "ndcg\\_hits@20" in text
    assert "ndcg_hits" not in text
    assert r"\textbf{" in text
    assert r"\underline{" in text


def test_it_says_what_was_compared(target: Domain, tmp_path: Path) -> None:
    options = ["compare", str(target.path), "--models", "pure-id", "--to", str(tmp_path / "a study"), *SHORT]
    done = in_subprocess("-m", "bivrec", *options)
    assert done.returncode == 0, done.stderr
    command = shlex.join(["bivrec", *options])
    told = f"; 3 steps of 16 sequences; bivrec {__version__}.\n"
    title, settings, *rest = done.stdout.split("\n\n")
    assert title == "# Comparison on target"
    assert settings == f"Recipe default with {', '.join(f'`{word}`' for word in SHORT[1::2])}{told}".rstrip()
    assert rest[0] == f"```\n{command}\n```"
    latex = (tmp_path / "a study/comparison.tex").read_text()
    assert f"% {settings.replace('`', '')}\n% {command}\n" in latex
    assert "steps of 16 sequences; bivrec" in latex[latex.index(r"\caption{") :]


def test_what_says_nothing_of_the_rows_is_left_out(target: Domain, compared: Path, tmp_path: Path) -> None:
    whole = (compared / "comparison.md").read_text()
    assert "- bivrec-id, bivrec-mm and bivrec are one training." in whole
    assert "bivrec-id reads features too" in whole
    assert "- popularity and item-knn need no training." in whole
    assert "Seeds 0, 1;" in whole
    assert "mmsrec" not in whole
    assert "paper" not in whole
    one = compare(target.path, "--models", "pure-id", "--to", tmp_path / "one").stdout
    assert "Seed 0." in one
    # A row alone differs from no other.
    assert "p (" not in one
    assert not any(line.startswith("- ") for line in one.splitlines())
    floors = compare(target.path, "--models", "popularity,item-knn", "--to", tmp_path / "floors").stdout
    assert floors.splitlines()[2] == f"bivrec {__version__}."
    assert "p (t-test)" in floors
    assert "seconds" not in floors
    paper = comparison([target], ("mmsrec", "sasrec"))
    assert paper.notes[1] == (
        "mmsrec reads a history as a whole and learns one target of a sequence in a step, the others every position."
    )


def test_a_model_that_was_named_is_tested(target: Domain, tmp_path: Path) -> None:
    options = (target.path, "--models", "popularity,item-knn,content-knn", "--to", tmp_path / "study")
    said = compare(*options, "--reference", "content-knn").stdout
    assert "p: recall@20 of content-knn against each other model" in said
    assert "Holm-corrected over the other models, with this one named in advance" in said
    rows = csv.DictReader((tmp_path / "study/comparison.csv").read_text().splitlines())
    assert {row["model"]: row["p t-test"] != "" for row in rows} == {
        "popularity": True, "item-knn": True, "content-knn": False
    }  # fmt: skip
    with pytest.raises(BivrecError, match="--reference sasrec: not among the models, which are popularity"):
        comparison([target], ("popularity", "item-knn"), "sasrec")


def test_lists_of_another_length(compared: Path, target: Domain, tmp_path: Path) -> None:
    study = shutil.copytree(compared, tmp_path / "study")
    compare(target.path, "--models", MODELS, "--seeds", "0,1", "--k", 5, "--to", study)
    users = EvaluationUsers.from_sequences(target.sequences("test"))
    expected = evaluate(fit_floor("item-knn", target), users, (5,)).metrics
    (line,) = (line for line in lines(study) if line["model"] == "item-knn" and line["seen"] == "kept")
    for metric in ("recall@5", "ndcg@5", "ndcg_hits@5", "hr@5"):
        assert float(line[metric]) == pytest.approx(100 * expected[metric])
    text = (study / "comparison.md").read_text()
    assert "p: recall@5 of" in text
    assert "@20" not in text


def test_the_picture(compared: Path) -> None:
    assert (compared / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_again_trains_only_what_is_new(compared: Path, target: Domain) -> None:
    before, table = ages(compared), (compared / "comparison.csv").read_text()
    printed = compare(target.path, "--models", MODELS, "--seeds", 0, "--seeds", 1, "--to", compared)
    assert "to go" not in printed.stderr
    assert ages(compared) == before
    assert (compared / "comparison.csv").read_text() == table
    printed = compare(target.path, "--models", "pure-mm", "--models", "pure-id", "--seeds", "0", "--to", compared)
    assert printed.stderr.count("to go") == 1
    assert {key: age for key, age in ages(compared).items() if key in before} == before
    assert [line["model"] for line in lines(compared)] == ["pure-mm", "pure-id"] * 2
    compare(target.path, "--models", MODELS, "--seeds", "0,1", "--to", compared)


def test_what_knows_the_validation_is_trained_in_addition(compared: Path, target: Domain, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(compared, study)
    before = ages(study)
    compare(target.path, "--models", "item-knn,pure-id", "--seeds", "0,1", "--refit", "--to", study)
    assert {key: age for key, age in ages(study).items() if key in before} == before
    runs = [Run.open(study / f"runs/target/pure-id/seed-{seed}-refit") for seed in (0, 1)]
    for seed, run in enumerate(runs):
        again = refit(Run.open(study / f"runs/target/pure-id/seed-{seed}"), tmp_path / f"refit-{seed}")
        assert same(weights(run, "best"), weights(again, "best"))
    table = {line["model"]: line for line in lines(study) if line["seen"] == "kept"}
    expected = np.mean([100 * run.results()["id"]["recall@20"] for run in runs])
    assert float(table["pure-id"]["recall@20"]) == pytest.approx(expected)
    users = EvaluationUsers.from_sequences(target.sequences("test"))
    floor = evaluate(fit_floor("item-knn", RefitDomain(target)), users, (20,)).metrics
    assert float(table["item-knn"]["recall@20"]) == pytest.approx(100 * floor["recall@20"])
    assert "knows the validation too" in (study / "comparison.md").read_text()
    after = ages(study)
    compare(target.path, "--models", "item-knn,pure-id", "--seeds", "0,1", "--refit", "--to", study)
    assert ages(study) == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "training.steps=9"], "training.steps is 3 there, now 9"),
        (["--set", "model.scales=[2,3]"], "model.scales"),
    ],
    ids=["steps", "scales"],
)
def test_other_settings_than_before_are_refused(
    compared: Path, target: Domain, options: list[str], message: str
) -> None:
    before = ages(compared)
    result = bivrec("compare", target.path, "--models", "pure-id", "--to", compared, *SHORT, *options)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert message in line
    assert "choose another --to" in line
    assert ages(compared) == before


def test_another_domain_of_the_same_name_is_refused(compared: Path, source: Domain, tmp_path: Path) -> None:
    impostor = shutil.copytree(source.path, tmp_path / "target")
    info = json.loads((impostor / "domain.json").read_text())
    (impostor / "domain.json").write_text(json.dumps(info | {"name": "target"}))
    assert "was trained on the items of" in compare(impostor, "--models", "pure-id", "--to", compared, ends=1).stderr
    complaint = compare(impostor, compared.parent / "none", "--models", "pure-id", "--to", tmp_path / "s", ends=1)
    assert "not a Domain" in complaint.stderr


def test_what_cannot_be_trained_leaves_no_folder(target: Domain, tmp_path: Path) -> None:
    arguments = ("--models", "sasrec", "--set", "model.num_heads=3", "--to", tmp_path / "study")
    assert "num_heads" in compare(target.path, *arguments, ends=1).stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("below", ["", "new/study"])
def test_a_study_does_not_lie_in_anything_else(
    target: Domain, pretrained: Run, tower: Path, tmp_path: Path, below: str
) -> None:
    kinds = {"Domain": target.path, "Run": pretrained.path, "published model": tower}
    for kind, folder in kinds.items():
        before = sorted(folder.rglob("*"))
        told = compare(target.path, "--models", "popularity", "--to", folder / below, ends=1).stderr
        where = f"lies in {folder}," if below else "is"
        assert told == f"Error: {folder / below}: {where} the folder of a {kind}; choose another --to\n"
        assert sorted(folder.rglob("*")) == before
    (tmp_path / "file").touch()
    for path, complaint in ((tmp_path / "file", "is a file"), (tmp_path / "file/study", "is a file, not a folder")):
        assert complaint in compare(target.path, "--models", "popularity", "--to", path, ends=1).stderr


def test_a_model_that_fails_does_not_stop_the_others(target: Domain, tmp_path: Path) -> None:
    study = comparison([target], ["pure-mm", "pure-id"])
    values = {"model": {}, "training": {"steps": 3, "evaluate_every": 1, "batch_size": 16}}
    workshop = Workshop(tmp_path / "study", values, (0,))
    broken, well = study.trainings
    run = new_run(workshop.run_path(broken, 0), target, workshop.config(broken, 0))
    run.checkpoint("last").write_bytes(b"damaged")
    arguments = ("--set", "training.steps=3", "--set", "training.evaluate_every=1", "--set", "training.batch_size=16")
    (tmp_path / "bare.yaml").write_text("{}")
    options = (
        "--models",
        "pure-mm,pure-id",
        "--recipe",
        tmp_path / "bare.yaml",
        "--to",
        tmp_path / "study",
        *arguments,
    )
    result = bivrec("compare", target.path, *options)
    assert result.exit_code == 1
    assert "not a checkpoint of bivrec, or damaged" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: 1 failed and are not in the tables: ")
    assert str(run.path) in result.stderr.splitlines()[-1]
    assert Run.open(workshop.run_path(well, 0)).results()
    assert [line["model"] for line in lines(tmp_path / "study")] == ["pure-id"] * 2


def test_a_killed_comparison_goes_on_where_it_stopped(target: Domain, tmp_path: Path) -> None:
    long = settings(model={}, training={"steps": 40, "evaluate_every": 2})
    options = ("--models", "pure-id", "--seeds", "0,1", "--to", str(tmp_path / "study"), *long)
    command = [sys.executable, "-m", "bivrec", "compare", str(target.path), *options]
    runs = [tmp_path / f"study/runs/target/pure-id/seed-{seed}" for seed in (0, 1)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(runs[1] / "best.safetensors", process)
        process.send_signal(signal.SIGKILL)
    assert runs[0].joinpath("results.json").exists()
    assert not (tmp_path / "study/comparison.csv").exists()
    wait_until_quiet(runs[1])
    assert not runs[1].joinpath("results.json").exists()
    before = ages(runs[0])
    result = bivrec("compare", target.path, *options)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("to go") == 1
    assert ages(runs[0]) == before
    whole = pretrain(target, tmp_path / "whole", Run.open(runs[1]).config)
    assert same(weights(whole), weights(Run.open(runs[1])))
    assert [line["seeds"] for line in lines(tmp_path / "study")] == ["0 1"] * 2


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)


def wait_until_quiet(folder: Path, seconds: float = 3.0) -> None:
    """The training that a killed comparison leaves behind saves its state and ends."""
    last, since = {}, time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.1)
        now = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix != ".tmp"}
        if now != last:
            last, since = now, time.monotonic()


def test_ctrl_c_saves_and_says_how_to_go_on(target: Domain, tmp_path: Path) -> None:
    long = settings(model={}, training={"steps": 5000, "evaluate_every": 2})
    run = tmp_path / "study/runs/target/pure-id/seed-0"

    def interrupt() -> None:
        while not (run / "best.safetensors").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    # Shells let what they start in the background ignore it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    result = bivrec("compare", target.path, "--models", "pure-id", "--to", tmp_path / "study", *long)
    signal.signal(signal.SIGINT, handler)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: interrupted; the same command goes on where it stopped"
    stopped = Run.open(run).progress("last").step
    assert 2 <= stopped < 5000
    assert not (run / "results.json").exists()


def test_a_study_is_carried_out_by_one_process_at_a_time(target: Domain, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    with locked(folder):
        refused = compare(target.path, "--models", "popularity", "--to", folder, ends=1)
    message = f"{folder}: process {os.getpid()} on {socket.gethostname()} is at work in this folder"
    assert refused.stderr == f"Error: {message}; wait until it has ended\n"
    assert not list(folder.iterdir())
    compare(target.path, "--models", "popularity", "--to", folder)
    assert {path.name for path in folder.iterdir()} == {f"comparison.{kind}" for kind in ("csv", "md", "png", "tex")}


def test_a_study_holds_its_lock_while_it_trains(target: Domain, tmp_path: Path) -> None:
    heard: list[str] = []

    def try_it(line: str) -> None:
        with pytest.raises(BivrecError, match="is at work") as fault, locked(tmp_path / "study"):
            pytest.fail("the work began")
        heard.append(str(fault.value))

    carry_out(comparison([target], ["pure-id"]), "comparison", tmp_path / "study", values(), [0], report=try_it)
    # A training, and a ranking.
    assert len(heard) == 2


def test_a_crash_is_a_complaint(target: Domain, tmp_path: Path, compared: Path) -> None:
    config = Run.open(compared / "runs/target/pure-id/seed-0").config
    jobs = [Job(tmp_path / "none", tmp_path / "runs/a/b/seed-0", config)]
    heard: list[str] = []
    failed = run_jobs(jobs, tmp_path, 1, heard.append)
    (complaint,) = failed.values()
    assert "not a Domain" in complaint
    assert complaint in heard[0]


def test_a_run_that_was_killed_before_it_began_is_begun(compared: Path, target: Domain, tmp_path: Path) -> None:
    whole = Run.open(next((compared / "runs").rglob("run.json")).parent)
    killed = tmp_path / "runs" / "killed"
    killed.mkdir(parents=True)
    shutil.copy(whole.path / "run.json", killed)
    assert not run_jobs([Job(target.path, killed, whole.config)], tmp_path, 1, lambda line: None)
    assert same(weights(Run.open(killed)), weights(whole))


def test_under_accelerate_launch_it_refuses(target: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = compare(target.path, "--models", "pure-id", "--to", tmp_path / "study", ends=1)
    assert "without `accelerate launch`" in result.stderr


def test_models_that_fit(small_domain: Domain, target: Domain) -> None:
    bare = [entry.name for entry in comparison([small_domain]).entries]
    floors = [floor for floor in FLOORS if floor not in CONTENT_FLOORS]
    assert bare[: len(floors)] == floors
    assert set(bare[len(floors) :]) == {name for name, system in SYSTEMS.items() if not system.needs_features}
    assert {entry.name for entry in comparison([target]).entries} >= {*SYSTEMS, "content-knn"}


def test_models_that_do_not(small_domain: Domain) -> None:
    with pytest.raises(BivrecError, match=r"--models bivrec-mm: .* has no features; run `bivrec encode"):
        comparison([small_domain], ["bivrec-mm"])
    with pytest.raises(BivrecError, match="--models sasrecc: there is no such model; there are popularity, item-knn"):
        comparison([small_domain], ["sasrecc"])


def test_domains_of_one_name(source: Domain, tmp_path: Path) -> None:
    twin = shutil.copytree(source.path, tmp_path / "twin")
    result = bivrec("compare", source.path, twin, "--models", "popularity", "--to", tmp_path / "study")
    assert result.exit_code == 1
    assert "both are named source" in result.stderr


def test_one_domain_twice(source: Domain, tmp_path: Path) -> None:
    """By two paths as well; before anything is trained."""
    (tmp_path / "link").symlink_to(source.path)
    for other in (source.path, tmp_path / "link"):
        result = bivrec("compare", source.path, other, "--models", "popularity", "--to", tmp_path / "study")
        assert (result.exit_code, result.stderr) == (1, f"Error: {other}: given twice; name every Domain once\n")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("seeds", ["-1", "x", "0,1.5"])
def test_impossible_seeds(target: Domain, tmp_path: Path, seeds: str) -> None:
    result = bivrec("compare", target.path, "--seeds", seeds, "--to", tmp_path / "study")
    assert result.exit_code == 2
    assert "--seeds" in result.stderr


def test_a_library_that_is_missing_is_told_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    check_libraries(LIBRARIES)
    monkeypatch.setitem(sys.modules, "tabulate", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tabulate" else object())
    with pytest.raises(BivrecError, match="tabulate is not installed; run `pip install"):
        check_libraries(LIBRARIES)


def test_figures_of_the_paper() -> None:
    assert table1("SASRec*", "ml-1m") == {"recall@20": 7.32, "ndcg_hits@20": 24.04, "hr@20": 58.63}
    assert table1("SASRec*", "office") == {}
    assert table2("joint", "w/o gaussian attention", "mm", "ml-1m") == {"recall@20": 11.93}
    assert table2("joint", "full", "both", "ml-1m") == table2("joint", "full", "id", "baby") == {}
    assert table3("text", "ml-25m", "clothing") == {"recall@20": 0.82}
    assert table3("text", "ml-1m", "clothing") == table3("text", "ml-25m", "office") == {}
    assert table3("Supervised", "ml-1m", "baby") == {"recall@20": 4.69}


def test_every_system_of_the_paper_has_its_figures() -> None:
    for name, system in SYSTEMS.items():
        if system.paper_row is not None:
            assert set(table1(system.paper_row, "ml-1m")) == {"recall@20", "ndcg_hits@20", "hr@20"}, name
