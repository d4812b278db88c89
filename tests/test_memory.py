"""Who may change how the process keeps freed memory: commands, which end with their process, and no library call."""

import ctypes
import shutil
from pathlib import Path

import pytest
from stages import in_subprocess

from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize("way", ["pretrain", "finetune", "job"])
def test_freed_memory_is_kept_by_commands_alone(pretrained: Run, tmp_path: Path, way: str) -> None:
    run = shutil.copytree(pretrained.path, tmp_path / "run")
    result = in_subprocess(Path(__file__).with_name("freed_memory.py"), way, run)
    assert result.returncode == 0, result.stderr
