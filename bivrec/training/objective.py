"""The objective of a training step (Eq. 22), as a module that data parallelism can wrap."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.config import ObjectiveConfig
from bivrec.data.batches import Batch
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.cross_view import allocation_loss, contrastive_loss
from bivrec.model.items import IdItems
from bivrec.model.tower import Interests
from bivrec.training.candidates import Candidates
from bivrec.training.distributed import gather_rows, mean_over_processes, rank
from bivrec.training.losses import Repeats, softmax_loss

SPARSE_ROWS = 100_000
"""Items from which on a sampled softmax gives the ID table a gradient, and an update, of only the rows that it reads.

Below, all rows together cost less than finding out which ones are meant.
"""
LEAST_LOSS = 1e-6
"""What the multimodal loss counts as at least where it is divided by: it is 0 where every candidate is the target."""


class Objective(nn.Module):
    """L = L_ID + sg(L_ID / L_MM) L_MM + lambda1 L_contrastive + lambda2 L_A; with one view, its loss alone."""

    def __init__(self, model: BiVRecNetwork, config: ObjectiveConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        for table in id_tables(model):
            table.sparse = config.candidates != "full" and table.num_embeddings > SPARSE_ROWS

    def forward(self, batch: Batch, candidates: Candidates | None) -> dict[str, Tensor]:
        """The parts of the loss as scalars; `loss` is their sum, the one to minimise.

        Each value is this process's share: its mean over processes is the value of the global batch.
        """
        rows = _Rows.of(batch, candidates, self.model.num_items)
        repeats = None if self.model.repeat_biases is None else self._repeats(batch, candidates, rows)
        interests: dict[str, Interests] = {}
        parts: dict[str, Tensor] = {}
        for view in self.model.views:
            interests[view], losses = self._view(view, batch, candidates, rows, repeats)
            parts |= losses
        if len(interests) == 1:
            return {"loss": torch.stack(list(parts.values())).sum(), **parts}
        id_loss, mm_loss = mean_over_processes(torch.stack([parts["loss_id"], parts["loss_mm"]]))
        parts["contrastive"] = self._contrastive(interests["id"], interests["mm"], batch.users)
        parts["allocation"] = allocation_loss(interests["id"].allocation, interests["mm"].allocation)
        loss = (
            parts["loss_id"]
            + id_loss / mm_loss.clamp_min(LEAST_LOSS) * parts["loss_mm"]
            + self.config.contrastive_weight * parts["contrastive"]
            + self.config.allocation_weight * parts["allocation"]
        )
        return {"loss": loss, **parts}

    def _view(
        self, view: str, batch: Batch, candidates: Candidates | None, rows: _Rows, repeats: Repeats | None
    ) -> tuple[Interests, dict[str, Tensor]]:
        tower = self.model.tower(view)
        # Every item of the step is embedded or projected once, whatever part it plays.
        items = tower.encode_items(rows.items)
        vectors, history, mask = tower.candidates(items), functional.embedding(rows.history, items), batch.history > 0
        interests = tower.encode_histories(history, mask, batch.positions)
        readouts, targets = interests.vectors[rows.learnt], rows.targets[rows.learnt]
        mixture = tower.config.interest_score == "logsumexp"
        scored_by = "all-interests" if mixture else self.config.negatives_scored_by
        learnt_items = batch.targets[rows.learnt]
        if candidates is None:
            shown, hits, log_inclusion = vectors[1:], learnt_items - 1, None
        else:
            shown, hits = functional.embedding(rows.candidates, vectors), _columns(learnt_items, candidates.items)
            log_inclusion = candidates.log_inclusion[learnt_items], candidates.log_inclusion[candidates.items]
        own = functional.embedding(targets, vectors)
        bias = self.model.repeat_bias(view)
        total = softmax_loss(readouts, own, shown, hits, scored_by, log_inclusion, repeats, bias)
        # Slices hold different numbers of targets; each target of the global batch weighs the same.
        losses = {f"loss_{view}": total / batch.mean_targets}
        auxiliary = tower.auxiliary_loss(history, mask, interests)
        if auxiliary is not None:
            losses[f"auxiliary_{view}"] = auxiliary
        return interests, losses

    def _repeats(self, batch: Batch, candidates: Candidates | None, rows: _Rows) -> Repeats:
        """Where a candidate is a repeat for the learnt rows of a batch."""
        if candidates is None:
            since = _had_since(batch, torch.arange(1, self.model.num_items + 1, device=batch.history.device))
        else:
            since = _had_since(batch, candidates.items)
        sequence, place = rows.learnt
        had = _had_targets(batch, self.model.num_items)[rows.learnt]
        return Repeats(since, sequence, batch.positions[place], had)

    def _contrastive(self, id_view: Interests, mm_view: Interests, users: Tensor) -> Tensor:
        cross_view = self.model.cross_view
        id_users = cross_view("id", id_view.vectors[:, -1])
        mm_users = cross_view("mm", mm_view.vectors[:, -1])
        return contrastive_loss(
            id_users,
            mm_users,
            gather_rows(id_users),
            gather_rows(mm_users),
            gather_rows(users),
            first_row=rank() * len(users),
            scale=cross_view.scale(),
        )


def id_tables(model: nn.Module) -> list[nn.Embedding]:
    """The tables of item vectors in a model."""
    return [part.table for part in model.modules() if isinstance(part, IdItems)]


def _had_since(batch: Batch, candidates: Tensor) -> Tensor:
    """[B, C] int32: position of the history that first has a candidate [C] (items in increasing order).

    -1: it came before the history; N: it never came.
    """
    rows, length = batch.history.shape
    # The last column takes what is no candidate.
    since = torch.full((rows, len(candidates) + 1), length, dtype=torch.int32, device=candidates.device)
    position = torch.arange(length, dtype=torch.int32, device=candidates.device).expand(rows, -1)
    since.scatter_reduce_(1, _columns(batch.history, candidates), position, "amin")
    row, item = batch.earlier
    since[row, _columns(item, candidates)] = -1
    return since[:, :-1]


def _columns(items: Tensor, candidates: Tensor) -> Tensor:
    """Column of each item among the candidates [C], in increasing order; C for those that are none."""
    column = torch.searchsorted(candidates, items.contiguous())
    found = candidates[column.clamp(max=len(candidates) - 1)] == items
    return torch.where(found, column, len(candidates))


def _had_targets(batch: Batch, num_items: int) -> Tensor:
    """Bool [B, T]: whether a target came before."""
    length = batch.history.shape[1]
    visible = torch.arange(length, device=batch.history.device) <= batch.positions.unsqueeze(1)
    recently = ((batch.targets.unsqueeze(2) == batch.history.unsqueeze(1)) & visible).any(2)
    # One number for a row and an item together.
    first = torch.arange(len(batch.targets), device=batch.targets.device).unsqueeze(1) * (num_items + 1)
    row, item = batch.earlier
    # Not torch.isin, which asks how many different ones there are; the first keeps the table from being empty.
    earlier = functional.pad((item + row * (num_items + 1)).sort().values, (1, 0), value=-1)
    return recently | (_columns(batch.targets + first, earlier) < len(earlier))


class _Rows:
    """The items that a step embeds, and where its histories, targets and candidates lie among them."""

    def __init__(
        self, items: Tensor, history: Tensor, targets: Tensor, candidates: Tensor, learnt: tuple[Tensor, ...]
    ) -> None:
        """learnt: row and column of the targets that there are."""
        self.items, self.history, self.targets, self.candidates = items, history, targets, candidates
        self.learnt = learnt

    @classmethod
    def of(cls, batch: Batch, candidates: Candidates | None, num_items: int) -> _Rows:
        # Once for all that indexes with it: how many there are is a question for which the host waits.
        learnt = batch.targets.nonzero(as_tuple=True)
        if candidates is None:
            everything = torch.arange(num_items + 1, device=batch.history.device)
            return cls(everything, batch.history, batch.targets, everything, learnt)
        parts = (batch.history, batch.targets, candidates.items)
        items, places = torch.unique(torch.cat([part.flatten() for part in parts]), return_inverse=True)
        history, targets, drawn = places.split([part.numel() for part in parts])
        return cls(items, history.view_as(batch.history), targets.view_as(batch.targets), drawn, learnt)
