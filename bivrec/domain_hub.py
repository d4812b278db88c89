"""Publishing a Domain as a data set, in a folder or on the Hugging Face Hub.

The repository holds the files of the Domain as they are, and a card whose metadata tell `datasets.load_dataset` about
them; so what `hub:ORG/NAME` opens is the Domain that was published, bit for bit.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bivrec.card_facts import public_source
from bivrec.cards import domain_card
from bivrec.data.domain import INFO_FILE, PUBLISHED_FILES, Domain, DomainInfo
from bivrec.files import new_folder, write_json
from bivrec.repository import CARD_FILE, is_repository, push


def publish_domain(
    domain: Domain, destination: str, *, overwrite: bool = False, message: str | None = None, **pushing: Any
) -> str:
    """Publish a Domain; returns the folder, or the address of the commit or of the pull request.

    `destination` is a folder, or `ORG/NAME` on the Hub (see `is_repository`); `pushing` are options of
    `repository.push`. Images stay where they are.
    Raises BivrecError if the folder exists (unless `overwrite`), a file of the Domain has changed, or the Hub refuses.
    """
    domain.verify()
    if not is_repository(destination):
        with new_folder(Path(destination), overwrite, marks=(INFO_FILE, CARD_FILE)) as staging:
            _fill(staging, domain, Path(destination).name, shutil.copyfile)
        return destination
    with tempfile.TemporaryDirectory() as folder:
        # Links: what is large lies in the Domain already.
        _fill(Path(folder), domain, destination, os.symlink)
        pushed = push(
            Path(folder),
            destination,
            repo_type="dataset",
            message=message or f"Publish the Domain {domain.name}",
            delete_patterns=PUBLISHED_FILES,
            **pushing,
        )
    return pushed.pull_request_url or pushed.url


def preview(domain: Domain, destination: str) -> tuple[dict[str, int], str]:
    """Name -> bytes of the files that `publish_domain` would write, and the card."""
    name = destination if is_repository(destination) else Path(destination).name
    with tempfile.TemporaryDirectory() as folder:
        _fill(Path(folder), domain, name, os.symlink)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        return sizes, (Path(folder) / CARD_FILE).read_text(encoding="utf-8")


def _fill(folder: Path, domain: Domain, name: str, place: Callable[[Path, Path], Any]) -> None:
    info = _public(domain.info)
    for file in info.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        place((domain.path / file).resolve(), folder / file)
    write_json(folder / INFO_FILE, dataclasses.asdict(info))
    (folder / CARD_FILE).write_text(domain_card(name, info), encoding="utf-8")


def _public(info: DomainInfo) -> DomainInfo:
    """Without the publisher's paths."""
    return dataclasses.replace(info, images=None, source=public_source(info.source))
