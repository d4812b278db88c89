"""Publishing to the Hub and taking from it by command and from Python, with the real client against a server."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_repositories import READER, STRANGER
from hub_server import HubServer
from stages import bivrec, in_subprocess, same, succeed

from bivrec.artefact import Tower
from bivrec.data.domain import Domain
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.finetune import zero_shot_model
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

NAME = "org/tower"
TUNING = [f"--set=training.{setting}" for setting in ("steps=1", "batch_size=8", "evaluate_every=1", "warmup_steps=0")]


def fail(*arguments: object) -> str:
    """The one line that a command fails with, after the progress of what went well."""
    result = bivrec(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("Error: ") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def rows(domain: Domain, *options: object) -> dict[str, dict[str, float]]:
    ks = [word for k in (10, 20, 50) for word in ("--k", k)]
    results: dict[str, dict[str, float]] = json.loads(succeed("evaluate", domain.path, *options, *ks, "--json"))[
        "results"
    ]
    return results


def test_there_and_back(hub: HubServer, pretrained: Run, source: Domain) -> None:
    """The metrics of the Run, of both kinds of model, exactly."""
    output = succeed("publish", pretrained.path, "--to", NAME)
    commit = hub.repository(NAME).branches["main"]
    assert commit in output
    assert set(hub.files(NAME, "main")) >= {"README.md", "config.json", "model.safetensors", "results.json"}
    assert rows(source, "--from-hub", NAME) == {f"{NAME} mm": pretrained.results()["mm"]}

    succeed("publish", pretrained.path, "--to", "org/joint", "--model", "joint", "--private")
    assert hub.repository("org/joint").private
    expected = {f"org/joint {view}": metrics for view, metrics in pretrained.results().items()}
    assert rows(source, "--from-hub", "org/joint") == expected
    assert rows(source, "--from-hub", "org/joint", "--view", "both") == {"org/joint both": pretrained.results()["both"]}


def test_there_and_back_from_python(hub: HubServer, tower: Path, pretrained: Run, source: Domain) -> None:
    local = Tower.from_pretrained(tower)
    pushed = local.push_to_hub(NAME, private=True, message="First", tag="v1")
    assert pushed.commit == hub.repository(NAME).branches["main"]
    assert hub.repository(NAME).private
    read = Tower.from_pretrained(NAME, revision="v1")
    assert same(read.weights, local.weights)
    assert (read.config, read.features, read.training) == (local.config, local.features, local.training)
    assert read.source == {"name": f"{NAME}@v1", "revision": pushed.commit, "sha256": local.source["sha256"]}
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    metrics = evaluate(ModelScorer(zero_shot_model(source, read), "mm"), users, (10, 20, 50)).metrics
    assert metrics == pretrained.results()["mm"]


def test_a_joint_model_elsewhere_is_its_tower(hub: HubServer, pretrained: Run, target: Domain) -> None:
    succeed("publish", pretrained.path, "--to", "org/joint", "--model", "joint")
    succeed("publish", pretrained.path, "--to", NAME)
    assert "give --zero-shot or finetune from it" in fail("evaluate", target.path, "--from-hub", "org/joint")
    results = rows(target, "--from-hub", "org/joint", "--from-hub", NAME, "--zero-shot")
    assert list(results) == ["org/joint zero-shot", f"{NAME} zero-shot"]
    assert results["org/joint zero-shot"] == results[f"{NAME} zero-shot"]


def test_a_run_names_the_commit_that_it_started_from(
    hub: HubServer, pretrained: Run, target: Domain, tmp_path: Path, offline: Callable[[], None]
) -> None:
    succeed("publish", pretrained.path, "--to", NAME, "--private", "--tag", "v1")
    commit = hub.repository(NAME).branches["main"]
    hub.commit(NAME, {"notes.txt": b"later"})
    assert hub.repository(NAME).branches["main"] != commit
    succeed("finetune", target.path, "--from-hub", f"{NAME}@v1", "--to", tmp_path / "run", *TUNING)
    started = Run.open(tmp_path / "run").info.started_from
    assert started is not None
    assert (started["name"], started["revision"]) == (f"{NAME}@v1", commit)

    # The cache has it all, whether or not the Hub is there.
    offline()
    asked = len(hub.requests)
    succeed("finetune", target.path, "--from-hub", f"{NAME}@v1", "--to", tmp_path / "again", *TUNING)
    assert Run.open(tmp_path / "again").info.started_from == started
    assert Run.open(tmp_path / "again").results() == Run.open(tmp_path / "run").results()
    assert len(hub.requests) == asked
    assert "not in the local cache" in fail("evaluate", target.path, "--from-hub", "org/other")


def test_a_command_of_its_own_process(hub: HubServer, pretrained: Run, source: Domain, tmp_path: Path) -> None:
    published = in_subprocess("-m", "bivrec", "publish", pretrained.path, "--to", NAME, cwd=tmp_path)
    assert published.returncode == 0, published.stderr
    script = f"from bivrec import Tower; print(Tower.from_pretrained({NAME!r}).source['revision'])"
    done = in_subprocess("-c", script, cwd=tmp_path)
    assert done.stdout.strip() == hub.repository(NAME).branches["main"], done.stderr


def test_branch_message_and_pull_request(hub: HubServer, pretrained: Run) -> None:
    succeed("publish", pretrained.path, "--to", NAME, "--message", "The first")
    first = hub.repository(NAME).branches["main"]
    succeed("publish", pretrained.path, "--to", NAME, "--revision", "trial", "--model", "joint")
    assert "items.json" in hub.files(NAME, "trial")
    output = succeed("publish", pretrained.path, "--to", NAME, "--create-pr", "--model", "joint")
    assert "/discussions/1" in output
    assert "items.json" in hub.files(NAME, "refs/pr/1")
    assert hub.repository(NAME).branches["main"] == first
    # A tower over a joint model: nothing of the latter stays.
    succeed("publish", pretrained.path, "--to", NAME, "--revision", "trial")
    assert "items.json" not in hub.files(NAME, "trial")


def test_an_edited_card_stays(hub: HubServer, pretrained: Run) -> None:
    succeed("publish", pretrained.path, "--to", NAME)
    succeed("publish", pretrained.path, "--to", NAME)
    hub.commit(NAME, {"README.md": b"by hand"})
    message = fail("publish", pretrained.path, "--to", NAME)
    assert "--create-pr" in message
    assert "--overwrite-card" in message
    assert hub.files(NAME, "main")["README.md"] == b"by hand"
    succeed("publish", pretrained.path, "--to", NAME, "--overwrite-card")
    assert hub.files(NAME, "main")["README.md"] != b"by hand"


def test_a_dry_run_touches_nothing(hub: HubServer, pretrained: Run, tmp_path: Path) -> None:
    output = succeed("publish", pretrained.path, "--to", NAME, "--model", "joint", "--dry-run")
    for name in ("README.md", "config.json", "items.json", "model.safetensors", "results.json"):
        assert f"  {name}\n" in output
    assert f"# {NAME}" in output
    shown = succeed("publish", pretrained.path, "--to", tmp_path / "new", "--dry-run")
    assert not (tmp_path / "new").exists()
    succeed("publish", pretrained.path, "--to", tmp_path / "new")
    card = (tmp_path / "new/README.md").read_text()
    assert card == shown.partition("\n\n")[2]
    assert "# new\n" in card
    # A folder is found from where the reader is, wherever that may be.
    assert card.count("PATH/TO/new") == 3
    assert hub.requests == []


# Faults


@pytest.mark.parametrize("token", ["", READER, STRANGER], ids=["none", "reader", "stranger"])
def test_who_may_do_what(
    hub: HubServer, pretrained: Run, target: Domain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    succeed("publish", pretrained.path, "--to", NAME, "--private")
    monkeypatch.setenv("HF_TOKEN", token)
    assert re.search(r"log in|your token", fail("publish", pretrained.path, "--to", NAME))
    command = ("finetune", target.path, "--from-hub", NAME, "--to", tmp_path / "run", *TUNING)
    if token == READER:
        succeed(*command)
    else:
        assert fail(*command).startswith(f"Error: {NAME}: ")
        assert not (tmp_path / "run").exists()


def test_no_such_revision(hub: HubServer, pretrained: Run, target: Domain, tmp_path: Path) -> None:
    succeed("publish", pretrained.path, "--to", NAME)
    message = fail("finetune", target.path, "--from-hub", f"{NAME}@v9", "--to", tmp_path / "run")
    assert message.startswith(f"Error: {NAME}@v9: ")
    assert not (tmp_path / "run").exists()


def test_a_repository_of_something_else(hub: HubServer, target: Domain) -> None:
    hub.create("org/bert")
    hub.commit("org/bert", {"pytorch_model.bin": b"\x80\x04", "config.json": b'{"model_type": "bert"}'})
    hub.commit("org/bert", {"results.json": b"{}"})
    assert "org/bert/config.json: not a model of bivrec" in fail("evaluate", target.path, "--from-hub", "org/bert")
    hub.create("org/empty")
    assert "not a model (no config.json)" in fail("evaluate", target.path, "--from-hub", "org/empty")
    assert not any("pytorch_model" in request and "resolve" in request for request in hub.requests)


def test_what_is_too_large_is_not_fetched(hub: HubServer, tower: Path, target: Domain) -> None:
    files = {path.name: path.read_bytes() for path in tower.iterdir()}
    hub.create(NAME)
    hub.commit(NAME, {**files, "model.safetensors": files["model.safetensors"] + bytes(1 << 21)})
    assert f"{NAME}/model.safetensors: " in fail("evaluate", target.path, "--from-hub", NAME)
    hub.commit(NAME, {**files, "config.json": b" " * (1 << 23)})
    assert f"{NAME}/config.json: " in fail("evaluate", target.path, "--from-hub", NAME)
    assert not any("GET" in request and "/lfs/" in request for request in hub.requests)


def test_a_download_that_breaks_off_leaves_nothing_half_read(
    hub: HubServer, pretrained: Run, target: Domain, tmp_path: Path
) -> None:
    succeed("publish", pretrained.path, "--to", NAME)
    hub.fail("GET", "/lfs/", drop_after=1000, times=100)
    message = fail("finetune", target.path, "--from-hub", NAME, "--to", tmp_path / "run", *TUNING)
    assert message.startswith(f"Error: {NAME}: ")
    assert not (tmp_path / "run").exists()
    hub.faults.clear()
    succeed("finetune", target.path, "--from-hub", NAME, "--to", tmp_path / "run", *TUNING)


def test_an_upload_that_breaks_off_changes_nothing(hub: HubServer, pretrained: Run, tmp_path: Path) -> None:
    succeed("publish", pretrained.path, "--to", NAME)
    before = hub.files(NAME, "main")
    hub.fail("POST", "/commit/", status=500, times=100)
    assert fail("publish", pretrained.path, "--to", NAME, "--model", "joint").startswith(f"Error: {NAME}: ")
    assert hub.files(NAME, "main") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "{folder}", "--tag", "v1"), "--tag is for a repository"),
        (("--to", "{folder}", "--private", "--create-pr"), "--private, --create-pr is for a repository"),
        (("--to", NAME, "--overwrite"), "leave --overwrite out"),
        (("--to", NAME, "--tag", "v1", "--create-pr"), "tag"),
    ],
)
def test_options_that_mean_nothing_there(
    hub: HubServer, pretrained: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    words = [word.format(folder=tmp_path / "folder") for word in arguments]
    assert message in fail("publish", pretrained.path, *words)
    assert not (tmp_path / "folder").exists()
    assert hub.requests == []
