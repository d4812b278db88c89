"""Several Domains as one, as the source of a tower that has seen more than one kind of catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from bivrec.data.domain import DOMAIN_FOLDER, ITEM_COLUMNS, Domain
from bivrec.data.histories import users_of_split
from bivrec.data.info import LEAVE_ONE_OUT, SPLITS, TEMPORAL, FeatureSpec
from bivrec.data.prepare import prepare
from bivrec.data.raw import RawData
from bivrec.errors import BivrecError
from bivrec.features.contract import check_contract, encode_command
from bivrec.files import new_folder


def merge(domains: Sequence[Domain], path: str | Path, *, name: str | None = None, overwrite: bool = False) -> Domain:
    """Write a Domain of all users and items of `domains` to `path`; `name` defaults to the folder's.

    Ids become NAME:ID, with the name of their Domain, so that nothing is taken for the same; users keep their split,
    and what is held out of their sequences stays held out.
    Features are taken along, as whitened for their own Domain, and items lack the modalities that their Domain lacks.
    Images are not taken along.
    Raises BivrecError for fewer than two Domains, two of one name, one that is to be replaced, different protocols,
    features of one modality that were made in different ways, and a Domain without features beside one with some.
    """
    path = Path(path)
    names = [domain.name for domain in domains]
    if len(names) < 2:
        raise BivrecError("one Domain cannot be merged; name two or more")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise BivrecError(f"two Domains have the name {repeated}; prepare one of them with another --name")
    if any(domain.path.resolve() == path.resolve() for domain in domains):
        raise BivrecError(f"{path}: is to be read; choose another folder to write")
    protocol = _common_protocol(domains)
    specs = _common_specs(domains)
    raw, split = _read(domains, protocol), LEAVE_ONE_OUT if protocol == LEAVE_ONE_OUT else None
    with new_folder(path, overwrite, kind=DOMAIN_FOLDER) as staging:
        # Items without interactions are kept, if a Domain has kept any.
        merged = prepare(
            raw, staging, name=name or path.resolve().name, k_core=0, split=split, keep_items=True, overwrite=True
        )
        _take_features(merged, domains, specs)
    return Domain.open(path)


def _common_specs(domains: Sequence[Domain]) -> dict[str, FeatureSpec]:
    """How the features of each modality were made; BivrecError unless alike in all Domains that have it, as towers
    compare them, and if a Domain has none of them."""
    first: dict[str, Domain] = {}
    for domain in domains:
        for modality, spec in domain.info.features.items():
            other = first.setdefault(modality, domain)
            wanted = {modality: other.info.features[modality]}
            check_contract(wanted, {modality: spec}, tower=other.location, domain=domain.location)
    specs = {modality: domain.info.features[modality] for modality, domain in first.items()}
    for domain in domains:
        if specs and not domain.info.features:
            # What it has been prepared with can be encoded.
            there = {name: spec for name, spec in specs.items() if domain.info.missing[name] < domain.num_items}
            raise BivrecError(
                f"{domain.location}: has no features, {next(iter(first.values())).location} has some; "
                f"run `{encode_command(domain.location, there or specs, {})}`"
            )
    return specs


def _common_protocol(domains: Sequence[Domain]) -> str:
    """What is held out; BivrecError unless it is the same in all Domains, and by other means than times."""
    first, *others = domains
    for domain in others:
        if domain.info.protocol != first.info.protocol:
            raise BivrecError(
                f"{domain.location}: its protocol is {domain.info.protocol}, that of {first.location} is "
                f"{first.info.protocol}; prepare both with the same kind of --split"
            )
    if first.info.protocol == TEMPORAL:
        raise BivrecError(
            f"{first.location}: Domains that were split by time have cutoffs of their own and cannot be merged; "
            "prepare all with another --split"
        )
    return first.info.protocol


def _read(domains: Sequence[Domain], protocol: str) -> RawData:
    users, items, timestamps, splits, user_ids, catalogues = [], [], [], [], [], []
    first_user = first_item = 0
    for domain in domains:
        # Under leave-one-out the users of `train` are all users.
        for place, split in enumerate(SPLITS[:1] if protocol == LEAVE_ONE_OUT else SPLITS):
            part = users_of_split(domain, split)
            users.append(np.repeat(np.arange(first_user, first_user + len(part), dtype=np.int32), part.lengths))
            items.append(part.items + np.int32(first_item - 1))
            timestamps.append(part.timestamps)
            splits.append(np.full(len(part), place, np.int8))
            user_ids.append(_qualified(domain, pa.array(part.user_ids, pa.string())))
            first_user += len(part)
        table = domain.item_table().data.table
        ids, no_image = _qualified(domain, table["item_id"]), pa.nulls(len(table), pa.string())
        catalogues.append(pa.table([ids, table["title"], table["text"], no_image], schema=ITEM_COLUMNS))
        first_item += domain.num_items
    catalogue = pa.concat_tables(catalogues)
    return RawData(
        users=np.concatenate(users),
        items=np.concatenate(items),
        timestamps=np.concatenate(timestamps),
        user_ids=pa.concat_arrays(user_ids),
        item_ids=catalogue["item_id"].combine_chunks(),
        source={"reader": "merge", "domains": {domain.name: domain.info.source for domain in domains}},
        catalogue=catalogue,
        splits=None if protocol == LEAVE_ONE_OUT else np.concatenate(splits),
    )


def _qualified(domain: Domain, ids: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.binary_join_element_wise(domain.name, ids, ":")


def _take_features(merged: Domain, domains: Sequence[Domain], specs: dict[str, FeatureSpec]) -> None:
    if not specs:
        return
    index = {item: place for place, item in enumerate(merged.item_ids(), start=1)}
    features = {modality: torch.zeros(merged.num_items + 1, spec.dimension) for modality, spec in specs.items()}
    present = {modality: torch.zeros(merged.num_items + 1, dtype=torch.bool) for modality in specs}
    for domain in domains:
        rows = torch.tensor([index[item] for item in _qualified(domain, pa.array(domain.item_ids())).to_pylist()])
        for modality in domain.info.features:
            features[modality][rows] = domain.features((modality,))[1:]
            present[modality][rows] = domain.has_modality(modality)[1:]
    merged.with_features(features, present, specs)
