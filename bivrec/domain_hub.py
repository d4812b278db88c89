"""Publishing a Domain as a data set, in a folder or on the Hugging Face Hub.

The repository holds the files of the Domain as they are, and a card whose metadata tell `datasets.load_dataset` about
them; so what `hub:ORG/NAME` opens is the Domain that was published, bit for bit.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from bivrec import publishing, repository
from bivrec.card_facts import public_source
from bivrec.cards import domain_card
from bivrec.data.domain import DOMAIN_FOLDER, PUBLISHED_FILES, Domain
from bivrec.data.info import INFO_FILE, DomainInfo
from bivrec.files import write_json
from bivrec.repository import CARD_FILE, PushOptions, is_repository


def publish_domain(
    domain: Domain,
    destination: str,
    *,
    overwrite: bool = False,
    message: str | None = None,
    **options: Unpack[PushOptions],
) -> str:
    """Publish a Domain; returns the folder, or the address of the commit or of the pull request.

    `destination` is a folder, or `ORG/NAME` on the Hub (see `is_repository`), for which the other options are as
    of `repository.push`. Images stay where they are.
    Raises BivrecError if the folder exists (unless `overwrite`), a file of the Domain has changed, or the Hub refuses.
    """
    domain.verify()
    # Links: what is large lies in the Domain already.
    place = os.symlink if is_repository(destination) else shutil.copyfile
    push = partial(
        repository.push,
        repo_type="dataset",
        message=message or f"Publish the Domain {domain.name}",
        delete_patterns=PUBLISHED_FILES,
        **options,
    )
    kind = dataclasses.replace(DOMAIN_FOLDER, marks=(INFO_FILE, CARD_FILE))
    return publishing.publish(partial(_fill, domain, place), destination, push, kind=kind, overwrite=overwrite)


def preview(domain: Domain, destination: str) -> tuple[dict[str, int], str]:
    """Name -> bytes of the files that `publish_domain` would write, and the card."""
    return publishing.preview(partial(_fill, domain, os.symlink), destination)


def _fill(domain: Domain, place: Callable[[Path, Path], Any], folder: Path, name: str) -> None:
    info = _public(domain.info)
    for file in info.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        place((domain.path / file).resolve(), folder / file)
    write_json(folder / INFO_FILE, dataclasses.asdict(info))
    (folder / CARD_FILE).write_text(domain_card(name, info), encoding="utf-8")


def _public(info: DomainInfo) -> DomainInfo:
    """Without the publisher's paths."""
    return dataclasses.replace(info, images=None, source=public_source(info.source))
