"""The feature contract: a tower reads only features that were made like those it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from bivrec.data.domain import FeatureSpec
from bivrec.errors import BivrecError
from bivrec.features.image import DescriptorImageEncoder
from bivrec.features.precomputed import POOLING as FILE_POOLING
from bivrec.features.precomputed import UNNAMED
from bivrec.features.pretrained import LOCAL_REVISION
from bivrec.features.text import HashingTextEncoder

BUILT_IN = (HashingTextEncoder.name, DescriptorImageEncoder.name)


def check_contract(
    expected: Mapping[str, FeatureSpec], actual: Mapping[str, FeatureSpec], *, tower: str, domain: str | Path
) -> None:
    """Raise BivrecError, naming both sides and the command that mends it, unless every expected modality agrees.

    Modalities that only the Domain has do not matter. `tower` and `domain` name the sides in the message.
    """
    faults = [
        f"{modality} of {tower} is {describe(spec)}, of {domain} is {describe(actual.get(modality))}"
        for modality, spec in expected.items()
        if not _agree(spec, actual.get(modality))
    ]
    if faults:
        differing = {name: spec for name, spec in expected.items() if not _agree(spec, actual.get(name))}
        raise BivrecError(f"features differ: {'; '.join(faults)}; run `{encode_command(domain, differing)}`")


def describe(spec: FeatureSpec | None) -> str:
    """One phrase for a specification."""
    if spec is None:
        return "missing"
    revision = f"@{spec.revision}" if spec.revision else ""
    return f"{spec.encoder}{revision} ({spec.dimension}-d, {spec.pooling}{', whitened' if spec.whiten else ''})"


def encode_command(domain: str | Path, specs: Mapping[str, FeatureSpec]) -> str:
    """The `bivrec encode` commands, joined by `&&`, that make features of these specifications."""
    return " && ".join(f"bivrec encode {domain} {_options(modality, spec)}" for modality, spec in specs.items())


def _options(modality: str, spec: FeatureSpec) -> str:
    whiten = " --whiten" if spec.whiten else ""
    if spec.pooling == FILE_POOLING:
        name = "" if spec.encoder == UNNAMED else f" --{modality} {spec.encoder}"
        return f"--{modality}-features FILE{name}{whiten}"
    if spec.encoder in BUILT_IN:
        return f"--{modality} {spec.encoder}{whiten}"
    local = spec.revision is not None and spec.revision.startswith(LOCAL_REVISION)
    source = f"FOLDER/{spec.encoder}" if local else f"{spec.encoder}@{spec.revision}"
    pooling = f" --pooling {spec.pooling}" if modality == "text" else ""
    return f"--{modality} {source}{pooling}{whiten}"


def _agree(expected: FeatureSpec, actual: FeatureSpec | None) -> bool:
    if actual is None:
        return False
    if expected.revision == actual.revision and (expected.revision or "").startswith(LOCAL_REVISION):
        # The checksum identifies the weights; what the user called the folder does not matter.
        actual = dataclasses.replace(actual, encoder=expected.encoder)
    return expected == actual
