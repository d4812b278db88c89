"""Synthetic multimodal worlds: two domains that share topics but no items, with known interests.

The planted structure, which a model has to find:

- A topic is a set of invented words, a hue and a shape. An item belongs to one topic: its title and text are words of
  the topic (a few are words of any topic), its image shows the shape in the hue.
- A user has a few interests (topics). A session stays within one topic; the topics of a user's successive sessions
  follow the world's Markov chain, restricted to the interests. Interests drift: now and then one is replaced by a
  topic that the chain leads to.
- Within a topic items are drawn by long-tailed popularity, never twice by a user. Some interactions are noise.

Words, hues, shapes and the chain are the same in both domains; items, popularity and users are not. So what text and
images say about the next item transfers, item identities do not.
"""

from __future__ import annotations

import colorsys
import dataclasses
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bivrec.data.domain import Domain
from bivrec.data.info import INFO_FILE
from bivrec.data.prepare import prepare
from bivrec.data.raw import RawData, catalogue_table
from bivrec.data.stretches import places_of
from bivrec.errors import BivrecError, not_installed
from bivrec.files import FolderKind, new_folder

WORLD_FOLDER = FolderKind(
    marks=tuple(f"{name}/{INFO_FILE}" for name in ("source", "target")),
    entries=("source", "target", "source-images.tar", "target-images.tar"),
)
NUM_INTERESTS = 3
WORDS_PER_TOPIC = 12
MEAN_SESSION = 6
MIN_LENGTH = 5
NOISE = 0.1
"""Probability that an interaction has nothing to do with the user's interests."""
DRIFT = 0.05
"""Probability, per session, that an interest is replaced."""
FOREIGN_WORD = 0.15
"""Probability that a word of an item is one of any topic."""
IMAGE_SIZE = 32
DAY = 86_400
EPOCH = 1_500_000_000


@dataclass(frozen=True)
class DomainSize:
    """Users, items, and the mean number of interactions that are drawn for a user.

    A user keeps somewhat fewer where the catalogue is small, because no item comes twice.
    """

    users: int
    items: int
    mean_length: float


@dataclass(frozen=True)
class SyntheticDomain:
    """The interactions of one domain and the truth behind them."""

    raw: RawData
    item_topics: np.ndarray
    """int64 [items]: topic by item code (position in raw.item_ids)."""
    user_interests: np.ndarray
    """int64 [users, NUM_INTERESTS]: topics at the start, by user code."""


@dataclass(frozen=True)
class World:
    """What the domains share."""

    words: list[list[str]]
    """Words by topic."""
    chain: np.ndarray
    """[topics, topics]: probability that a session on the row's topic is followed by one on the column's."""
    seed: int

    @classmethod
    def create(cls, topics: int = 12, seed: int = 0) -> World:
        """Invent words for `topics` topics (at least 4) and the chain; BivrecError if a number is out of range."""
        if topics < NUM_INTERESTS + 1 or seed < 0:
            raise BivrecError(f"topics {topics}, seed {seed}: expected at least {NUM_INTERESTS + 1} and 0")
        random = np.random.default_rng([seed, 0])
        vocabulary = _invent_words(topics * WORDS_PER_TOPIC, random)
        words = [vocabulary[first : first + WORDS_PER_TOPIC] for first in range(0, len(vocabulary), WORDS_PER_TOPIC)]
        # Few likely successors, so that the order of the topics can be learnt.
        chain = random.dirichlet(np.full(topics, 0.15), size=topics) + 0.02 / topics
        return cls(words, chain / chain.sum(1, keepdims=True), seed)

    def domain(self, name: str, size: DomainSize) -> SyntheticDomain:
        """Draw a domain; its name takes part in the seed. BivrecError if the sizes are impossible."""
        topics = len(self.words)
        if size.users < 10 or size.items < 2 * topics or not MIN_LENGTH < size.mean_length <= size.items / 4:
            raise BivrecError(
                f"{name}: {size.users} users, {size.items} items, mean length {size.mean_length:g}: expected at least "
                f"10 users, {2 * topics} items (two a topic), and a mean length above {MIN_LENGTH} and at most a "
                "quarter of the items"
            )
        random = np.random.default_rng([self.seed, *name.encode()])
        # Every topic has at least one item, else it could not be drawn from.
        item_topics = np.concatenate([np.arange(topics), random.integers(topics, size=size.items - topics)])
        random.shuffle(item_topics)
        lengths = _lengths(size, random)
        interests = random.random((size.users, topics)).argsort(axis=1)[:, :NUM_INTERESTS]
        users = np.repeat(np.arange(size.users, dtype=np.int32), lengths)
        topic, gap = self._sessions(lengths, interests, random)
        items, kept = _draw_items(users, topic, item_topics, random)
        start = EPOCH + random.integers(365 * DAY, size=size.users)
        timestamps = _cumulative(gap, lengths) + np.repeat(start, lengths)
        raw = RawData(
            users=users[kept],
            items=items[kept],
            timestamps=timestamps[kept],
            user_ids=_ids(f"{name}-user-", size.users),
            item_ids=_ids(f"{name}-item-", size.items),
            source={"reader": "synthetic", "topics": topics, "world_seed": self.seed},
            catalogue=self._describe(_ids(f"{name}-item-", size.items), item_topics, random),
        )
        return SyntheticDomain(raw, item_topics, interests)

    def _sessions(
        self, lengths: np.ndarray, interests: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Topic of every interaction, and the seconds since the one before."""
        interests = interests.copy()
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        topic = np.empty(offsets[-1], np.int16)
        gap = random.integers(30, 600, size=offsets[-1], dtype=np.int64)
        place, end = offsets[:-1].copy(), offsets[1:]
        slot = random.integers(NUM_INTERESTS, size=len(lengths))
        active = np.arange(len(lengths))
        # All users that have not ended advance by one session at a time.
        while len(active):
            mine = interests[active, slot[active]]
            session = np.minimum(random.geometric(1 / MEAN_SESSION, len(active)), end[active] - place[active])
            topic[places_of(place[active], session)[1]] = np.repeat(mine, session)
            gap[place[active]] += random.integers(DAY, 20 * DAY, size=len(active))
            place[active] += session
            active = active[place[active] < end[active]]
            self._drift(active, slot, interests, random)
            weight = self.chain[interests[active, slot[active]][:, None], interests[active]]
            slot[active] = _draw(np.cumsum(weight, axis=1), random)
        noise = random.random(len(topic)) < NOISE
        topic[noise] = random.integers(len(self.words), size=int(noise.sum()))
        return topic, gap

    def _drift(self, active: np.ndarray, slot: np.ndarray, interests: np.ndarray, random: np.random.Generator) -> None:
        """Replace an interest that the user is not busy with by a successor of the present topic, if that is new."""
        users = active[random.random(len(active)) < DRIFT]
        successor = _draw(np.cumsum(self.chain[interests[users, slot[users]]], axis=1), random)
        new = ~(interests[users] == successor[:, None]).any(axis=1)
        users, successor = users[new], successor[new]
        other = (slot[users] + random.integers(1, NUM_INTERESTS, size=len(users))) % NUM_INTERESTS
        interests[users, other] = successor

    def _describe(self, item_ids: pa.StringArray, item_topics: np.ndarray, random: np.random.Generator) -> pa.Table:
        topics = np.repeat(item_topics[:, None], 8, axis=1)
        foreign = random.random(topics.shape) < FOREIGN_WORD
        topics[foreign] = random.integers(len(self.words), size=int(foreign.sum()))
        chosen = np.array(self.words)[topics, random.integers(WORDS_PER_TOPIC, size=topics.shape)]
        titles = [" ".join(row[:3]).title() for row in chosen.tolist()]
        texts = [f"{title}. {' '.join(row[3:])}." for title, row in zip(titles, chosen.tolist(), strict=True)]
        return catalogue_table(item_ids, titles, texts)


def write_world(
    folder: str | Path,
    *,
    source: DomainSize,
    target: DomainSize,
    topics: int = 12,
    images: bool = True,
    k_core: int = 5,
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[Domain, Domain]:
    """Write the Domains `folder`/source and `folder`/target of one world, and the tars of their images beside them."""
    world = World.create(topics, seed)
    folder = Path(folder)
    with new_folder(folder, overwrite, kind=WORLD_FOLDER) as staging:
        for name, size in (("source", source), ("target", target)):
            drawn = world.domain(name, size)
            tar = staging / f"{name}-images.tar"
            raw = draw_images(drawn, tar, topics=topics, seed=seed) if images else drawn.raw
            prepare(raw, staging / name, k_core=k_core, seed=seed)
    return Domain.open(folder / "source"), Domain.open(folder / "target")


def draw_images(domain: SyntheticDomain, path: Path, *, topics: int, seed: int) -> RawData:
    """Write a tar of one small PNG per item, named by its id; the same data, with these images. Needs Pillow."""
    random = np.random.default_rng([seed, 1])
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for item, topic in zip(domain.raw.item_ids.to_pylist(), domain.item_topics.tolist(), strict=True):
            content = _draw_image(topic, topics, random)
            member = tarfile.TarInfo(f"{item}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return dataclasses.replace(domain.raw, images=path)


def _draw_image(topic: int, topics: int, random: np.random.Generator) -> bytes:
    """PNG: the topic's shape (one of four) in its hue, of random size, place and brightness, on a dim background."""
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise BivrecError(f"{not_installed('pillow', 'images')}, or pass --no-images") from None
    hue = (topic + random.uniform(-0.3, 0.3)) / topics
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), _colour(hue, 0.3, random.uniform(0.3, 0.5)))
    canvas = ImageDraw.Draw(image)
    size = random.integers(IMAGE_SIZE // 3, IMAGE_SIZE // 2)
    left, top = (int(edge) for edge in random.integers(1, IMAGE_SIZE - size - 1, size=2))
    right, bottom = int(left + size), int(top + size)
    fill = _colour(hue, 0.9, random.uniform(0.7, 1.0))
    shape = topic % 4
    if shape == 0:
        canvas.ellipse((left, top, right, bottom), fill)
    elif shape == 1:
        canvas.rectangle((left, top, right, bottom), fill)
    elif shape == 2:
        canvas.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill)
    else:
        canvas.line([(left, top), (right, bottom)], fill, width=5)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return red, green, blue


def _invent_words(count: int, random: np.random.Generator) -> list[str]:
    """Distinct pronounceable words of two or three syllables."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = random.integers(2, 4)
        onsets, vowels = random.choice(list("bdfgklmnprstvz"), syllables), random.choice(list("aeiou"), syllables)
        words["".join(onset + vowel for onset, vowel in zip(onsets, vowels, strict=True))] = None
    return list(words)


def _lengths(size: DomainSize, random: np.random.Generator) -> np.ndarray:
    """Log-normal around the wanted mean, at least MIN_LENGTH, at most half the catalogue."""
    tail = random.lognormal(sigma=1.1, size=size.users)
    lengths = MIN_LENGTH + tail * (size.mean_length - MIN_LENGTH) / tail.mean()
    capped: np.ndarray = np.minimum(np.round(lengths), size.items // 2).astype(np.int64)
    return capped


def _draw_items(
    users: np.ndarray, topic: np.ndarray, item_topics: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Items (int32) by long-tailed popularity within the topics, and which rows to keep: none gets an item twice.

    Repeats are drawn anew a few times; what is left of them, of users who have seen most of a topic, is not kept.
    """
    popularity = 1 / (10 + random.permutation(len(item_topics)))
    by_topic = np.argsort(item_topics, kind="stable")
    ends = np.cumsum(popularity[by_topic])
    last = np.searchsorted(item_topics[by_topic], np.arange(item_topics.max() + 1), side="right") - 1
    high = ends[last]
    low = np.concatenate([[0.0], high[:-1]])

    def draw(topic: np.ndarray) -> np.ndarray:
        point = low[topic] + random.random(len(topic)) * (high - low)[topic]
        drawn: np.ndarray = by_topic[np.minimum(np.searchsorted(ends, point, side="right"), last[topic])]
        return drawn.astype(np.int32)

    items = draw(topic)
    for _ in range(5):
        repeated = _seen_before(users, items)
        items[repeated] = draw(topic[repeated])
    return items, ~_seen_before(users, items)


def _seen_before(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    pairs = users.astype(np.int64) << 32 | items
    order = np.argsort(pairs, kind="stable")
    repeated = np.zeros(len(pairs), bool)
    repeated[order[1:][np.diff(pairs[order]) == 0]] = True
    return repeated


def _draw(cumulative: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A column for every row of cumulative weights."""
    point = random.random(len(cumulative)) * cumulative[:, -1]
    column: np.ndarray = (cumulative <= point[:, None]).sum(axis=1)
    return column


def _cumulative(gaps: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Cumulative sum within every user."""
    total: np.ndarray = np.cumsum(gaps)
    before: np.ndarray = np.concatenate([[0], total[np.cumsum(lengths)[:-1] - 1]])
    within: np.ndarray = total - np.repeat(before, lengths)
    return within


def _ids(prefix: str, count: int) -> pa.StringArray:
    width = len(str(count - 1))
    return pa.array([f"{prefix}{number:0{width}}" for number in range(count)], pa.string())
