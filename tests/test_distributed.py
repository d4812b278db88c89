from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from bivrec.training.distributed import mean_sparse_over_processes

ROWS = ([3, 1, 3, 8], [0, 3])


def sparse_gradient(rank: int) -> Tensor:
    """Another number of rows on each process, one of them twice."""
    values = torch.randn(len(ROWS[rank]), 2, generator=torch.Generator().manual_seed(rank))
    return torch.sparse_coo_tensor(torch.tensor([ROWS[rank]]), values, (10, 2), check_invariants=True)


def run_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    save_file({"mean": mean_sparse_over_processes(sparse_gradient(rank)).to_dense()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


def test_sparse_gradients_are_averaged_alike_on_every_process(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_process, (tmp_path,), nprocs=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors")["mean"] for rank in range(2))
    assert torch.equal(first, second)
    expected = (sparse_gradient(0).to_dense() + sparse_gradient(1).to_dense()) / 2
    torch.testing.assert_close(first, expected)


def test_one_process_keeps_its_own() -> None:
    torch.testing.assert_close(mean_sparse_over_processes(sparse_gradient(0)).to_dense(), sparse_gradient(0).to_dense())
