import numpy as np
import pytest

from bivrec.data.info import SPLITS
from bivrec.data.prepare import prepare
from bivrec.data.synthetic import DomainSize, World, write_world
from bivrec.errors import BivrecError
from bivrec.files import sha256

SIZE = DomainSize(400, 200, 20)


@pytest.fixture(scope="module")
def drawn():
    return World.create(topics=8).domain("source", SIZE)


def test_planted_interests_explain_most_interactions(drawn):
    raw = drawn.raw
    topic = drawn.item_topics[raw.items]
    of_interest = (drawn.user_interests[raw.users] == topic[:, None]).any(axis=1)
    assert of_interest.mean() > 2 * 3 / 8 * 0.8


def test_words_tell_the_topic(drawn):
    world = World.create(topics=8)
    topic_of = {word: topic for topic, words in enumerate(world.words) for word in words}
    texts = drawn.raw.catalogue["text"].to_pylist()
    votes = [np.bincount([topic_of[word] for word in text.lower().replace(".", "").split()]).argmax() for text in texts]
    assert np.mean(np.array(votes) == drawn.item_topics) > 0.95


def test_domains_share_topics_but_nothing_else(drawn):
    other = World.create(topics=8).domain("target", SIZE)
    assert not set(drawn.raw.item_ids.to_pylist()) & set(other.raw.item_ids.to_pylist())
    assert not np.array_equal(drawn.item_topics, other.item_topics)
    words = [set(" ".join(d.raw.catalogue["text"].to_pylist()).lower().split()) for d in (drawn, other)]
    assert len(words[0] & words[1]) > 0.9 * len(words[0])


def test_shape(drawn):
    raw = drawn.raw
    lengths = np.bincount(raw.users, minlength=SIZE.users)
    assert 0.7 * SIZE.mean_length < lengths.mean() <= SIZE.mean_length + 1
    assert lengths.max() > 2 * lengths.mean() > 2 * np.median(lengths)
    pairs = set(zip(raw.users.tolist(), raw.items.tolist(), strict=True))
    assert len(pairs) == len(raw.users)
    same_user = np.diff(raw.users) == 0
    assert (np.diff(raw.timestamps)[same_user] > 0).all()


def test_neighbours_beat_popularity(tmp_path):
    for name in ("source", "target"):
        domain = prepare(World.create(topics=8).domain(name, SIZE).raw, tmp_path / name)
        train, test = domain.sequences("train"), domain.sequences("test")
        seen = np.zeros((len(train), domain.num_items + 1))
        seen[np.repeat(np.arange(len(train)), train.lengths), train.items] = 1
        together = seen.T @ seen
        norm = np.sqrt(np.diag(together)) + 1e-9
        cosine = together / norm / norm[:, None]
        popular = seen.sum(0)
        assert _recall(test, lambda history, cosine=cosine: cosine[history].sum(0)) > 1.5 * _recall(
            test, lambda history, popular=popular: popular
        )


def _recall(sequences, score):
    values = []
    for user in range(len(sequences)):
        history, targets = np.split(sequences[user], [int(0.8 * len(sequences[user]))])
        scores = score(history).copy()
        scores[[0, *history]] = -1
        values.append(np.isin(targets, np.argsort(-scores)[:20]).mean())
    return np.mean(values)


def test_world_is_written_with_images_and_the_same_bytes(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    sizes = {"source": DomainSize(60, 40, 10), "target": DomainSize(40, 30, 7)}
    digests = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        source, target = write_world(folder, **sizes, topics=5, k_core=2, seed=3)
        assert source.info.missing == target.info.missing == {"text": 0, "image": 0}
        digests.append({p.relative_to(folder): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()})
    assert digests[0] == digests[1]
    assert source.images.is_file()
    import tarfile

    with tarfile.open(source.images) as archive:
        image = image_module.open(archive.extractfile(source.item_table()[0]["image"]))
        assert image.size == (32, 32)
    assert sum(target.info.users[split] for split in SPLITS) <= 40


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (DomainSize(0, 200, 20), "0 users"),
        (DomainSize(100, -1, 20), "-1 items"),
        (DomainSize(100, 200, 0), "mean length 0"),
        (DomainSize(100, 200, 100), "at most a quarter of the items"),
    ],
)
def test_impossible_sizes(size, message):
    with pytest.raises(BivrecError, match=message):
        World.create(topics=8).domain("source", size)


def test_too_few_topics():
    with pytest.raises(BivrecError, match="topics 2"):
        World.create(topics=2)
