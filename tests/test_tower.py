import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import FEATURE_SIZE, NUM_ITEMS, TINY, id_tower, item_features, random_histories, tiny_model, tiny_tower
from torch import Tensor, nn

from bivrec.baselines.towers import fresh_towers
from bivrec.errors import BivrecError
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.items import FeatureItems, IdItems, resident_bytes
from bivrec.model.tower import Interests, TowerNetwork

VARIANTS = [
    {"readout": readout, **changes}
    for readout in ("history", "prefix")
    for changes in (
        {},
        {"scales": (), "gaussian": "none"},
        {"scales": (2, 5), "gaussian": "bias", "num_interests": (4, 2)},
        {"scales": (4,), "positions": "none", "aggregation": "sum", "interests_per_item": 2},
        {"scales": (3,), "assignment": "softmax-soft", "score": "cosine", "num_layers": 2},
        {"view": "mm", "mm_interests": "content", "scales": (2,), "num_interests": (4, 2)},
        {"id_interests": "free+content", "scales": (2,), "num_interests": (4, 2)},
    )
]


def name(changes: dict[str, Any]) -> str:
    return "-".join(str(value) for value in changes.values())


@pytest.fixture(params=VARIANTS, ids=name)
def tower(request: pytest.FixtureRequest) -> TowerNetwork:
    return tiny_tower(**request.param)


def read(tower: TowerNetwork, histories: Tensor, positions: Tensor | None = None) -> Interests:
    return tower.encode_histories(tower.encode_items(histories), histories > 0, positions)


def every_position(histories: Tensor) -> Tensor:
    return torch.arange(histories.shape[1])


# Shapes and what a tower reads


def test_shapes(tower: TowerNetwork) -> None:
    histories = random_histories(4, 7)
    found = read(tower, histories)
    config = tower.config
    tokens = 7 + sum(math.ceil(7 / scale) for scale in config.scales)
    assert found.vectors.shape == (4, 1, config.num_interests[-1], config.hidden_size)
    assert found.allocation.shape == (4, config.num_interests[-1], tokens)
    assert torch.equal(found.mask[:, :7], histories > 0)


@pytest.mark.parametrize("padding", [1, 2, 3])
def test_left_padding_changes_nothing(tower: TowerNetwork, padding: int) -> None:
    histories = random_histories(4, 5)
    short, long = read(tower, histories), read(tower, nn.functional.pad(histories, (padding, 0)))
    torch.testing.assert_close(long.vectors, short.vectors)
    for row in range(len(histories)):
        torch.testing.assert_close(long.allocation[row][:, long.mask[row]], short.allocation[row][:, short.mask[row]])


def test_a_masked_item_has_no_influence_and_no_gradient(tower: TowerNetwork) -> None:
    histories = random_histories(4, 7)
    mask = histories > 0
    items = tower.encode_items(histories).detach().requires_grad_(True)
    found = tower.encode_histories(items, mask)
    (found.vectors.square().sum() + found.allocation.square().sum()).backward()
    assert items.grad is not None
    assert items.grad[~mask].count_nonzero() == 0
    assert (items.grad[mask] != 0).any(-1).all()
    with torch.no_grad():
        other = tower.encode_histories(items.masked_fill(~mask.unsqueeze(-1), 9.0), mask)
    torch.testing.assert_close(other.vectors, found.vectors)


def test_users_do_not_meet_in_a_batch(tower: TowerNetwork) -> None:
    histories = random_histories(5, 7)
    order = torch.tensor([3, 0, 4, 1, 2])
    together, permuted = read(tower, histories), read(tower, histories[order])
    torch.testing.assert_close(permuted.vectors, together.vectors[order])
    torch.testing.assert_close(permuted.allocation, together.allocation[order])
    torch.testing.assert_close(read(tower, histories[2:3]).vectors, together.vectors[2:3])


def test_a_history_is_read_alike_among_many_of_other_lengths(tower: TowerNetwork) -> None:
    histories = random_histories(150, 7)[torch.randperm(150, generator=torch.Generator().manual_seed(3))]
    together = read(tower, histories)
    for row in range(0, 150, 15):
        alone = read(tower, histories[row : row + 1])
        torch.testing.assert_close(together.vectors[row], alone.vectors[0])
        torch.testing.assert_close(together.allocation[row], alone.allocation[0])


# Allocation (Eq. 8-11)


@pytest.mark.parametrize("readout", ["history", "prefix"])
@pytest.mark.parametrize(("num_interests", "interests_per_item"), [((3,), 1), ((4,), 2), ((5, 2), 1), ((6, 4, 2), 1)])
def test_a_real_token_is_allocated_as_often_as_allowed_and_padding_never(
    readout: str, num_interests: tuple[int, ...], interests_per_item: int
) -> None:
    tower = tiny_tower(readout=readout, num_interests=num_interests, interests_per_item=interests_per_item).train()
    found = read(tower, random_histories(4, 7))
    assert torch.equal(found.allocation.sum(1), interests_per_item * found.mask.float())


@pytest.mark.parametrize("assignment", ["gumbel-hard", "softmax-soft"])
def test_the_allocation_of_items_is_the_product_of_the_stages(assignment: str) -> None:
    tower = tiny_tower(num_interests=(5, 3, 2), assignment=assignment)
    stages: list[tuple[Tensor, None, Tensor]] = []
    for stage in tower.sequence.clustering:
        stage.register_forward_hook(lambda stage, inputs, output: stages.append(output))
    found = read(tower, random_histories(4, 7))
    first, second, third = (allocation for _, _, allocation in stages)
    for b in range(4):
        for k in range(2):
            for m in range(found.mask.shape[1]):
                expected = sum(third[b, k, j] * second[b, j, i] * first[b, i, m] for j in range(3) for i in range(5))
                torch.testing.assert_close(found.allocation[b, k, m], expected)
    torch.testing.assert_close(found.vectors, stages[-1][0])


@pytest.mark.parametrize("readout", ["history", "prefix"])
@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_a_later_stage_clusters_the_interests_of_the_one_before(readout: str, aggregation: str) -> None:
    tower = tiny_tower(num_interests=(5, 2), readout=readout, aggregation=aggregation)
    outputs: list[tuple[Tensor, None, Tensor]] = []
    for stage in tower.sequence.clustering:
        stage.register_forward_hook(lambda stage, given, output: outputs.append(output))
    read(tower, random_histories(4, 7), torch.tensor([6]))
    (before, *_), (after, _, allocation) = outputs
    last = tower.sequence.clustering[1]
    for row in range(4):
        for k in range(2):
            members = [slow_norm(before[row, 0, j]) for j in range(5) if allocation[row, k, j]]
            total = sum((last.value.weight @ member for member in members), torch.zeros(8).double())
            gathered = total / max(1, len(members)) if aggregation == "mean" else total
            torch.testing.assert_close(after[row, 0, k], last.interests[k] + last.output.weight @ gathered)


def slow_norm(vector: Tensor) -> Tensor:
    centred = vector - vector.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt()


@pytest.mark.parametrize("width", [32, 256])
def test_at_the_start_no_stage_is_left_to_the_noise(width: int) -> None:
    torch.manual_seed(0)
    tower = id_tower(replace(TINY, hidden_size=width, num_interests=(24, 4)), NUM_ITEMS).train()
    histories = random_histories(200, 8)
    for stage in tower.sequence.clustering:
        given: list[tuple[Tensor, ...]] = []
        stage.register_forward_pre_hook(lambda stage, inputs, given=given: given.append(inputs))
        read(tower, histories)
        tokens, _, mask, _ = given[0]
        one, other = (stage.allocate(tokens, mask).argmax(1)[mask] for _ in range(2))
        assert (one == other).float().mean() > 1.5 / len(stage.interests)


# Readouts


def test_a_history_readout_has_one_reader() -> None:
    tower = tiny_tower(readout="history")
    histories = random_histories(4, 7)
    assert torch.equal(read(tower, histories, torch.tensor([6])).vectors, read(tower, histories).vectors)


@pytest.fixture(params=[v for v in VARIANTS if v["readout"] == "prefix"], ids=name)
def causal_tower(request: pytest.FixtureRequest) -> TowerNetwork:
    return tiny_tower(**request.param)


@pytest.mark.parametrize("changed", [1, 3, 6])
def test_later_items_never_change_earlier_interests(causal_tower: TowerNetwork, changed: int) -> None:
    histories = random_histories(4, 7)
    others = histories.clone()
    others[:, changed:] = NUM_ITEMS + 1 - others[:, changed:]
    others[histories == 0] = 0
    before, after = (read(causal_tower, h, every_position(h)).vectors for h in (histories, others))
    earlier = histories[:, :changed] > 0
    torch.testing.assert_close(after[:, :changed][earlier], before[:, :changed][earlier])
    assert (after[:, changed:] != before[:, changed:]).any()


def test_several_readers_read_what_each_reads_alone(causal_tower: TowerNetwork) -> None:
    histories = random_histories(4, 7)
    together = read(causal_tower, histories, every_position(histories))
    for position in range(7):
        alone = read(causal_tower, histories, torch.tensor([position]))
        torch.testing.assert_close(alone.vectors[:, 0], together.vectors[:, position])
    last = read(causal_tower, histories)
    torch.testing.assert_close(last.vectors[:, 0], together.vectors[:, -1])
    torch.testing.assert_close(last.allocation, together.allocation)


def seen_from(tower: TowerNetwork, age: int) -> TowerNetwork:
    """The tower with the position embeddings that items have when `age` more items follow them."""
    shifted = copy.deepcopy(tower)
    embedding = shifted.sequence.embedding
    tables = (embedding.item_positions, *embedding.window_positions)
    with torch.no_grad():
        for scale, positions in zip((1, *embedding.scales), tables, strict=True):
            positions.copy_(positions.roll(-age // scale, 0))
    return shifted


@pytest.mark.parametrize("scales", [(), (2,), (3,), (2, 4)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_interests": (4, 2)},
        {"view": "mm", "mm_interests": "content"},
        {"id_interests": "content"},
        {"id_interests": "free+content"},
    ],
    ids=name,
)
def test_reading_at_a_position_equals_reading_the_prefix_that_ends_there(
    scales: tuple[int, ...], changes: dict[str, Any]
) -> None:
    """Where the windows line up, that is, where the items that follow fill whole windows of every scale."""
    tower = tiny_tower(readout="prefix", scales=scales, max_history=12, **changes)
    histories = random_histories(4, 11)
    everywhere = read(tower, histories, every_position(histories)).vectors
    for age in range(0, 11, math.lcm(1, *scales)):
        prefix = histories[:, : 11 - age]
        real = (prefix > 0).any(1)
        found = read(seen_from(tower, age), prefix).vectors[:, 0]
        torch.testing.assert_close(found[real], everywhere[real, 10 - age])


@pytest.mark.parametrize("readout", ["history", "prefix"])
def test_free_and_content_interests_are_their_sum(readout: str) -> None:
    """In units of the length of a state, sqrt(D), times a gain for each interest."""

    def tower_of(interests: str) -> TowerNetwork:
        return tiny_tower(readout=readout, id_interests=interests, scales=(3,), num_interests=(4,))

    tower = tower_of("free+content")
    free, content = (tower_of(kind) for kind in ("free", "content"))
    for part in (free, content):
        shared = {key: value for key, value in tower.state_dict().items() if key in part.state_dict()}
        part.load_state_dict(shared)
    histories = random_histories(4, 7)
    with torch.no_grad():
        tower.sequence.content_gain.copy_(torch.tensor([0.0, 0.5, 1.0, -2.0]))
    gain = math.sqrt(tower.config.hidden_size) * tower.sequence.content_gain.unsqueeze(1)
    expected = read(free, histories).vectors + gain * read(content, histories).vectors
    torch.testing.assert_close(read(tower, histories).vectors, expected)


# Randomness


def test_evaluation_is_deterministic(tower: TowerNetwork) -> None:
    histories = random_histories(4, 7)
    assert torch.equal(read(tower, histories).vectors, read(tower, histories).vectors)


@pytest.mark.parametrize("changes", [{"assignment": "gumbel-hard"}, {"assignment": "softmax-hard", "dropout": 0.5}])
def test_training_noise_follows_the_seed(changes: dict[str, Any]) -> None:
    tower = tiny_tower(**changes).train()
    histories = random_histories(16, 8)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return read(tower, histories).vectors

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


# Items and scores


def test_cosine_scores_are_bounded_by_the_scale() -> None:
    tower = tiny_tower(score="cosine")
    vectors = read(tower, random_histories(6, 7)).vectors
    scores = vectors @ tower.encode_items(torch.arange(NUM_ITEMS + 1)).T
    assert scores.abs().max() <= tower.log_scale.exp() + 1e-9
    torch.testing.assert_close(vectors.norm(dim=-1), tower.log_scale.exp().expand(6, 1, 3))
    torch.testing.assert_close(tower.encode_items(torch.arange(1, 5)).norm(dim=-1), torch.ones(4).double())


@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("view", ["id", "mm"])
def test_padding_is_a_zero_vector(view: str, score: str) -> None:
    tower = tiny_tower(view, score=score)
    vectors = tower.encode_items(torch.tensor([0, 3, 0]))
    assert vectors[[0, 2]].count_nonzero() == 0
    vectors.sum().backward()
    if view == "id":
        assert tower.items.table.weight.grad[0].count_nonzero() == 0


def test_item_vectors_of_the_multimodal_view_are_projected_features() -> None:
    tower = tiny_tower("mm")
    assert tower.items.num_items == NUM_ITEMS
    expected = item_features().double()[[2, 5]] @ tower.items.projection.weight.T
    torch.testing.assert_close(tower.encode_items(torch.tensor([2, 5])), expected)


def test_similar_features_give_similar_items_before_training() -> None:
    items = FeatureItems(FEATURE_SIZE, 8)
    items.attach(item_features())
    vectors = items(torch.arange(NUM_ITEMS + 1))
    torch.testing.assert_close(vectors @ vectors.T, item_features() @ item_features().T, atol=1e-4, rtol=1e-4)


def test_features_belong_to_the_domain_and_are_not_saved() -> None:
    assert not any("features" in key for key in tiny_tower("mm").state_dict())


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(BivrecError, match=r"9 dimensions.*reads 7"):
        FeatureItems(FEATURE_SIZE, 8).attach(torch.zeros(5, 9))


class CountedRows:
    """Features of which somebody else knows where they are."""

    def __init__(self) -> None:
        self.shape = tuple(item_features().shape)
        self.read = 0

    def __getitem__(self, items: Tensor) -> Tensor:
        self.read += items.numel()
        return item_features()[items]


@pytest.mark.parametrize(("resident_bytes", "read"), [(2**30, NUM_ITEMS + 1), (0, 6)])
def test_of_large_features_only_the_rows_of_a_batch_are_read(
    monkeypatch: pytest.MonkeyPatch, resident_bytes: int, read: int
) -> None:
    monkeypatch.setattr("bivrec.model.items.RESIDENT_BYTES", resident_bytes)
    monkeypatch.setattr("bivrec.model.items.READ_AT_ONCE", 3)
    items, source = FeatureItems(FEATURE_SIZE, 8).double(), CountedRows()
    items.attach(source)
    for indices in (torch.tensor([[4, 0], [2, 4]]), torch.tensor([1, 3])):
        torch.testing.assert_close(items(indices), item_features()[indices].double() @ items.projection.weight.T)
    assert items.num_items == NUM_ITEMS
    assert source.read == read


@pytest.mark.parametrize(("memory", "resident"), [(80 * 2**30, 20 * 2**30), (2 * 2**30, 2**30)])
def test_a_large_gpu_holds_more(monkeypatch: pytest.MonkeyPatch, memory: int, resident: int) -> None:
    properties = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert resident_bytes(torch.device("cuda")) == resident
    assert resident_bytes(torch.device("cpu")) == 2**30


def test_a_tower_without_features_says_so() -> None:
    items = FeatureItems(FEATURE_SIZE, 8)
    with pytest.raises(BivrecError, match="attach"):
        items(torch.tensor([1]))


def test_both_views_differ_in_their_items_alone() -> None:
    """The sequence encoder is what transfers: it has the same parameters whatever the items."""
    shapes = [
        {key: value.shape for key, value in tiny_tower(view).sequence.state_dict().items()} for view in ("id", "mm")
    ]
    assert shapes[0] == shapes[1]
    assert IdItems(5, 8).num_items == 5


def test_items_of_an_id_view_may_be_rows_of_a_table_and_features_together() -> None:
    config = replace(TINY, id_items="ids+features")
    towers = fresh_towers(config, ("id", "mm"), NUM_ITEMS, [FEATURE_SIZE], item_features())
    items, every = towers["id"].items, torch.arange(NUM_ITEMS + 1)
    expected = items.identity.table.weight + item_features() @ items.content.projection.weight.T
    torch.testing.assert_close(items(every), expected)
    assert not items(every)[0].any()
    assert towers["id"].sequence.free_interests
    items(every[1:4]).sum().backward()
    assert items.content.projection.weight.grad.any()
    assert items.identity.table.weight.grad.any(1).nonzero().flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize(("views", "id_items"), [(("id",), "ids+features"), (("id", "mm"), "ids")])
def test_items_of_other_id_views_are_rows_of_a_table(views: tuple[str, ...], id_items: str) -> None:
    towers = fresh_towers(replace(TINY, id_items=id_items), views, NUM_ITEMS, [FEATURE_SIZE])
    assert isinstance(towers["id"].items, IdItems)


@pytest.mark.parametrize("views", [("id",), ("mm",), ("id", "mm")])
def test_each_view_has_a_repeat_bias_of_its_own(views: tuple[str, ...]) -> None:
    model = tiny_model(views, repeat_bias=True)
    biases = [model.repeat_bias(view) for view in views]
    assert len({bias.item() for bias in biases}) == len(views)
    assert all(bias.requires_grad for bias in biases)
    assert tiny_model(views).repeat_bias(views[0]) is None


@pytest.mark.parametrize("readout", ["history", "prefix"])
@pytest.mark.parametrize("view", ["id", "mm"])
def test_interests_of_content_lie_among_the_items(view: str, readout: str) -> None:
    """Whatever the weights are, an interest of like items is near to them; only the allocation is learnt."""
    tower = tiny_tower(view, **{f"{view}_interests": "content"}, num_interests=(2,), readout=readout)
    histories = torch.full((1, 6), 5)
    interests = read(tower, histories).vectors[0, 0]
    item = tower.encode_items(torch.tensor(5))
    for interest in interests:
        share = (interest @ item) / (item @ item)
        assert 0 <= share <= 1 + 1e-9
        torch.testing.assert_close(interest, share * item)


def test_a_model_knows_its_views_and_its_catalogue() -> None:
    model = BiVRecNetwork({"id": tiny_tower("id"), "mm": tiny_tower("mm")})
    assert model.views == ("id", "mm")
    assert model.num_items == NUM_ITEMS
    assert not hasattr(BiVRecNetwork({"mm": tiny_tower("mm")}), "cross_view")


def test_a_causal_tower_forgets_at_a_rate_of_each_interest() -> None:
    """From interests that last a whole history to fleeting ones; what comes later is not known yet."""
    tower = id_tower(replace(TINY, readout="prefix", scales=(3,)), NUM_ITEMS)
    given: list[Tensor] = []
    tower.sequence.clustering[0].register_forward_pre_hook(lambda stage, inputs: given.append(inputs[-1]))
    read(tower, torch.ones(1, 8, dtype=torch.long), torch.tensor([4, 7]))
    early, late = given[0][0]
    assert early[:, 5:8].count_nonzero() == 0, "items after the reader"
    assert early[:, 10].count_nonzero() == 0, "a window that ends after the reader"
    rates = -late[:, 6].log()
    assert (rates > 0).all()
    assert len(rates.unique()) == 3
    newest = torch.tensor([*range(7, -1, -1), 6, 3, 0])
    torch.testing.assert_close(late, torch.exp(-rates.unsqueeze(1) * newest))
    torch.testing.assert_close(early[:, [0, 4, 8, 9]], torch.exp(-rates.unsqueeze(1) * torch.tensor([4, 0, 3, 0])))


@pytest.mark.parametrize("readout", ["history", "prefix"])
@pytest.mark.parametrize("assignment", ["gumbel-hard", "softmax-hard"])
def test_interests_without_items_do_not_blow_up_the_gradient(readout: str, assignment: str) -> None:
    """Many interests of few items: most get none, or only what has faded."""
    changes = {"view": "mm", "mm_interests": "content", "score": "cosine", "readout": readout, "num_interests": (16,)}
    norms = {}
    for kind in (assignment, "softmax-soft"):
        tower = tiny_tower(**changes, assignment=kind).train()
        torch.manual_seed(0)
        histories = random_histories(16, 4)
        positions = every_position(histories) if readout == "prefix" else None
        scores = read(tower, histories, positions).vectors @ tower.encode_items(torch.arange(1, NUM_ITEMS + 1)).T
        scores.logsumexp(-1).mean().backward()
        gradients = [weights.grad for weights in tower.parameters() if weights.grad is not None]
        norms[kind] = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert norms[assignment] < 100 * norms["softmax-soft"]
