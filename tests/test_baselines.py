"""Every neural baseline, with every kind of items it has, keeps the promises of a tower and learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import bivrec, config, same, settings, tower_weights, values, weights
from tiny_models import NUM_ITEMS, TINY, item_features, random_histories, randomised
from torch import Tensor
from torch.nn import functional

from bivrec.artefact import BiVRec, Tower
from bivrec.baselines.attention import Attention
from bivrec.baselines.comirec import ROUTING_ITERATIONS
from bivrec.baselines.re4 import attend_loss, contrast_loss
from bivrec.baselines.towers import fresh_towers
from bivrec.config import SYSTEM_LIMITS, ObjectiveConfig, config_from_dict
from bivrec.data.batches import Batch
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.scorer import ModelScorer
from bivrec.finetune import finetune, finetune_config, zero_shot_model
from bivrec.hub import publish, tower_of_run
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.items import AttachedFeatures
from bivrec.model.tower import Interests, TowerNetwork
from bivrec.pretrain import pretrain, resume
from bivrec.studies.systems import SYSTEMS
from bivrec.training.candidates import CandidateSampler
from bivrec.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from bivrec.training.objective import Objective

pytest_plugins = ("stage_fixtures",)

SIZES = (3, 4)
CASES = [(system, views) for system, (all_views, _) in SYSTEM_LIMITS.items() for views in all_views]
PREFIX = [(system, views) for system, views in CASES if "prefix" in SYSTEM_LIMITS[system][1]]
MANY = ("comirec-sa", "comirec-dr", "re4")
"""Systems with several interests; they see which items a history has, and little of their order."""
ids = [f"{system}-{'+'.join(views)}" for system, views in CASES]
each_case = pytest.mark.parametrize(("system", "views"), CASES, ids=ids)
each_prefix = pytest.mark.parametrize(("system", "views"), PREFIX)


def make_tower(system: str, views: tuple[str, ...], **changes: Any) -> TowerNetwork:
    """An untrained tower in training mode, of two modalities if it reads features."""
    readout = SYSTEM_LIMITS[system][1][-1]
    wanted = replace(TINY, **{"system": system, "readout": readout, "num_interests": (2,), **changes})
    features = item_features() if "mm" in views else None
    (tower,) = fresh_towers(wanted, views, NUM_ITEMS, SIZES, features).values()
    return tower


@pytest.fixture
def tower(system: str, views: tuple[str, ...]) -> TowerNetwork:
    """A tower in float64 and evaluation mode; no parameter is zero or small."""
    return randomised(make_tower(system, views)).eval()


def read(tower: TowerNetwork, histories: Tensor, positions: Tensor | None = None) -> Interests:
    return tower.encode_histories(tower.encode_items(histories), histories > 0, positions)


NOTHING_EARLIER = torch.zeros(2, 0, dtype=torch.int64)


def loss_of(tower: TowerNetwork, **settings: Any) -> dict[str, Tensor]:
    """The parts of the objective of a batch with two users and all candidates."""
    stretch = random_histories(6, 9, seed=5)
    stretch[:, -2:] = stretch[:, -2:].clamp(min=1)
    prefix = tower.config.readout == "prefix"
    positions = torch.tensor([3, 6, 7] if prefix else [7])
    targets = (stretch[:, 1:] * (stretch[:, :-1] > 0))[:, positions]
    batch = Batch(torch.arange(6), stretch[:, :-1], positions, targets, NOTHING_EARLIER, float((targets > 0).sum()))
    candidates = CandidateSampler(ObjectiveConfig(**settings), NUM_ITEMS, seed=0).draw(0, targets)
    parts: dict[str, Tensor] = Objective(BiVRecNetwork({"both": tower}), ObjectiveConfig(**settings))(batch, candidates)
    return parts


# What every tower promises


OF_SOME: dict[str, Any] = {
    "num_layers": 3,
    "num_heads": 1,
    "scales": (2,),
    "positions": "none",
    "gaussian": "bias",
    "num_interests": (3,),
    "interests_per_item": 2,
    "assignment": "softmax-soft",
    "assignment_temperature": 3.0,
    "aggregation": "sum",
    "interest_score": "logsumexp",
    "mm_interests": "content",
    "id_interests": "content",
    "repeat_bias": True,
    "id_items": "ids+features",
}
"""Settings that not every system reads, with values that are not those of the tests."""


@each_case
def test_what_a_baseline_reads_is_what_the_help_of_the_system_says(system: str, views: tuple[str, ...]) -> None:
    history = random_histories(4, 7)

    def made(**changes: Any) -> list[Tensor]:
        torch.manual_seed(0)
        model = BiVRecNetwork({"both": make_tower(system, views, **changes)}).eval()
        scorer = ModelScorer(model, "both")
        return [scorer.score(scorer.encode(history), 1, NUM_ITEMS + 1), *model.parameters()]

    def alike(one: list[Tensor], other: list[Tensor]) -> bool:
        return len(one) == len(other) and all(map(torch.equal, one, other))

    before = made()
    read_ones = {name for name, value in OF_SOME.items() if not alike(made(**{name: value}), before)}
    layers = {"num_layers"} if system == "mmmlp" else {"num_layers", "num_heads"}
    assert read_ones == ({"num_interests", "interest_score"} if system in MANY else layers)


@each_case
def test_shapes(tower: TowerNetwork) -> None:
    histories = random_histories(4, 7)
    items = tower.encode_items(histories)
    found = read(tower, histories)
    many = 2 if tower.config.system in MANY else 1
    assert found.vectors.shape == (4, 1, many, 8)
    assert found.allocation.shape == (4, many, 7)
    assert tower.candidates(items).shape == (4, 7, 8)
    assert tower.items.num_items == NUM_ITEMS
    assert torch.equal(found.mask, histories > 0)


@each_case
def test_left_padding_changes_nothing(tower: TowerNetwork) -> None:
    histories = random_histories(4, 5)
    short, long = read(tower, histories), read(tower, functional.pad(histories, (3, 0)))
    torch.testing.assert_close(long.vectors, short.vectors)
    torch.testing.assert_close(long.allocation[..., 3:], short.allocation)
    assert long.allocation[..., :3].count_nonzero() == 0


@each_case
def test_a_masked_item_has_no_influence_and_every_real_one_has(tower: TowerNetwork) -> None:
    histories = random_histories(4, 7)
    mask = histories > 0
    items = tower.encode_items(histories).detach().requires_grad_(True)
    (found := tower.encode_histories(items, mask)).vectors.square().sum().backward()
    assert items.grad is not None
    assert items.grad[~mask].count_nonzero() == 0
    assert (items.grad[mask] != 0).any(-1).all()
    other = tower.encode_histories(items.masked_fill(~mask.unsqueeze(-1), 9.0), mask)
    torch.testing.assert_close(other.vectors, found.vectors)


@each_case
def test_users_do_not_meet_in_a_batch(tower: TowerNetwork) -> None:
    histories = random_histories(5, 7)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(read(tower, histories[order]).vectors, read(tower, histories).vectors[order])


@each_prefix
def test_a_prefix_reader_sees_what_came_before_and_nothing_else(tower: TowerNetwork) -> None:
    """Read after position t it knows the same as when the history ends there, but for positions, which count from the
    end: they are made equal here."""
    for name, parameter in tower.named_parameters():
        if "positions" in name:
            parameter.data[:] = parameter.data[:1]
    histories = random_histories(4, 7)
    every = read(tower, histories, torch.arange(7)).vectors
    for end in range(1, 8):
        alone = read(tower, histories[:, :end]).vectors[:, 0]
        real = histories[:, end - 1] > 0
        torch.testing.assert_close(every[real, end - 1], alone[real])


@each_case
@pytest.mark.parametrize("candidates", ["full", "uniform"])
@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_gradients_reach_every_parameter(system: str, views: tuple[str, ...], candidates: str, score: str) -> None:
    """With two layers, so that none is read only at the last position."""
    tower = randomised(make_tower(system, views, num_layers=2, score=score)).train()
    loss_of(tower, candidates=candidates, num_negatives=12)["loss"].backward()
    still = [name for name, part in tower.named_parameters() if part.grad is None or not part.grad.any()]
    assert not still
    assert all(torch.isfinite(part.grad).all() for part in tower.parameters())


@each_case
def test_it_trains_in_half_precision(system: str, views: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    tower = make_tower(system, views).eval()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(tower)["loss"]
    loss.backward()
    torch.testing.assert_close(loss.float(), loss_of(tower)["loss"], rtol=0.03, atol=0.0)
    assert all(torch.isfinite(part.grad).all() for part in tower.parameters() if part.grad is not None)


def trained(system: str, views: tuple[str, ...], histories: Tensor, targets: Tensor) -> TowerNetwork:
    """A tower after some steps on histories [B, N] and the item [B] after each."""
    torch.manual_seed(0)
    tower = make_tower(system, views, hidden_size=16, max_history=histories.shape[1])
    objective = Objective(BiVRecNetwork({"both": tower}), ObjectiveConfig())
    optimizer = torch.optim.Adam(tower.parameters(), lr=0.01)
    last = torch.tensor([histories.shape[1] - 1])
    batch = Batch(
        torch.arange(len(targets)), histories, last, targets.unsqueeze(1), NOTHING_EARLIER, float(len(targets))
    )
    for _ in range(80):
        optimizer.zero_grad()
        objective(batch, None)["loss"].backward()
        optimizer.step()
    return tower


def ranking(tower: TowerNetwork, histories: Tensor) -> Tensor:
    """Items [B, V] from best to worst."""
    scorer = ModelScorer(BiVRecNetwork({"both": tower}))
    return scorer.score(scorer.encode(histories), 1, NUM_ITEMS + 1).argsort(1, descending=True) + 1


@each_case
def test_it_learns_what_goes_together(system: str, views: tuple[str, ...]) -> None:
    """A user likes the items in which the first feature is positive, or the others; some users were never seen."""
    generator = torch.Generator().manual_seed(0)
    kinds = item_features()[:, 0] > 0
    liked = torch.arange(640) % 2 > 0
    items = torch.arange(1, NUM_ITEMS + 1)
    choices = [items[~kinds[1:]], items[kinds[1:]]]
    drawn = torch.randint(1000, (640, 5), generator=generator)
    walks = torch.stack(
        [choices[int(kind)][row % len(choices[int(kind)])] for kind, row in zip(liked, drawn, strict=True)]
    )
    tower = trained(system, views, walks[:512, :-1], walks[:512, -1])
    best = ranking(tower, walks[512:, :-1])[:, :5]
    assert (kinds[best] == liked[512:].unsqueeze(1)).float().mean() > 0.9


@pytest.mark.parametrize(("system", "views"), [case for case in CASES if case[0] not in MANY])
def test_it_learns_what_follows(system: str, views: tuple[str, ...]) -> None:
    """Item i is followed by i + 1."""
    walks = (torch.arange(NUM_ITEMS).unsqueeze(1) + torch.arange(5)) % NUM_ITEMS + 1
    tower = trained(system, views, walks[:, :-1], walks[:, -1])
    assert (ranking(tower, walks[:, :-1])[:, 0] == walks[:, -1]).float().mean() > 0.9


@each_case
def test_what_is_saved_is_what_is_loaded(system: str, views: tuple[str, ...], tmp_path: Path) -> None:
    saved, fresh = (BiVRecNetwork({"both": randomised(make_tower(system, views), seed).eval()}) for seed in (1, 2))
    save_checkpoint(tmp_path / "model.safetensors", saved, Progress())
    load_checkpoint(tmp_path / "model.safetensors", fresh)
    histories = random_histories(4, 7)
    scores = [scorer.score(scorer.encode(histories), 1, 6) for scorer in map(ModelScorer, (saved, fresh))]
    assert torch.equal(*scores)


@each_case
def test_ranking_scores_what_training_scored(tower: TowerNetwork) -> None:
    histories = random_histories(4, 7)
    scorer = ModelScorer(BiVRecNetwork({"both": tower}))
    catalogue = tower.candidates(tower.encode_items(torch.arange(NUM_ITEMS + 1)))
    expected = (read(tower, histories).vectors[:, -1] @ catalogue.T).amax(1)
    torch.testing.assert_close(scorer.score(scorer.encode(histories), 1, NUM_ITEMS + 1), expected[:, 1:])


@each_case
def test_a_tower_is_made_without_memory_for_its_weights(system: str, views: tuple[str, ...]) -> None:
    """As a published model is, before its weights are read."""
    tower = make_tower(system, views)
    with torch.device("meta"):
        (empty,) = fresh_towers(tower.config, views, NUM_ITEMS, SIZES).values()
    empty.load_state_dict(tower.state_dict(), assign=True)
    if "mm" in views:
        empty.items.attach(item_features())
    histories = random_histories(4, 7)
    assert torch.equal(read(empty.eval(), histories).vectors, read(tower.eval(), histories).vectors)


# What each paper says, item by item


def test_comirec_sa_attends_as_its_equations_say() -> None:
    tower = randomised(make_tower("comirec-sa", ("id",))).eval()
    reader, history = tower.sequence, torch.tensor([[3, 1, 2]])
    x = tower.encode_items(history)[0]
    weights = torch.stack([torch.tanh(reader.inner.weight @ (x[i] + reader.positions.table[2 - i])) for i in range(3)])
    attention = (reader.outer.weight @ weights.T).softmax(1)
    found = read(tower, history)
    torch.testing.assert_close(found.allocation[0], attention)
    for k in range(2):
        torch.testing.assert_close(found.vectors[0, 0, k], sum(attention[k, i] * x[i] for i in range(3)))


def test_comirec_dr_routes_as_its_algorithm_says() -> None:
    tower = randomised(make_tower("comirec-dr", ("id",))).eval()
    history = torch.tensor([[3, 1, 2, 1]])
    x = tower.encode_items(history)[0]
    maps = tower.sequence.predictions.weight.view(2, 8, 8)
    predicted = [[maps[k] @ x[i] for i in range(4)] for k in range(2)]
    logits = torch.zeros(2, 4, dtype=torch.float64)
    for _ in range(ROUTING_ITERATIONS):
        coupling = logits.softmax(0)
        capsules = []
        for k in range(2):
            total = sum(coupling[k, i] * predicted[k][i] for i in range(4))
            length = total.norm()
            capsules.append(length**2 / (1 + length**2) * total / length)
        logits = logits + torch.stack(
            [torch.stack([predicted[k][i] @ capsules[k] for i in range(4)]) for k in range(2)]
        )
    torch.testing.assert_close(read(tower, history).vectors[0, 0], torch.stack(capsules), rtol=1e-6, atol=1e-6)


def test_attention_sums_the_logits_of_its_sources() -> None:
    """Head by head and token by token (DIF-SR, Eq. of the decoupled fusion)."""
    attention = randomised(Attention(8, 2, 0.0, num_sources=3)).eval()
    generator = torch.Generator().manual_seed(1)
    sources = [torch.randn(1, 5, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    values = torch.randn(1, 5, 8, generator=generator, dtype=torch.float64)
    visible = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    expected = torch.zeros(5, 8, dtype=torch.float64)
    for head in range(2):
        for i in range(5):
            logits = torch.zeros(i + 1, dtype=torch.float64)
            for part, source in zip(attention.query_key, sources, strict=True):
                pairs = part(source)[0].view(5, 2, 2, 4)
                logits += torch.stack([pairs[i, head, 0] @ pairs[j, head, 1] for j in range(i + 1)])
            shares = (logits / 4**0.5).softmax(0)
            value = attention.value(values)[0].view(5, 2, 4)
            expected[i, 4 * head : 4 * head + 4] = sum(shares[j] * value[j, head] for j in range(i + 1))
    torch.testing.assert_close(attention(values, visible, lambda _: sources)[0], attention.output(expected))


@pytest.mark.parametrize("system", ["nova", "dif-sr"])
def test_side_information_guides_attention_and_enters_no_state(system: str) -> None:
    """Of a history of one item there is nothing to attend to, so its features change nothing."""
    tower = randomised(make_tower(system, ("id", "mm"), num_layers=2)).eval()
    items = tower.encode_items(torch.tensor([[4, 5, 6]]))
    other = items.clone()
    other[..., 8:] += torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for length, equal in ((1, True), (3, False)):
        mask = torch.ones(1, length, dtype=torch.bool)
        one, two = (tower.encode_histories(vectors[:, -length:], mask).vectors for vectors in (items, other))
        assert torch.allclose(one, two) == equal


def test_re4_contrast_and_attend_pair_by_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    items, found = (torch.randn(2, n, 4, generator=generator, dtype=torch.float64) for n in (3, 2))
    mask = torch.tensor([[False, True, True], [True, True, True]])
    attention = torch.rand(2, 2, 3, generator=generator, dtype=torch.float64) * mask.unsqueeze(1)
    attention = attention / attention.sum(-1, keepdim=True)
    chosen = attention > 1 / mask.sum(1)[:, None, None]
    contrast, attend = [], []
    for b in range(2):
        own = [i for i in range(3) if mask[b, i]]
        terms, crosses = [], []
        for k in range(2):
            near = lambda other: (functional.cosine_similarity(found[b, k], other, dim=0) / 0.02).exp()  # noqa: B023, E731
            rest = sum(near(items[b, i]) for i in own) + near(found[b, 1 - k])
            rest = rest + sum(near(items[1 - b, i]) for i in range(3) if mask[1 - b, i])
            terms += [-(near(items[b, i]) / rest).log() for i in own if chosen[b, k, i]]
            wanted = torch.stack([found[b, k] @ items[b, i] for i in own]).softmax(0)
            crosses.append(-sum(wanted[n] * attention[b, k, i].log() for n, i in enumerate(own)))
        contrast.append(sum(terms) / (2 * 50))
        attend.append(sum(crosses) / 2)
    torch.testing.assert_close(contrast_loss(items, mask, found, chosen, 50), torch.stack(contrast).mean())
    torch.testing.assert_close(attend_loss(items, mask, found, attention), torch.stack(attend).mean())


def test_re4_contrasts_in_full_precision() -> None:
    """Its logits of up to 50 would be rounded to quarters in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    items, found = (torch.randn(4, n, 8, generator=generator) for n in (5, 2))
    mask = torch.ones(4, 5, dtype=torch.bool)
    chosen = torch.rand(4, 2, 5, generator=generator) > 0.5
    with torch.autocast("cpu", torch.bfloat16):
        half = contrast_loss(items, mask, found, chosen, 50)
    assert torch.equal(half, contrast_loss(items, mask, found, chosen, 50))


def test_a_single_item_is_encoded_by_mmsrec_as_a_history_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users and items pass through the same layers: the score of an item does not depend on which others there are."""
    monkeypatch.setattr("bivrec.baselines.mmsrec.MOST_ROWS", 2)
    tower = randomised(make_tower("mmsrec", ("mm",))).eval()
    every = tower.encode_items(torch.arange(1, 6))
    for item in range(1, 6):
        torch.testing.assert_close(tower.encode_items(torch.tensor([item]))[0], every[item - 1])


@each_case
@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_item_vectors_are_gathered_in_full_precision(system: str, views: tuple[str, ...], score: str) -> None:
    """In bfloat16 the gradients of popular items would not add up."""
    tower = make_tower(system, views, score=score)
    with torch.autocast("cpu", torch.bfloat16):
        assert tower.encode_items(torch.arange(4)).dtype == torch.float32


def test_the_gates_of_unisrec_are_noisy_in_training_alone() -> None:
    tower = make_tower("unisrec", ("mm",))
    items = torch.arange(1, 6)
    assert not torch.equal(tower.encode_items(items), tower.encode_items(items))
    tower.eval()
    assert torch.equal(tower.encode_items(items), tower.encode_items(items))
    assert tower.encode_items(torch.tensor([0])).count_nonzero() == 0


def test_an_item_without_features_has_a_direction_in_unisrec() -> None:
    """Its offset is learnt, and the cosine of a zero vector has a gradient that drowns all others."""
    torch.manual_seed(0)
    tower = make_tower("unisrec", ("mm",), score="cosine")
    tower.items.attach(AttachedFeatures(torch.zeros(NUM_ITEMS + 1, sum(SIZES))))
    torch.testing.assert_close(tower.encode_items(torch.arange(1, NUM_ITEMS + 1)).norm(dim=-1), torch.ones(NUM_ITEMS))


# Commands


def recipe(system: str, views: tuple[str, ...], **training: Any) -> dict[str, dict[str, Any]]:
    model = {"system": system, "readout": SYSTEM_LIMITS[system][1][-1]}
    return {"model": model, "training": {"views": list(views), **training}}


@each_case
def test_every_system_trains_ranks_and_resumes(
    system: str, views: tuple[str, ...], source: Domain, tmp_path: Path
) -> None:
    """Resumed after the last step it has the same weights as when it is trained again: nothing depends on the clock."""
    wanted = config(**recipe(system, views, steps=2, evaluate_every=1))
    one, two = (pretrain(source, tmp_path / name, wanted) for name in ("one", "two"))
    assert same(weights(one), weights(two))
    name = "both" if len(views) > 1 else views[0]
    assert list(one.results()) == [name]
    assert one.results() == two.results()
    assert resume(one.path).results() == two.results()
    result = bivrec("evaluate", source.path, "--run", one.path)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("system", ["sasrec", "comirec-sa", "unisrec", "mmsrec", "re4"])
def test_a_baseline_of_features_transfers(system: str, source: Domain, target: Domain, tmp_path: Path) -> None:
    run = pretrain(source, tmp_path / "run", config(**recipe(system, ("mm",), steps=2)))
    published = Tower.from_pretrained(publish(run, str(tmp_path / "tower")))
    models = [zero_shot_model(target, tower) for tower in (published, tower_of_run(run))]
    assert same(*(model.state_dict() for model in models))
    zero_shot, direct = map(ModelScorer, models)
    histories = torch.tensor([[1, 2, 3]])
    # Up to rounding, which depends on where in memory the weights of a file lie.
    torch.testing.assert_close(*(s.score(s.encode(histories), 1, 9) for s in (zero_shot, direct)))
    vectors = published.encode_items(published.item_features(target))
    interests = published.encode_histories(vectors, histories)
    expected = zero_shot.score(zero_shot.encode(histories), 1, target.num_items + 1)
    torch.testing.assert_close(published.score(interests, vectors[1:]), expected)
    # The first row is an item like any other.
    items = published.item_features(target)[1:]
    torch.testing.assert_close(published.encode_items(items), vectors[1:])
    views = ["mm"] if system == "mmsrec" else ["id", "mm"]
    wanted = finetune_config({"training": values()["training"] | {"views": views, "learning_rate": 0.0}}, published)
    tuned = finetune(target, tmp_path / "tuned", wanted, published)
    name = views[0] if len(views) == 1 else "both"
    assert list(tuned.results()) == [name]
    moved = {key.removeprefix(f"towers.{name}."): value for key, value in weights(tuned).items()}
    for key, value in tower_weights(run).items():
        place = key.replace("items.", "items.content.") if name == "both" else key
        assert torch.equal(moved[place], value)
    assert resume(tuned.path).results() == tuned.results()


def test_ids_and_features_in_one_model_do_not_transfer(source: Domain, tmp_path: Path) -> None:
    run = pretrain(source, tmp_path / "run", config(**recipe("sasrec", ("id", "mm"), steps=1)))
    result = bivrec("publish", run.path, "--to", tmp_path / "tower")
    assert result.exit_code == 1
    assert "sasrec was trained with IDs and features in one model" in result.output
    result = bivrec("evaluate", source.path, "--run", run.path, "--view", "mm")
    assert result.exit_code == 1
    assert "the model has only both" in result.output
    published = publish(run, str(tmp_path / "joint"), "joint")
    finetuning = ("finetune", source.path, "--to", tmp_path / "tuned", *settings())
    for command in (("evaluate", source.path, "--zero-shot"), finetuning):
        result = bivrec(*command, "--from-hub", published)
        assert result.exit_code == 1
        complaint = result.output.splitlines()[-1]
        assert complaint.startswith(f"Error: {published}: sasrec was trained with IDs and features in one model, ")
    with pytest.raises(BivrecError, match="IDs and features in one model"):
        _ = BiVRec.from_pretrained(published, source).tower


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "model.system=fdsa", "--views", "id"], "the system fdsa is trained with [id, mm]"),
        (["--set", "model.system=mmsrec", "--views", "both"], "the system mmsrec is trained with [mm]"),
        (["--set", "model.system=re4", "--set", "model.readout=prefix"], "the system re4 has no readout prefix"),
        (["--set", "model.system=sasrec", "--set", "training.selection_view=id"], "has one model of both views"),
        (["--set", "model.system=sasrec", "--set", "training.tower_learning_rate=0.1"], "without a tower to treat"),
        (["--set", "model.system=gru4rec"], "'gru4rec' is not one of bivrec, comirec-sa"),
    ],
)
def test_settings_that_a_system_cannot_have_are_refused(
    source: Domain, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    result = bivrec("pretrain", source.path, "--to", tmp_path / "run", *settings(), *arguments)
    assert result.exit_code == 1
    assert complaint in result.output
    assert not (tmp_path / "run").exists()


# The rows of a comparison


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_row_of_a_comparison_is_a_possible_training(name: str) -> None:
    system = SYSTEMS[name]
    wanted = config_from_dict(system.overrides)
    (views,) = {tuple(wanted.training.views)}
    features = item_features() if system.needs_features else None
    model = BiVRecNetwork(fresh_towers(wanted.model, views, NUM_ITEMS, SIZES, features))
    assert system.view == "both" or system.view in model.views
    assert wanted.training.selection_view == system.view
