from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bivrec.training.distributed import mean_sparse_over_processes, share_weights

ROWS = ([3, 1, 3, 8], [0, 3])


def sparse_gradient(rank: int) -> Tensor:
    """Another number of rows on each process, one of them twice."""
    values = torch.randn(len(ROWS[rank]), 2, generator=torch.Generator().manual_seed(rank))
    return torch.sparse_coo_tensor(torch.tensor([ROWS[rank]]), values, (10, 2), check_invariants=True)


def run_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    mean = mean_sparse_over_processes(sparse_gradient(rank)).to_dense()
    model = nn.BatchNorm1d(4)
    for value in model.state_dict().values():
        value.fill_(10 + rank)
    share_weights(model)
    save_file({"mean": mean, **model.state_dict()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(run_process, (folder,), nprocs=2)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def test_every_process_is_given_the_weights_of_the_first(outcomes: list[dict[str, Tensor]]) -> None:
    for outcome in outcomes:
        given = {name: value.unique().tolist() for name, value in outcome.items() if name != "mean"}
        assert given == {name: [10] for name in given}
        assert len(given) == 5


def test_sparse_gradients_are_averaged_alike_on_every_process(outcomes: list[dict[str, Tensor]]) -> None:
    first, second = (outcome["mean"] for outcome in outcomes)
    assert torch.equal(first, second)
    expected = (sparse_gradient(0).to_dense() + sparse_gradient(1).to_dense()) / 2
    torch.testing.assert_close(first, expected)


def test_one_process_keeps_its_own() -> None:
    torch.testing.assert_close(mean_sparse_over_processes(sparse_gradient(0)).to_dense(), sparse_gradient(0).to_dense())
