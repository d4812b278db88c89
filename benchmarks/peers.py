"""Training steps of projects that are not installed, as their own trainers do them: references of `train_step`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from bivrec.config import Config


def recbole_step(config: Config, data: Any, num_items: int) -> Callable[[int], None]:
    """SASRec of RecBole (Zhao et al., CIKM 2021) with cross-entropy over the catalogue."""
    from recbole.model.sequential_recommender.sasrec import SASRec

    part = config.model
    settings = {
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item",
        "LIST_SUFFIX": "s",
        "ITEM_LIST_LENGTH_FIELD": "length",
        "NEG_PREFIX": "no_",
        "MAX_ITEM_LIST_LENGTH": part.max_history,
        "device": torch.device("cpu"),
        "n_layers": part.num_layers,
        "n_heads": part.num_heads,
        "hidden_size": part.hidden_size,
        "inner_size": 4 * part.hidden_size,
        "hidden_dropout_prob": part.dropout,
        "attn_dropout_prob": part.dropout,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "loss_type": "CE",
    }
    model = SASRec(settings, SimpleNamespace(num=lambda _: num_items + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(number: int) -> None:
        batch = data.batch(number)
        length = (batch.history > 0).sum(1)
        # It pads on the right.
        place = (torch.arange(batch.history.shape[1]) - length.unsqueeze(1)) % batch.history.shape[1]
        optimizer.zero_grad()
        model.calculate_loss(
            {"items": batch.history.gather(1, place), "length": length, "item": batch.targets[:, 0]}
        ).backward()
        optimizer.step()

    return step


def comirec_step(config: Config, data: Any, num_items: int) -> Callable[[int], None]:
    """ComiRec-SA of pytorch_ComiRec, which reads histories of one length; the nearest interest scores the catalogue."""
    from ComiRec import ComiRec_SA

    part, batch_size = config.model, config.training.batch_size
    model = ComiRec_SA(num_items + 1, part.hidden_size, batch_size, part.num_interests[-1], part.max_history)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(number: int) -> None:
        batch = data.batch(number)
        history = functional.pad(batch.history, (part.max_history - batch.history.shape[1], 0))
        targets = batch.targets[:, 0]
        optimizer.zero_grad()
        _, scores = model(history, targets, (history > 0).float(), torch.device("cpu"))
        torch.autograd.backward(functional.cross_entropy(scores, targets))
        optimizer.step()

    return step
