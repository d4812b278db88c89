"""One view of BiVRec: an item encoder and a sequence encoder that reads a history into interests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.config import ModelConfig
from bivrec.model.attention import GaussianAttention, TransformerLayer
from bivrec.model.clustering import InterestClustering
from bivrec.model.dropout import Dropout
from bivrec.model.items import FeatureItems, Items
from bivrec.model.multi_scale import MultiScaleEmbedding, Tokens
from bivrec.model.packing import Packing

INITIAL_COSINE_SCALE = 10.0
LEAST_INTEREST_NORM = 0.05
"""Shorter interests are not brought to length 1: of hard assignments some get no item, or only faded ones, and through
the length of next to nothing their straight-through gradient would be thousands of times all others'."""
INITIAL_DECAYS = (1.0, 1 / 4)
"""Fastest and slowest rate per item at which interests forget."""
INITIAL_CONTENT_GAIN = 0.5
"""How much of what they gather is added to free interests at first, as a share of the length of a state."""


@dataclass(frozen=True)
class Interests:
    """What a tower reads from a batch of histories."""

    vectors: Tensor
    """[B, T, K, D]: K interests after each of T read positions; their dot product with an item vector is a score."""
    allocation: Tensor
    """[B, K, N']: share of each token in each interest, at the last read position (Eq. 8)."""
    mask: Tensor
    """[B, N'] bool: the tokens that cover a real item."""


class SequenceEncoder(nn.Module):
    """Multi-scale embedding, Gaussian attention and interest clustering (Eq. 1-12)."""

    def __init__(self, config: ModelConfig, interests: str) -> None:
        """`interests`: free, content, or free+content, as of `ModelConfig.id_interests`."""
        super().__init__()
        width = config.hidden_size
        kinds = interests.split("+")
        self.free_interests = "free" in kinds
        self.content_interests = "content" in kinds
        self.causal = config.readout == "prefix"
        self.embedding = MultiScaleEmbedding(
            width, config.max_history, config.scales, positions=config.positions == "age"
        )
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                width,
                config.dropout,
                GaussianAttention(width, config.num_heads, config.dropout, config.gaussian),
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.clustering = nn.ModuleList(
            InterestClustering(
                width,
                count,
                interests_per_item=config.interests_per_item,
                assignment=config.assignment,
                temperature=config.assignment_temperature,
                aggregation=config.aggregation,
                free=self.free_interests,
            )
            for count in config.num_interests
        )
        if self.causal:
            self.log_decay = nn.Parameter(_spread_decays(config.num_interests[0]))
        if self.causal and self.free_interests:
            self.state = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.state.weight)
        if self.free_interests and self.content_interests:
            self.content_gain = nn.Parameter(torch.full((config.num_interests[-1],), INITIAL_CONTENT_GAIN))

    def forward(self, items: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """Interests of the histories with item vectors [B, N, D] and mask [B, N], padded on the left.

        read [T]: the positions in 0..N-1 after which a causal encoder reads its interests (default: the last one).
        """
        length = items.shape[1]
        tokens = self.embedding(items, mask)
        reader_age = length - 1 - (torch.tensor([length - 1], device=items.device) if read is None else read)
        states = self._contextualise(tokens)
        weight = self._reader_weights(tokens, reader_age)
        first, *later = self.clustering
        content = tokens.content if self.content_interests else None
        interests, content, allocation = first(states, content, tokens.mask, weight)
        for stage in later:
            # Interests differ between readers, so readers become part of the batch.
            batch, readers, count, width = interests.shape
            folded = None if content is None else content.view(batch * readers, count, width)
            everything = torch.ones(batch * readers, count, dtype=torch.bool, device=items.device)
            merged, gathered, regrouped = stage(
                # As large as the states that the first stage reads: noise alone would allocate what is small.
                functional.layer_norm(interests, (width,)).view(batch * readers, count, width),
                folded,
                everything,
                everything[:, None, None, :].to(weight.dtype),
            )
            interests = merged.view(batch, readers, -1, width)
            content = None if gathered is None else gathered.view(batch, readers, -1, width)
            allocation = regrouped.view(batch, readers, -1, count)[:, -1] @ allocation
        if self.causal and self.free_interests:
            current = states[:, length - 1 - reader_age]
            interests = interests + self.state(current).unsqueeze(2)
        if self.free_interests and content is not None:
            # States are normalised, of length sqrt(D).
            interests = interests + math.sqrt(interests.shape[-1]) * self.content_gain.unsqueeze(1) * content
        return Interests(interests, allocation, tokens.mask)

    def _contextualise(self, tokens: Tokens) -> Tensor:
        packing = Packing(tokens.mask)
        # What fills a group is zero, so the newest item of a real token has an age of at least 1 here.
        newest = (tokens.newest + 1).expand(tokens.mask.shape).to(tokens.position)
        visible, squared_distance = [], []
        for group in packing.to_groups(packing.pack(torch.stack([tokens.position, newest], -1))):
            position, age = group.unbind(-1)
            real = (age > 0).unsqueeze(1).expand(-1, age.shape[1], -1)
            visible.append(real & (age.unsqueeze(1) >= age.unsqueeze(2)) if self.causal else real)
            squared_distance.append((position.unsqueeze(2) - position.unsqueeze(1)).square())
        vectors: Tensor = self.dropout(packing.pack(tokens.vectors))
        for layer in self.layers:
            vectors = layer(vectors, packing, visible, squared_distance)
        return packing.unpack(self.norm(vectors))

    def _reader_weights(self, tokens: Tokens, reader_age: Tensor) -> Tensor:
        """[B, T, 1 or K, N']: how much a token counts for each reader and interest."""
        if not self.causal:
            return tokens.mask[:, None, None, :].to(tokens.vectors.dtype)
        elapsed = tokens.newest[None, :] - reader_age[:, None]
        remembered = torch.exp(-self.log_decay.exp()[None, :, None] * elapsed.clamp(min=0)[:, None, :])
        return (remembered * (elapsed >= 0)[:, None, :]).unsqueeze(0)


def _spread_decays(count: int) -> Tensor:
    """Logarithms of decay rates per item, from fleeting interests to those that last for several items."""
    fastest, slowest = INITIAL_DECAYS
    return torch.linspace(math.log(fastest), math.log(slowest), count)


def in_full_precision(item_vectors: Tensor) -> Tensor:
    """Item vectors in float32 at least: a popular item is read hundreds of times a step, and in bfloat16 the sum of its
    gradients would stop growing."""
    return item_vectors.to(torch.promote_types(item_vectors.dtype, torch.float32))


class TowerNetwork(nn.Module):
    """Items and histories of one view in one vector space: score(u, i) = max_k v_k . x_i (Eq. 19)."""

    def __init__(self, config: ModelConfig, items: Items, sequence: nn.Module | None = None) -> None:
        """`sequence` reads histories, as SequenceEncoder does, which is the default."""
        super().__init__()
        self.config = config
        self.items = items
        interests = config.mm_interests if isinstance(items, FeatureItems) else config.id_interests
        self.sequence = SequenceEncoder(config, interests) if sequence is None else sequence
        if config.score == "cosine":
            self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_COSINE_SCALE)))

    def encode_items(self, indices: Tensor) -> Tensor:
        """Vectors [..., D] of the items with these indices."""
        vectors = in_full_precision(self.items(indices))
        if self.config.score == "cosine":
            vectors = functional.normalize(vectors, dim=-1, eps=1e-6)
        return vectors

    def encode_histories(self, item_vectors: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """Interests of histories given their item vectors [B, N, D] (from `encode_items`) and mask [B, N]."""
        found: Interests = self.sequence(item_vectors, mask, read)
        if self.config.score == "cosine":
            scaled = functional.normalize(found.vectors, dim=-1, eps=LEAST_INTEREST_NORM) * self.log_scale.exp()
            found = Interests(scaled, found.allocation, found.mask)
        return found

    def join_interests(self, affinities: Tensor) -> Tensor:
        """Scores [A, B] of what each interest says of an item, affinities [A, K, B]."""
        return affinities.logsumexp(1) if self.config.interest_score == "logsumexp" else affinities.amax(1)

    def candidates(self, item_vectors: Tensor) -> Tensor:
        """The part [..., D] of item vectors that histories are scored against."""
        return item_vectors

    def auxiliary_loss(self, item_vectors: Tensor, mask: Tensor, interests: Interests) -> Tensor | None:
        """A further weighted loss of histories (as for `encode_histories`) and their interests; None: there is none."""
        return None
