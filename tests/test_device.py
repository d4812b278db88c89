from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from stages import config, same, weights

from bivrec.data.domain import Domain
from bivrec.device import bfloat16_is_fast, chosen_precision, own_device
from bivrec.pretrain import pretrain

pytest_plugins = ("stage_fixtures",)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("flag", "device"), [("1", "cpu"), ("0", "cuda:0")])
def test_the_processor_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, flag: str, device: str) -> None:
    monkeypatch.setattr(PartialState, "_shared_state", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
    assert str(own_device()) in (device, device.split(":")[0])


@pytest.mark.parametrize(("capabilities", "chosen"), [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "fp32")])
def test_auto_is_half_where_there_are_matrix_units(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], chosen: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert chosen_precision("auto", CPU) == chosen
    assert [chosen_precision(asked, CPU) for asked in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(("emulated", "chosen"), [(False, "bf16"), (True, "fp32")])
def test_auto_is_full_on_gpus_that_emulate(monkeypatch: pytest.MonkeyPatch, emulated: bool, chosen: str) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated
    )
    assert chosen_precision("auto", torch.device("cuda")) == chosen


def test_a_torch_that_does_not_know_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not bfloat16_is_fast(CPU)


@pytest.mark.parametrize(("fast", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_a_training_does_and_records_what_auto_comes_to(
    source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, chosen: str
) -> None:
    monkeypatch.setattr("bivrec.device.bfloat16_is_fast", lambda device: fast)
    runs = {
        precision: pretrain(source, tmp_path / precision, config(training={"steps": 2, "precision": precision}))
        for precision in ("auto", "fp32", "bf16")
    }
    assert runs["auto"].info.hardware["precision"] == chosen
    assert {name: same(weights(run), weights(runs["auto"])) for name, run in runs.items()} == {
        name: name in ("auto", chosen) for name in runs
    }
