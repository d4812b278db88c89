from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tiny_models import NUM_ITEMS, TINY, id_tower, item_features, mm_tower, random_histories, tiny_model
from torch import Tensor, nn

from bivrec.config import ObjectiveConfig
from bivrec.data.batches import Batch
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.cross_view import allocation_loss, contrastive_loss
from bivrec.training.candidates import Candidates, CandidateSampler
from bivrec.training.objective import Objective

SHARES = np.arange(3 * NUM_ITEMS, 2 * NUM_ITEMS - 1, -1) / (3 * NUM_ITEMS * NUM_ITEMS)
NO_NOISE = {"assignment": "softmax-hard"}
KINDS = ["full", "uniform", "popularity", "in-batch"]
each_readout = pytest.mark.parametrize("readout", ["history", "prefix"])
each_kind = pytest.mark.parametrize("candidates", KINDS)


def make_batch(readout: str, size: int = 6, length: int = 8) -> Batch:
    """Histories of falling length; the first user is there once more at the end. A prefix readout has three targets."""
    stretch = random_histories(size, length + 1, seed=5)
    stretch[:, -2:] = stretch[:, -2:].clamp(min=1)
    positions = torch.tensor([2, length - 2, length - 1] if readout == "prefix" else [length - 1])
    targets = stretch[:, 1:] * (stretch[:, :-1] > 0)
    users = torch.arange(10, 10 + size)
    users[-1] = users[0]
    targets = targets[:, positions]
    # The first users had some of these items long before.
    earlier = torch.stack([torch.tensor([0, 0, 0, 1, 2]), torch.randint(1, NUM_ITEMS + 1, (5,))])
    return Batch(users, stretch[:, :-1], positions, targets, earlier, mean_targets=float((targets > 0).sum()))


def rows_of(batch: Batch, rows: Any) -> Batch:
    """Some rows as a batch of their own."""
    targets = batch.targets[rows]
    kept = torch.arange(len(batch.users))[rows]
    earlier = batch.earlier[:, torch.isin(batch.earlier[0], kept)]
    return replace(
        batch,
        users=batch.users[rows],
        history=batch.history[rows],
        targets=targets,
        earlier=torch.stack([torch.searchsorted(kept, earlier[0]), earlier[1]]),
        mean_targets=float((targets > 0).sum()),
    )


def draw(config: ObjectiveConfig, batch: Batch) -> Candidates | None:
    return CandidateSampler(config, NUM_ITEMS, 0, SHARES).draw(3, batch.targets)


def run(model: BiVRecNetwork, batch: Batch, **settings: Any) -> dict[str, Tensor]:
    config = ObjectiveConfig(**{"num_negatives": 9, **settings})
    parts: dict[str, Tensor] = Objective(model, config)(batch, draw(config, batch))
    return parts


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward(retain_graph=True)
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}


# The value of each part


def slow_view_loss(model: BiVRecNetwork, view: str, batch: Batch, config: ObjectiveConfig) -> Tensor:
    """Eq. 19-21 target by target and item by item: the mean over the targets of the batch."""
    tower, candidates = model.tower(view), draw(config, batch)
    catalogue = tower.encode_items(torch.arange(NUM_ITEMS + 1))
    losses = []
    bias = model.repeat_bias(view)
    for row, (history, targets) in enumerate(zip(batch.history, batch.targets.tolist(), strict=True)):
        alone = tower.encode_histories(tower.encode_items(history[None]), history[None] > 0, batch.positions)
        for interests, target, position in zip(alone.vectors[0], targets, batch.positions, strict=True):
            if target == 0:
                continue
            items = range(1, NUM_ITEMS + 1) if candidates is None else candidates.items.tolist()
            past = {*history[: position + 1].tolist(), *batch.earlier[1, batch.earlier[0] == row].tolist()}
            scores = interests @ catalogue.T
            nearest = scores[:, target].argmax()
            logits = {}
            for item in [target, *(item for item in items if item != target)]:
                logits[item] = (
                    scores[:, item].max() if config.negatives_scored_by == "best-interest" else scores[nearest, item]
                )
                if bias is not None and item in past:
                    logits[item] = logits[item] + bias
                if candidates is not None:
                    logits[item] = logits[item] - candidates.log_inclusion[item]
            losses.append(torch.stack(list(logits.values())).exp().sum().log() - logits[target])
    return torch.stack(losses).mean()


@each_readout
@each_kind
@pytest.mark.parametrize("negatives_scored_by", ["target-interest", "best-interest"])
@pytest.mark.parametrize("repeat_bias", [True, False])
def test_each_view_has_the_mean_loss_of_the_targets(
    readout: str, candidates: str, negatives_scored_by: str, repeat_bias: bool
) -> None:
    """Its gradient reaches the items of the histories, the targets, and the candidates."""
    model, batch = tiny_model(readout=readout, repeat_bias=repeat_bias, **NO_NOISE), make_batch(readout)
    settings = {"candidates": candidates, "negatives_scored_by": negatives_scored_by}
    parts = run(model, batch, **settings)
    for view in ("id", "mm"):
        expected = slow_view_loss(model, view, batch, ObjectiveConfig(num_negatives=9, **settings))
        found = parts[f"loss_{view}"]
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(gradients(model, found), gradients(model, expected), atol=1e-5, rtol=1e-4)


@each_readout
def test_cross_view_parts_compare_what_is_read_last(readout: str) -> None:
    model, batch = tiny_model(readout=readout, **NO_NOISE), make_batch(readout)
    parts = run(model, batch)
    vectors, allocations = {}, {}
    for view in ("id", "mm"):
        tower = model.tower(view)
        found = tower.encode_histories(tower.encode_items(batch.history), batch.history > 0)
        vectors[view], allocations[view] = model.cross_view(view, found.vectors[:, 0]), found.allocation
    both = (vectors["id"], vectors["mm"])
    expected = {
        "contrastive": contrastive_loss(*both, *both, batch.users, first_row=0, scale=model.cross_view.scale()),
        "allocation": allocation_loss(allocations["id"], allocations["mm"]),
    }
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value)
        torch.testing.assert_close(gradients(model, parts[name]), gradients(model, value), atol=1e-6, rtol=1e-4)


def test_a_popular_item_keeps_its_gradient_in_half_precision() -> None:
    """Item 1 is read thousands of times, more than a sum in bfloat16 can count."""
    model = tiny_model(views=("mm",), score="cosine", readout="prefix", scales=(), **NO_NOISE).float()
    history = torch.ones(600, 8, dtype=torch.long)
    history[:, 7] = torch.arange(600) % NUM_ITEMS + 1
    targets = torch.full((600, 1), 2)
    batch = Batch(torch.arange(600), history, torch.tensor([7]), targets, torch.zeros(2, 0).long(), 600.0)
    exact = gradients(model, run(model, batch)["loss"])
    with torch.autocast("cpu", torch.bfloat16):
        half = gradients(model, run(model, batch)["loss"])
    key = "towers.mm.items.projection.weight"
    assert (half[key] - exact[key]).norm() < 0.03 * exact[key].norm()


# How the parts make one (Eq. 22)


@each_readout
def test_the_loss_is_the_weighted_sum_with_a_detached_balance(readout: str) -> None:
    model, batch = tiny_model(readout=readout, **NO_NOISE), make_batch(readout)
    parts = run(model, batch, contrastive_weight=0.7, allocation_weight=0.2)
    balance = (parts["loss_id"] / parts["loss_mm"]).item()
    assert balance != pytest.approx(1, abs=0.01)
    expected = {
        key: sum(weight * value for weight, value in zip((1, balance, 0.7, 0.2), values, strict=True))
        for key, values in _by_parameter(model, parts).items()
    }
    found = gradients(model, parts["loss"])
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-7, rtol=1e-5)
    total = 2 * parts["loss_id"] + 0.7 * parts["contrastive"] + 0.2 * parts["allocation"]
    torch.testing.assert_close(parts["loss"].double(), total.double())


def _by_parameter(model: BiVRecNetwork, parts: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """The gradients of the four parts with respect to each parameter."""
    of_part = [gradients(model, parts[name]) for name in ("loss_id", "loss_mm", "contrastive", "allocation")]
    return {
        key: [part.get(key, torch.zeros_like(parameter)) for part in of_part]
        for key, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("view", ["id", "mm"])
@each_kind
def test_one_view_has_its_loss_alone(view: str, candidates: str) -> None:
    batch = make_batch("history")
    alone = run(tiny_model((view,), **NO_NOISE), batch, candidates=candidates)
    assert alone.keys() == {"loss", f"loss_{view}"}
    assert torch.equal(alone["loss"], alone[f"loss_{view}"])
    together = run(tiny_model(**NO_NOISE), batch, candidates=candidates)
    torch.testing.assert_close(together[f"loss_{view}"], alone["loss"])


# Properties of a joint step


@each_readout
@each_kind
@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("changes", [{}, {"mm_interests": "content"}, {"num_interests": (4, 2)}], ids=str)
def test_the_gradient_reaches_every_parameter(
    readout: str, candidates: str, score: str, changes: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    config = replace(TINY, readout=readout, score=score, **changes)
    model = BiVRecNetwork({"id": id_tower(config, NUM_ITEMS), "mm": mm_tower(config, item_features())})
    parts = run(model, make_batch(readout), candidates=candidates)
    found = gradients(model, parts["loss"])
    assert found.keys() == dict(model.named_parameters()).keys()
    for key, gradient in found.items():
        assert gradient.isfinite().all(), key
        assert gradient.count_nonzero() > 0, key


@each_readout
def test_empty_interests_do_not_blow_up_the_gradient(readout: str) -> None:
    """With a hard allocation many interests of a short history are empty in one view and not in the other."""
    model, batch = tiny_model(readout=readout, num_interests=(8,), **NO_NOISE), make_batch(readout)
    norms = [
        max(
            gradient.norm().item()
            for gradient in gradients(model, run(model, batch, allocation_weight=w)["loss"]).values()
        )
        for w in (0.0, 1.0)
    ]
    assert norms[1] < 20 * norms[0]


@each_readout
@each_kind
def test_the_order_of_the_batch_does_not_matter(readout: str, candidates: str) -> None:
    model, batch = tiny_model(readout=readout, **NO_NOISE), rows_of(make_batch(readout), slice(0, 5))
    expected = run(model, batch, candidates=candidates)
    permuted = run(model, rows_of(batch, torch.tensor([2, 4, 0, 3, 1])), candidates=candidates)
    for name, value in expected.items():
        torch.testing.assert_close(permuted[name], value, atol=1e-5, rtol=1e-5)


def test_noise_follows_the_seed() -> None:
    model, batch = tiny_model(assignment="gumbel-hard", dropout=0.3), make_batch("history")

    def draw_loss(seed: int) -> float:
        torch.manual_seed(seed)
        return run(model, batch)["loss"].item()

    assert draw_loss(1) == draw_loss(1)
    assert draw_loss(1) != draw_loss(2)
    model.eval()
    assert draw_loss(1) == draw_loss(2)


@pytest.mark.parametrize("gaussian", ["product", "bias", "none"])
@pytest.mark.parametrize("candidates", ["full", "popularity"])
@each_readout
def test_mixed_precision_is_close_to_full_precision(gaussian: str, candidates: str, readout: str) -> None:
    torch.manual_seed(0)
    config = replace(TINY, gaussian=gaussian, readout=readout, assignment="softmax-soft")
    model = BiVRecNetwork({"id": id_tower(config, NUM_ITEMS), "mm": mm_tower(config, item_features())})
    batch = make_batch(readout)
    expected = run(model, batch, candidates=candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(model, batch, candidates=candidates)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value, atol=0.05, rtol=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(model, found["loss"]).values())


# Two processes

DISTRIBUTED = [(readout, kind) for readout in ("history", "prefix") for kind in KINDS]


def values_and_gradients(objective: nn.Module, batch: Batch, config: ObjectiveConfig) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = objective(batch, draw(config, batch))
    parts["loss"].backward()
    values = {name: value.detach().double() for name, value in parts.items()}
    return {**values, **{f"gradient of {key}": p.grad for key, p in objective.named_parameters()}}


def distributed_case(readout: str, kind: str) -> tuple[Objective, Batch, ObjectiveConfig]:
    config = ObjectiveConfig(candidates=kind, num_negatives=9)
    return Objective(tiny_model(readout=readout, **NO_NOISE), config), make_batch(readout), config


def run_process(rank: int, folder: Path) -> None:
    """Every case on this process's half of the batch; rank 0 writes the mean values and the gradients of DDP."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    assert dist.get_world_size() == 2
    for readout, kind in DISTRIBUTED:
        objective, batch, config = distributed_case(readout, kind)
        half = replace(rows_of(batch, slice(3 * rank, 3 * rank + 3)), mean_targets=batch.mean_targets / 2)
        found = values_and_gradients(
            nn.parallel.DistributedDataParallel(objective, broadcast_buffers=False), half, config
        )
        for name, value in found.items():
            if not name.startswith("gradient"):
                dist.all_reduce(value)
                value /= 2
        if rank == 0:
            save_file(found, folder / f"{readout}-{kind}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(run_process, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize(("readout", "candidates"), DISTRIBUTED)
def test_two_processes_have_the_loss_and_gradients_of_one(two_processes: Path, readout: str, candidates: str) -> None:
    expected = values_and_gradients(*distributed_case(readout, candidates))
    found = {
        key.replace("gradient of module.", "gradient of "): value
        for key, value in load_file(two_processes / f"{readout}-{candidates}.safetensors").items()
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("candidates", ["full", "in-batch"])
def test_a_step_without_negatives_teaches_nothing_and_breaks_nothing(candidates: str) -> None:
    """Where all targets are one item, and it is the only candidate, both losses are 0."""
    model, batch = tiny_model(**NO_NOISE), make_batch("history")
    batch = replace(batch, targets=torch.full_like(batch.targets, 3))
    parts = run(model, batch, candidates=candidates, contrastive_weight=0.0, allocation_weight=0.0)
    assert all(part.isfinite() for part in parts.values())
    found = gradients(model, parts["loss"])
    assert all(gradient.isfinite().all() for gradient in found.values())
    if candidates == "in-batch":
        assert parts["loss"] == 0
