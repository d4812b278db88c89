"""The experiments of the paper (Tables 2 and 3, Figures 3 to 5): lists of what to train and how to ask it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bivrec.config import VIEWS, Config, config_from_dict
from bivrec.data.domain import Domain
from bivrec.data.sketch import item_sketch, share_known
from bivrec.errors import BivrecError
from bivrec.scorers import UNKNOWN_ENOUGH
from bivrec.studies.execution import Finish, Picture
from bivrec.studies.interests import silhouettes
from bivrec.studies.paper import name_in_paper, table2, table3
from bivrec.studies.plots import plot_heat_maps, plot_interests, plot_lines, plot_study
from bivrec.studies.study import Entry, Overrides, Place, Study, Training, lay_over
from bivrec.studies.systems import SYSTEMS

RANKED_VIEWS = (*VIEWS, "both")

ABLATION: dict[str, Overrides] = {
    "full": {},
    "w/o multi-scale embedding": {"model": {"scales": []}},
    "w/o gaussian attention": {"model": {"gaussian": "none"}},
    "w/o cluster attention": {"model": {"num_interests": [1], "interests_per_item": 1}},
    "w/o allocation loss": {"objective": {"allocation_weight": 0.0}},
}
_ABLATED = (("pure-id", "id"), ("pure-mm", "mm"), *(("bivrec", view) for view in RANKED_VIEWS))
MODALITIES = {"text": ["text"], "image": ["image"], "text + image": ["text", "image"]}
_ZERO_SHOT: tuple[tuple[str, str, Sequence[str], str], ...] = (
    ("comirec-sa", "", (), "ComiRec-SA+"),
    ("unisrec", "", (), ""),
    ("bivrec", "text", ("text",), "text"),
    ("bivrec", "image", ("image",), "image"),
    ("bivrec", "text + image", ("text", "image"), "both"),
)
"""System, the features that it reads (none named: all of the source), and its row of Table 3."""
_SUPERVISED = (("comirec-sa+", "Supervised"), ("unisrec+", ""), ("bivrec", ""))
ASSIGNMENTS = ("softmax-soft", "softmax-hard", "gumbel-hard")
TEMPERATURES = (0.1, 1.0, 10.0)
NOISE = (0.0, 0.05, 0.1, 0.2)
LAST = (1, 2, None)
NUM_INTERESTS, INTERESTS_PER_ITEM = (2, 4, 8), (1, 2, 4)
LOSS_WEIGHTS = (0.0, 0.3, 0.5, 1.0)

_ONE_INTEREST = "w/o cluster attention: one interest, which gathers all tokens alike."


def ablation(domains: Sequence[Domain], recipe: Mapping[str, Any]) -> Study:
    """Table 2: what each module gives, in a single view and in joint training."""
    entries, notes = [], [_ONE_INTEREST]
    for domain, (base, view) in itertools.product(domains, _ABLATED):
        setting = "joint" if base == "bivrec" else "single-view"
        for variant, changes in ABLATION.items():
            if setting == "single-view" and "objective" in changes:
                continue
            if changes and _config(recipe, base, changes) == _config(recipe, base, {}):
                notes.append(f"{variant}: left out, the recipe has it so already.")
                continue
            training = _variant(domain, base, variant.replace("w/o", "without") if changes else "", changes)
            paper = table2(setting, variant, view, name_in_paper(domain.info))
            entries.append(Entry(variant, domain, training, view, paper=paper, group=f"{setting} {view}"))
    return Study("Ablation of the modules (Table 2)", tuple(entries), tuple(dict.fromkeys(notes)))


def modalities(domains: Sequence[Domain], recipe: Mapping[str, Any]) -> Study:
    """Fig. 3a: text, image, or both as features of the multimodal view."""
    entries, notes = [], []
    for domain in domains:
        for name, read in MODALITIES.items():
            if absent := _absent(domain, read):
                notes.append(f"{name}: left out on {domain.name}, which has no {absent} features.")
                continue
            training = _variant(domain, "bivrec", name.replace(" ", ""), {"model": {"modalities": read}})
            entries += [Entry(name, domain, training, view, group=view) for view in RANKED_VIEWS]
    if not entries:
        told = " and ".join(domain.location for domain in domains)
        raise BivrecError(f"modalities: no features in {told}; make them with `bivrec encode`")
    return Study("Modalities of the multimodal view (Fig. 3a)", tuple(entries), tuple(notes))


def assignment(domains: Sequence[Domain], recipe: Mapping[str, Any]) -> Study:
    """Fig. 3b: how items choose interests, and the temperature of the choice."""
    entries = []
    for domain, mode, temperature in itertools.product(domains, ASSIGNMENTS, TEMPERATURES):
        changes = {"model": {"assignment": mode, "assignment_temperature": temperature}}
        training = _variant(domain, "bivrec", f"{mode}-{temperature:g}", changes)
        place = Place(mode, f"{temperature:g}")
        entries.append(Entry(f"{mode}, tau {temperature:g}", domain, training, place=place))
    return Study("Assignment of items to interests (Fig. 3b)", tuple(entries))


def noise(domains: Sequence[Domain], recipe: Mapping[str, Any]) -> Study:
    """Fig. 3c: items of the training sequences replaced at random."""
    entries = []
    for domain, share in itertools.product(domains, NOISE):
        training = _variant(domain, "bivrec", f"noise-{share:g}" if share else "", {}, noise=share)
        percent = f"{100 * share:g}"
        for view in RANKED_VIEWS:
            place = Place(view, percent)
            entries.append(Entry(f"{percent} % noise", domain, training, view, group=view, place=place))
    note = "Noise replaces items of the training sequences, histories and targets alike, by others drawn uniformly."
    return Study("Noise in the training sequences (Fig. 3c)", tuple(entries), (note,))


def cold_start(domains: Sequence[Domain], recipe: Mapping[str, Any]) -> Study:
    """Fig. 3d: only the last one or two items of the histories are read."""
    entries = []
    for domain in domains:
        floors = ("popularity", "item-knn", *(("content-knn",) if domain.info.features else ()))
        systems: list[tuple[str, str | Training, str]] = [(floor, floor, "") for floor in floors]
        systems += [(f"bivrec {view}", _variant(domain, "bivrec"), view) for view in RANKED_VIEWS]
        systems += [("pure-id", _variant(domain, "pure-id"), "id")]
        for last, (name, ranked_by, view) in itertools.product(LAST, systems):
            read = "whole histories" if last is None else f"last {last} of the history"
            place = Place(name, "all" if last is None else str(last))
            entries.append(Entry(name, domain, ranked_by, view, last, group=read, place=place))
    note = "The targets are the same throughout; items of the history that may not be read still count as seen."
    return Study("Cold start (Fig. 3d)", tuple(entries), (note,))


def transfer(domains: Sequence[Domain], recipe: Mapping[str, Any]) -> Study:
    """Table 3: trained on the first Domain, ranking the others unseen."""
    source, *targets = domains
    if not targets:
        raise BivrecError("transfer: expected the source Domain and at least one target Domain")
    entries, notes = [], ["zero-shot rows were trained on the source alone; supervised rows on the target."]
    known = item_sketch(source)
    for target in targets:
        if (share := share_known(target, known)) > UNKNOWN_ENOUGH:
            raise BivrecError(
                f"{target.location}: {100 * share:.0f} % of its items are items of {source.location}, so that nothing "
                "would be zero-shot; leave them out with `bivrec prepare ... --without` the source"
            )
        entries += [Entry(floor, target, floor) for floor in ("popularity", "content-knn", "recent-content-knn")]
        for base, name, read, paper_row in _ZERO_SHOT:
            label = f"zero-shot {base} {name}".rstrip()
            if absent := _absent(source, read):
                notes.append(f"{label}: left out, {source.name} has no {absent} features.")
                continue
            if read and all(_absent(target, [modality]) for modality in read):
                notes.append(f"{label}: left out on {target.name}, which has no {name} features.")
                continue
            paper = table3(paper_row, source.name, name_in_paper(target.info))
            entries.append(Entry(label, target, _transferable(source, base, name, read), "mm", paper=paper))
        for base, paper_row in _SUPERVISED:
            paper = table3(paper_row, source.name, name_in_paper(target.info))
            entries.append(Entry(f"supervised {base}", target, _variant(target, base), SYSTEMS[base].view, paper=paper))
    return Study(f"Transfer from {source.name} (Table 3)", tuple(entries), tuple(dict.fromkeys(notes)))


def interests(domains: Sequence[Domain], recipe: Mapping[str, Any]) -> Study:
    """Fig. 4: whether the interests of a user lie together and apart from those of others."""
    entries = []
    for domain in domains:
        entries += [Entry(f"bivrec {view}", domain, _variant(domain, "bivrec"), view) for view in ("id", "mm")]
        entries.append(Entry("comirec-sa", domain, _variant(domain, "comirec-sa"), "id"))
    note = (
        "silhouette: of the interests of 20 test users, the same for every model, by user and cosine distance "
        "(Rousseeuw 1987); 1: a user's interests lie together and apart from the others', 0: they mix."
    )
    return Study("Interests of users (Fig. 4)", tuple(entries), (note,))


def sweep(domains: Sequence[Domain], recipe: Mapping[str, Any]) -> Study:
    """Fig. 5: number of interests K and interests per item F; weights of the cross-view losses."""
    entries, notes = [], []
    mode = _config(recipe, "bivrec", {}).model.assignment
    if mode == "softmax-soft":
        notes.append("K and F with model.assignment gumbel-hard: with the recipe's softmax-soft, F does nothing.")
        mode = "gumbel-hard"
    for domain in domains:
        for count, belongs in itertools.product(NUM_INTERESTS, INTERESTS_PER_ITEM):
            if belongs <= count:
                model = {"num_interests": [count], "interests_per_item": belongs, "assignment": mode}
                training = _variant(domain, "bivrec", f"k-{count}-f-{belongs}", {"model": model})
                place = Place(str(belongs), str(count), ("interests K", "interests per item F"))
                entries.append(Entry(f"K {count}, F {belongs}", domain, training, group="interests", place=place))
        for coarse, fine in itertools.product(LOSS_WEIGHTS, LOSS_WEIGHTS):
            weights = {"contrastive_weight": coarse, "allocation_weight": fine}
            training = _variant(domain, "bivrec", f"lambda-{coarse:g}-{fine:g}", {"objective": weights})
            place = Place(f"{fine:g}", f"{coarse:g}", ("contrastive weight lambda1", "allocation weight lambda2"))
            entries.append(
                Entry(f"lambda1 {coarse:g}, lambda2 {fine:g}", domain, training, group="losses", place=place)
            )
    notes.append("Settings are chosen on validation users; the test users are left for what was chosen.")
    return Study("Number of interests and weights of the losses (Fig. 5)", tuple(entries), tuple(notes), "validation")


@dataclass(frozen=True)
class Experiment:
    """One experiment of the paper."""

    study: Callable[[Sequence[Domain], Mapping[str, Any]], Study]
    picture: Picture = plot_study
    finish: Finish | None = None


EXPERIMENTS: dict[str, Experiment] = {
    "ablation": Experiment(ablation),
    "modalities": Experiment(modalities),
    "assignment": Experiment(assignment, partial(plot_lines, x_label="temperature of the assignment")),
    "noise": Experiment(noise, partial(plot_lines, x_label="items of the training sequences replaced (%)")),
    "cold-start": Experiment(
        cold_start, partial(plot_lines, x_label="items of the history that are read (most recent)")
    ),
    "transfer": Experiment(transfer),
    "interests": Experiment(interests, plot_interests, silhouettes),
    "sweep": Experiment(sweep, plot_heat_maps),
}


def _variant(
    domain: Domain, base: str, suffix: str = "", changes: Overrides | None = None, noise: float = 0.0
) -> Training:
    """A system with some settings changed; without a suffix, the training that `bivrec compare` would make."""
    plain = base if suffix == "" else f"{base}-{suffix.replace(' ', '-')}"
    overrides = lay_over(SYSTEMS[base].overrides, changes or {})
    return Training(plain, domain, overrides, noise)


def _transferable(source: Domain, base: str, modalities: str, read: Sequence[str]) -> Training:
    """A training on the source whose multimodal tower is of use elsewhere, and is what selects the checkpoint."""
    views = ["id", "mm"] if base == "bivrec" else ["mm"]
    changes: Overrides = {"model": {"modalities": list(read)}, "training": {"views": views, "selection_view": "mm"}}
    return _variant(source, base, f"transfer {modalities}".strip().replace(" + ", "+"), changes)


def _config(recipe: Mapping[str, Any], base: str, changes: Overrides) -> Config:
    return config_from_dict(lay_over(recipe, SYSTEMS[base].overrides, changes), "recipe")


def _absent(domain: Domain, wanted: Iterable[str]) -> str:
    """The first modality that no item of the Domain has features of; empty if there is none such."""
    features, missing = domain.info.features, domain.info.missing
    return next((name for name in wanted if name not in features or missing[name] == domain.num_items), "")
