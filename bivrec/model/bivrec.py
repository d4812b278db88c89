"""The two views together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bivrec.model.cross_view import CrossViewProjection
from bivrec.model.tower import TowerNetwork


class BiVRecNetwork(nn.Module):
    """An ID tower, a multimodal tower, and what joins them; a single view, or a baseline, has only its tower."""

    id_weight: Tensor
    """Share of the ID view where both views rank together, of items that it knows well; the rest is the other's."""
    id_trust: Tensor
    """[V + 1]: how well the ID view knows an item: 0 where it was not trained on it, nearly 1 where it often was."""

    def __init__(self, towers: dict[str, TowerNetwork]) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        config = next(iter(towers.values())).config
        learns_repeats = config.repeat_bias and config.system == "bivrec"
        self.repeat_biases = nn.Parameter(torch.zeros(len(towers))) if learns_repeats else None
        if len(towers) > 1:
            self.register_buffer("id_weight", torch.tensor(0.5))
            self.register_buffer("id_trust", torch.ones(self.num_items + 1))
            self.cross_view = CrossViewProjection(config.hidden_size, config.num_interests[-1])

    @property
    def views(self) -> tuple[str, ...]:
        """The views that the model has, each with a tower: `id`, `mm`, or both; or `both` alone, see `baselines`."""
        return tuple(self.towers)

    def tower(self, view: str) -> TowerNetwork:
        """The tower of one view."""
        tower = self.towers[view]
        assert isinstance(tower, TowerNetwork)
        return tower

    def repeat_bias(self, view: str) -> Tensor | None:
        """What a view adds to the scores of items that the user has had before, a scalar; None: nothing is learned."""
        return None if self.repeat_biases is None else self.repeat_biases[self.views.index(view)]

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        return self.tower(self.views[0]).items.num_items
