"""The feature contract: a tower reads only features that were made like those it was trained on."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch

from bivrec.data.domain import Domain
from bivrec.data.feature_rows import FeatureRows
from bivrec.data.info import FeatureSpec
from bivrec.errors import BivrecError
from bivrec.features.image import DescriptorImageEncoder
from bivrec.features.precomputed import POOLING as FILE_POOLING
from bivrec.features.precomputed import UNNAMED
from bivrec.features.pretrained import LOCAL_REVISION
from bivrec.features.text import HashingTextEncoder
from bivrec.features.whitening import SHRINKAGE

BUILT_IN = (HashingTextEncoder.name, DescriptorImageEncoder.name)


def contract_features(expected: Mapping[str, FeatureSpec], domain: Domain, *, tower: str) -> FeatureRows:
    """The features [V + 1, sum of dimensions] that a tower expects of a Domain, modalities side by side.

    A modality that no item of the Domain has is zeros, as it is for single items without it. Raises BivrecError,
    naming both sides and the command that mends it, if features were made in another way.
    """
    absent = absent_modalities(expected, domain)
    wanted = {name: spec for name, spec in expected.items() if name not in absent}
    if not wanted:
        raise BivrecError(f"{domain.location}: no item has a {' or '.join(expected)}, and {tower} reads nothing else")
    check_contract(wanted, domain.info.features, tower=tower, domain=domain.location)
    parts = [
        torch.zeros(1, spec.dimension).expand(domain.num_items + 1, -1)
        if name in absent
        else domain.feature_rows((name,)).parts[0]
        for name, spec in expected.items()
    ]
    return FeatureRows(parts)


def absent_modalities(expected: Iterable[str], domain: Domain) -> list[str]:
    """Of the expected modalities those that no item of the Domain has, so that a tower reads zeros for them."""
    return [name for name in expected if domain.info.missing[name] == domain.num_items]


def reads_zeros(expected: Collection[str], domain: Domain, reader: str) -> str | None:
    """A line for people if no item of the Domain has a modality that the reader was trained on; None: all are there, or
    the features of the others are not, without which it reads nothing."""
    absent = absent_modalities(expected, domain)
    left = [name for name in expected if name not in absent]
    if not (absent and left and domain.info.features.keys() >= set(left)):
        return None
    return (
        f"{reader}: reads {' and '.join(expected)}, but no item of {domain.name} has {' or '.join(absent)}; "
        f"it reads {' and '.join(left)} alone"
    )


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
        raise BivrecError(f"features differ: {'; '.join(faults)}; run `{encode_command(domain, differing, actual)}`")


def describe(spec: FeatureSpec | None) -> str:
    """One phrase for a specification."""
    if spec is None:
        return "missing"
    revision = f"@{spec.revision}" if spec.revision else ""
    tokens = f", {spec.max_tokens} tokens" if spec.max_tokens else ""
    whitened = "" if spec.whitening is None else f", whitened with shrinkage {spec.whitening:.15g}"
    return f"{spec.encoder}{revision} ({spec.dimension}-d, {spec.pooling}{tokens}{whitened})"


def encode_command(domain: str | Path, specs: Mapping[str, FeatureSpec], there: Mapping[str, FeatureSpec]) -> str:
    """The `bivrec encode` commands, joined by `&&`, that make features of these specifications.

    there: what the Domain has already; features of the same modality are replaced.
    """
    return " && ".join(
        f"bivrec encode {shlex.quote(str(domain))} {_options(modality, spec)}"
        + (" --overwrite" if modality in there else "")
        for modality, spec in specs.items()
    )


def _options(modality: str, spec: FeatureSpec) -> str:
    whiten = "" if spec.whitening is None else " --whiten"
    if whiten and spec.whitening != SHRINKAGE:
        whiten += f" --shrinkage {spec.whitening:.15g}"
    if spec.pooling == FILE_POOLING:
        name = "" if spec.encoder == UNNAMED else f" --{modality} {spec.encoder}"
        return f"--{modality}-features FILE{name}{whiten}"
    if spec.encoder in BUILT_IN:
        return f"--{modality} {spec.encoder}{whiten}"
    local = spec.revision is not None and spec.revision.startswith(LOCAL_REVISION)
    source = f"FOLDER --{modality}-name {spec.encoder}" if local else f"{spec.encoder}@{spec.revision}"
    pooling = f" --pooling {spec.pooling}" if modality == "text" else ""
    tokens = f" --max-tokens {spec.max_tokens}" if spec.max_tokens else ""
    return f"--{modality} {source}{pooling}{tokens}{whiten}"


def _agree(expected: FeatureSpec, actual: FeatureSpec | None) -> bool:
    if actual is None:
        return False
    # The commit of an encoder of the Hub says enough, with or without the checksum of its weights.
    actual = dataclasses.replace(actual, weights=expected.weights) if _same_commit(expected, actual) else actual
    if _weights(expected) is not None and _weights(expected) == _weights(actual):
        # The checksum identifies the weights; where they lie and what the user called the folder does not matter.
        actual = dataclasses.replace(
            actual, encoder=expected.encoder, revision=expected.revision, weights=expected.weights
        )
    return expected == actual


def _same_commit(one: FeatureSpec, other: FeatureSpec) -> bool:
    return (one.encoder, one.revision) == (other.encoder, other.revision)


def _weights(spec: FeatureSpec) -> str | None:
    """Checksum of the encoder's weights or of the feature file; None if it is not recorded."""
    return spec.revision if (spec.revision or "").startswith(LOCAL_REVISION) else spec.weights
