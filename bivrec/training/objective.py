"""The objective of a training step (Eq. 22), as a module that data parallelism can wrap."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.config import ObjectiveConfig
from bivrec.data.batches import Batch
from bivrec.model.bivrec import BiVRec
from bivrec.model.cross_view import allocation_loss, contrastive_loss
from bivrec.model.items import IdItems
from bivrec.model.tower import Interests
from bivrec.training.candidates import Candidates
from bivrec.training.distributed import gather_rows, mean_over_processes, rank, world_size
from bivrec.training.losses import full_softmax_loss, sampled_softmax_loss

SPARSE_ROWS = 100_000
"""Items from which on a sampled softmax gives the ID table a gradient, and an update, of only the rows that it reads.

Below, all rows together cost less than finding out which ones are meant.
"""


class Objective(nn.Module):
    """L = L_ID + sg(L_ID / L_MM) L_MM + lambda1 L_contrastive + lambda2 L_A; with one view, its loss alone."""

    def __init__(self, model: BiVRec, config: ObjectiveConfig) -> None:
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
        interests: dict[str, Interests] = {}
        parts: dict[str, Tensor] = {}
        for view in self.model.views:
            interests[view], losses = self._view(view, batch, candidates, rows)
            parts |= losses
        if len(interests) == 1:
            return {"loss": torch.stack(list(parts.values())).sum(), **parts}
        id_loss, mm_loss = mean_over_processes(torch.stack([parts["loss_id"], parts["loss_mm"]]))
        parts["contrastive"] = self._contrastive(interests["id"], interests["mm"], batch.users)
        parts["allocation"] = allocation_loss(interests["id"].allocation, interests["mm"].allocation)
        loss = (
            parts["loss_id"]
            + id_loss / mm_loss * parts["loss_mm"]
            + self.config.contrastive_weight * parts["contrastive"]
            + self.config.allocation_weight * parts["allocation"]
        )
        return {"loss": loss, **parts}

    def _view(
        self, view: str, batch: Batch, candidates: Candidates | None, rows: _Rows
    ) -> tuple[Interests, dict[str, Tensor]]:
        tower = self.model.tower(view)
        # Every item of the step is embedded or projected once, whatever part it plays.
        items = tower.encode_items(rows.items)
        vectors, history, mask = tower.candidates(items), functional.embedding(rows.history, items), batch.history > 0
        interests = tower.encode_histories(history, mask, batch.positions)
        learnt = batch.targets > 0
        readouts, targets = interests.vectors[learnt], rows.targets[learnt]
        sequence = learnt.nonzero()[:, 0]
        own = batch.history if view == "mm" and not self.config.mm_history_negatives else None
        mixture = tower.config.interest_score == "logsumexp"
        scored_by = "all-interests" if mixture else self.config.negatives_scored_by
        if candidates is None:
            total = full_softmax_loss(
                readouts, targets - 1, vectors[1:], scored_by, None if own is None else own[sequence] - 1
            )
        else:
            learnt_items = batch.targets[learnt]
            left_out = learnt_items.unsqueeze(1) == candidates.items
            if own is not None:
                left_out |= (own.unsqueeze(2) == candidates.items).any(1)[sequence]
            total = sampled_softmax_loss(
                readouts,
                functional.embedding(targets, vectors),
                functional.embedding(rows.candidates, vectors),
                left_out=left_out,
                target_log_inclusion=candidates.log_inclusion[learnt_items],
                candidate_log_inclusion=candidates.log_inclusion[candidates.items],
                scored_by=scored_by,
            )
        # Slices hold different numbers of targets; each target of the global batch weighs the same.
        losses = {f"loss_{view}": total / batch.mean_targets}
        auxiliary = tower.auxiliary_loss(history, mask, interests)
        if auxiliary is not None:
            losses[f"auxiliary_{view}"] = auxiliary
        return interests, losses

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
            first_row=rank() * len(users) if world_size() > 1 else 0,
            scale=cross_view.scale(),
        )


def id_tables(model: nn.Module) -> list[nn.Embedding]:
    """The tables of item vectors in a model."""
    return [part.table for part in model.modules() if isinstance(part, IdItems)]


class _Rows:
    """The items that a step embeds, and where its histories, targets and candidates lie among them."""

    def __init__(self, items: Tensor, history: Tensor, targets: Tensor, candidates: Tensor) -> None:
        self.items, self.history, self.targets, self.candidates = items, history, targets, candidates

    @classmethod
    def of(cls, batch: Batch, candidates: Candidates | None, num_items: int) -> _Rows:
        if candidates is None:
            everything = torch.arange(num_items + 1, device=batch.history.device)
            return cls(everything, batch.history, batch.targets, everything)
        parts = (batch.history, batch.targets, candidates.items)
        items, places = torch.unique(torch.cat([part.flatten() for part in parts]), return_inverse=True)
        history, targets, drawn = places.split([part.numel() for part in parts])
        return cls(items, history.view_as(batch.history), targets.view_as(batch.targets), drawn)
