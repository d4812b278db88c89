"""Top-k of a large catalogue: ours with and without bounds, plain torch, and faiss, on the same vectors.

    python -m benchmarks.ranking [--run RUN --domain DOMAIN] [--json FILE]

Vectors are random, or those of a Run for the training users of its Domain. Users are encoded before the clock starts.
A user is K queries to faiss, whose lists are merged. `same list` is the share of users whose items are at the places
where all scores in float32 put them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.report import alternate, json_option, report, small_option
from bivrec.baselines.towers import fresh_towers
from bivrec.config import ModelConfig
from bivrec.data.domain import Domain
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import top_k
from bivrec.evaluation.scorer import EncodedUsers, ModelScorer
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.training.run import Run

USER_CHUNK = 256
HISTORY = 50
REFERENCE = "bivrec, all scores"


class KnownInterests(ModelScorer):
    """Ranks users whose interests [U, K, D] are known: a history [B, 1] is the number of a user."""

    def __init__(self, model: BiVRecNetwork, view: str, interests: Tensor, bounds_pay: bool | None = None) -> None:
        super().__init__(model, view)
        self.interests = interests
        if bounds_pay is not None:
            self.bounds_pay = bounds_pay

    def encode(self, histories: Tensor) -> EncodedUsers:
        """The interests of users, without anything that they had."""
        return EncodedUsers([self.interests[histories[:, 0]]], histories[:, :0], torch.zeros(len(histories)))


Ranker = Callable[[Tensor, "Tensor | None"], Tensor]
"""From user numbers [B] and their seen items [B, S] to lists [B, k]."""


def rankers(model: BiVRecNetwork, view: str, interests: Tensor, k: int) -> dict[str, Ranker]:
    """The systems that are compared; faiss only if it is installed."""
    with torch.no_grad():
        catalogue = model.tower(view).encode_items(torch.arange(model.num_items + 1))
    bounded = KnownInterests(model, view, interests)
    exact = KnownInterests(model, view, interests, bounds_pay=False)

    def ours(scorer: ModelScorer) -> Ranker:
        return lambda users, seen: top_k(scorer, users[:, None], k, seen)[0]

    def plain(users: Tensor, seen: Tensor | None) -> Tensor:
        found = interests[users]
        scores = (found.flatten(0, 1) @ catalogue.T).view(*found.shape[:2], -1).amax(1)
        scores[:, 0] = -torch.inf
        if seen is not None:
            scores.scatter_(1, seen, -torch.inf)
        return scores.topk(k).indices

    systems = {"plain torch": plain, REFERENCE: ours(exact)}
    if bounded.bounds_pay:
        systems["bivrec, bounds"] = ours(bounded)
    if (faiss := faiss_flat(catalogue, interests, k)) is not None:
        systems["faiss flat"] = faiss
    return systems


def faiss_flat(catalogue: Tensor, interests: Tensor, k: int) -> Ranker | None:
    """IndexFlatIP asked for every interest; the union of the lists holds the user's best items."""
    try:
        import faiss
    except ImportError:
        click.echo("faiss is left out: pip install faiss-cpu", err=True)
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(catalogue.shape[1])
    index.add(catalogue[1:].numpy())

    def rank(users: Tensor, seen: Tensor | None) -> Tensor:
        found = interests[users]
        # Seen items can take as many places, of every list.
        depth = k if seen is None else k + seen.shape[1]
        scores, rows = (
            torch.from_numpy(part).view(len(users), -1) for part in index.search(found.flatten(0, 1).numpy(), depth)
        )
        scores, order = scores.sort(dim=1, descending=True)
        items = rows.gather(1, order) + 1
        if seen is not None:
            scores = scores.masked_fill((items[:, :, None] == seen[:, None, :]).any(-1), -torch.inf)
        # An item may be in the lists of several interests: all but its best place go.
        by_item = items.sort(dim=1, stable=True)
        again = torch.zeros_like(items, dtype=torch.bool)
        again.scatter_(1, by_item.indices[:, 1:], by_item.values.diff(dim=1) == 0)
        return items.gather(1, scores.masked_fill(again, -torch.inf).topk(k).indices)

    return rank


def compare(
    model: BiVRecNetwork, view: str, interests: Tensor, seen: Tensor, k: int, rounds: int
) -> list[dict[str, object]]:
    """One row per system, without and with seen items removed."""
    systems = rankers(model, view, interests, k)
    chunks = torch.split(torch.arange(len(interests)), USER_CHUNK)
    rows: list[dict[str, object]] = []
    for remove in (False, True):
        inputs = [(users, seen[users] if remove else None) for users in chunks]
        timed = {
            name: lambda turn, rank=rank, inputs=inputs: rank(*inputs[turn % max(1, len(inputs) - 1)])
            for name, rank in systems.items()
        }
        seconds = alternate(timed, rounds)
        lists = {name: torch.cat([rank(*chunk) for chunk in inputs]) for name, rank in systems.items()}
        for name in systems:
            same = (lists[name] == lists[REFERENCE]).all(1).double().mean()
            rows.append(
                {
                    "seen items": "removed" if remove else "kept",
                    "system": name,
                    "users/s and core": USER_CHUNK / seconds[name],
                    "times faiss": seconds["faiss flat"] / seconds[name] if "faiss flat" in seconds else None,
                    "times plain torch": seconds["plain torch"] / seconds[name],
                    "same list, %": f"{100 * float(same):.3f}",
                }
            )
    return rows


def random_vectors(num_items: int, num_users: int, size: int) -> tuple[BiVRecNetwork, str, Tensor, Tensor]:
    """An untrained model, whose items and users are normally distributed, and random histories."""
    config = ModelConfig(hidden_size=size)
    model = BiVRecNetwork(fresh_towers(config, ("id",), num_items, ()))
    return model, "id", torch.randn(num_users, 4, size), torch.randint(1, num_items + 1, (num_users, HISTORY))


def trained_vectors(run: Path, domain: Path, view: str, num_users: int) -> tuple[BiVRecNetwork, str, Tensor, Tensor]:
    """The model of a Run, and the interests and last items of its Domain's training users."""
    opened = Domain.open(domain)
    model = Run.open(run).load_model(opened)
    # The training split has the most users, and what is compared here is not quality.
    users = EvaluationUsers.from_sequences(opened.sequences("train"))
    scorer = ModelScorer(model, view)
    last = min(len(users), num_users)
    interests = torch.cat(
        [
            scorer.encode(users.histories(first, min(first + USER_CHUNK, last), scorer.max_history)).interests[0]
            for first in range(0, last, USER_CHUNK)
        ]
    )
    return model, view, interests, users.histories(0, last, HISTORY)


@click.command()
@click.option("--items", default=62_423, show_default=True, help="Random vectors: items.")
@click.option("--users", default=4096, show_default=True, help="Users at most.")
@click.option("--size", default=256, show_default=True, help="Random vectors: dimensions.")
@click.option("--k", default=20, show_default=True, help="Length of the lists.")
@click.option("--rounds", default=12, show_default=True, help=f"Timed chunks of {USER_CHUNK} users.")
@click.option("--run", type=click.Path(path_type=Path), help="Take the vectors of this Run, with its --domain.")
@click.option("--domain", type=click.Path(path_type=Path))
@click.option("--view", type=click.Choice(["id", "mm"]), default="id", help="View of the Run.")
@small_option
@json_option
def main(
    items: int, users: int, size: int, k: int, rounds: int,
    run: Path | None, domain: Path | None, view: str, small: bool, json_path: Path | None,
) -> None:  # fmt: skip
    """Compare ways to rank."""
    if small:
        items, users, size, rounds = 20_000, 512, 64, 4
    torch.manual_seed(0)
    if run and domain:
        model, view, interests, seen = trained_vectors(run, domain, view, users)
        kind = f"{view} view of a Run"
    else:
        model, view, interests, seen = random_vectors(items, users, size)
        kind = "random vectors"
    rows = compare(model, view, interests, seen, k, rounds)
    shape = (
        f"{len(interests):,} users x {interests.shape[1]} interests x {interests.shape[2]}, {model.num_items:,} items"
    )
    report(f"Ranking: {kind}, {shape}, k {k}, {torch.get_num_threads()} threads", rows, json_path)


if __name__ == "__main__":
    main()
