"""The launch configurations of pretrain/launch/, read by Accelerate itself."""

import json
import os
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from stages import NOISELESS, bivrec, in_subprocess, settings

from bivrec.data.domain import Domain
from bivrec.recipes import launch_configs
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

ROOT = Path(__file__).parent.parent
SIZES = {"cpu-2": (1, 2), "gpu-1": (1, 1), "gpu-8": (1, 8), "nodes-2x8": (2, 16)}
"""Name -> machines, processes."""


def read(name: str) -> ClusterConfig:
    config = load_config_from_file(str(launch_configs()[name]))
    assert isinstance(config, ClusterConfig)
    return config


def test_every_file_ships() -> None:
    assert {path.stem for path in (ROOT / "pretrain" / "launch").iterdir()} == set(launch_configs()) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_accelerate_reads_it(name: str) -> None:
    config = read(name)
    assert (config.num_machines, config.num_processes) == SIZES[name]
    expected = DistributedType.NO if name == "gpu-1" else DistributedType.MULTI_GPU
    assert config.distributed_type == expected
    # The step has its own autocast, by the recipe's `precision`.
    assert config.mixed_precision in (None, "no")


@pytest.mark.parametrize("name", SIZES)
def test_its_path_can_be_asked_for(name: str) -> None:
    assert Path(bivrec("recipes", "launch", name).output.strip()).samefile(launch_configs()[name])
    listed = bivrec("recipes", "launch").output.splitlines()
    assert [line.split()[0] for line in listed] == sorted(SIZES)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    result = bivrec("recipes", "launch", "tpu-8")
    assert result.exit_code != 0
    assert "tpu-8: no such launch configuration; there are cpu-2, gpu-1, gpu-8, nodes-2x8" in result.output


def test_commands_of_the_readme_are_understood() -> None:
    readme = (ROOT / "pretrain" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line.strip() for line in readme.splitlines() if line.strip().startswith("accelerate launch")]
    assert len(commands) == 3
    parser = launch_command_parser()
    for command in commands:
        for name in SIZES:
            command = command.replace(f"$(bivrec recipes launch {name})", str(launch_configs()[name]))
        command = command.replace("$SLURM_NODEID", "0")
        options = parser.parse_args(shlex.split(command, comments=True)[2:])
        assert options.module
        assert options.training_script == "bivrec"
        assert options.config_file is None or Path(options.config_file).is_file()


def test_two_processes_of_a_processor_train(source: Domain, tmp_path: Path) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "accelerate.commands.launch", "--config_file", launch_configs()["cpu-2"]]
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import json, sys; from accelerate import Accelerator; a = Accelerator();"
        "open(f'{sys.argv[1]}/{a.process_index}.json', 'w').write(json.dumps(a.num_processes))"
    )
    assert in_subprocess(*launcher, probe, tmp_path, env=environment).returncode == 0
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [2, 2]
    options = settings(model=NOISELESS)
    command = ["-m", "bivrec", "pretrain", source.path, "--to", tmp_path / "run", *options]
    result = in_subprocess(*launcher, *command, env=environment)
    assert result.returncode == 0, result.stderr
    assert Run.open(tmp_path / "run").progress("last").step == 4
