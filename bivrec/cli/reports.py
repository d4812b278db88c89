"""What several commands print: of a Domain, a Run, and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from bivrec.data.info import LEAVE_ONE_OUT, USER_SPLIT

if TYPE_CHECKING:
    from bivrec.data.domain import Domain
    from bivrec.data.info import FeatureSpec
    from bivrec.training.run import Run

TOLD_K = 20
"""Length of the lists of which results are told; results.json has others, which no terminal is wide enough for."""
UNITS = (1, 10**3, 10**6)
"""Of timestamps, in a second."""
SPARSE_BELOW = 20
"""Median interactions of an item: of the Domains that were measured, those below have 1 to 9, the others 66 to 98."""
MANY_ITEMS = 50_000
"""From which on a step of the full softmax takes a processor many seconds."""
EARLIEST = int(datetime(1980, 1, 1, tzinfo=UTC).timestamp())
LATEST = int(datetime(2101, 1, 1, tzinfo=UTC).timestamp())
"""Between these seconds a timestamp is plausibly a date."""


def echo_domain(domain: Domain, not_listed: str | None = None) -> None:
    """Print what a Domain holds, and what its preparation left out.

    not_listed: id of an item that the table of items lacks, if it is known.
    """
    import numpy as np

    info = domain.info
    click.echo(f"{domain.path}: {info.name} ({info.source['reader']}), {info.protocol}")
    for split, users in info.users.items():
        click.echo(f"  {split:<10} {users:>10,} users {info.interactions[split]:>12,} interactions")
    density = info.num_interactions / (info.num_users * info.num_items)
    once = "" if info.protocol == USER_SPLIT else ", each counted once"
    click.echo(f"  {'all':<10} {info.num_users:>10,} users {info.num_interactions:>12,} interactions{once}")
    click.echo(f"  {info.num_items:,} items, density {density:.4%}")
    if info.items_without_interactions:
        click.echo(f"  without interactions (kept, ranked by their content): {info.items_without_interactions:,} items")
    if len(lengths := domain.sequences("train").lengths):
        click.echo(
            f"  of a training user: median {np.median(lengths):g}, mean {lengths.mean():.1f}, "
            f"most {lengths.max():,} interactions"
        )
        counts = domain.training_counts()[1:]
        median = np.median(counts)
        click.echo(f"  of an item: median {median:g}, mean {counts.mean():.1f}, most {counts.max():,} of these")
        if median < SPARSE_BELOW:
            few = f"  a median below {SPARSE_BELOW} is few"
            click.echo(f"{few}: take the recipe sparse, or for the ID view alone amazon")
    if info.num_items >= MANY_ITEMS:
        sampled = "--set objective.candidates=uniform --set objective.num_negatives=2048"
        click.echo(f"  {MANY_ITEMS:,} items or more are many for a full softmax: to default and amazon add {sampled}")
    _echo_timestamps(domain)
    dropped = info.dropped
    by_the_core = (
        f"by the {info.k_core}-core {dropped['k_core_users']:,} users, {dropped['k_core_items']:,} items and "
        f"{dropped['k_core_interactions']:,} interactions; "
    )
    click.echo(
        f"  dropped: {dropped['duplicate_interactions']:,} exact duplicates; {by_the_core if info.k_core else ''}"
        f"{dropped['items_without_interactions']:,} items without interactions"
    )
    if "interactions_with_other_domain" in dropped:
        shared = dropped["interactions_with_other_domain"]
        click.echo(f"  with items of {info.source['without']} (left out): {shared:,} interactions")
    if "interactions_without_history" in dropped:
        click.echo(
            "  of users who begin too late for any split (left out): "
            f"{dropped['interactions_without_history']:,} interactions"
        )
    if "rated_below" in dropped:
        click.echo(f"  rated below {info.source['min_rating']:g} (left out): {dropped['rated_below']:,} interactions")
    if "outside_period" in dropped:
        click.echo(f"  outside of the set's period (left out): {dropped['outside_period']:,} interactions")
    click.echo(f"  without text: {info.missing['text']:,} items; without image: {info.missing['image']:,} items")
    if info.items_not_listed:
        example = f", such as '{not_listed}'" if not_listed is not None else ""
        click.echo(
            f"  not in the table of items (kept, without text and image): {info.items_not_listed:,} items{example}"
        )
    if dropped["images_not_found"]:
        click.echo(f"  listed images that are not there: {dropped['images_not_found']:,}")
    echo_features(info.features)


def _echo_timestamps(domain: Domain) -> None:
    """Print their range, and the dates that both ends are in one unit; two units in one set show as there is none."""
    from bivrec.data.info import SPLITS

    times = [part for split in SPLITS if len(part := domain.sequences(split).timestamps)]
    first, last = min(int(part.min()) for part in times), max(int(part.max()) for part in times)
    unit = next((unit for unit in UNITS if _is_date(first, last, unit)), None)
    dates = f" ({_day(first, unit)} to {_day(last, unit)} UTC)" if unit else ""
    click.echo(f"  timestamps {first} to {last}{dates}")
    for split, cutoff in domain.info.cutoffs.items():
        click.echo(f"  {split} targets from {cutoff}{f' ({_day(cutoff, unit)} UTC)' if unit else ''} on")


def _is_date(first: int, last: int, unit: int) -> bool:
    return EARLIEST * unit <= first and last < LATEST * unit


def _day(time: int, unit: int) -> str:
    return f"{datetime.fromtimestamp(time // unit, UTC):%Y-%m-%d}"


def echo_features(features: Mapping[str, FeatureSpec]) -> None:
    """Print how the features of each modality were made."""
    from bivrec.features.contract import describe

    for modality, spec in features.items():
        click.echo(f"  {modality} features: {describe(spec)}")


def echo_results(run: Run) -> None:
    """Print what a training came to, once however many processes trained."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        which = "last" if run.config.training.with_validation else "best"
        weights = f"{run.path}: {which} weights, of step {run.progress().best_step}"
        if run.config.training.with_test:
            click.echo(f"{weights}; trained on the test users too, so that no results can be measured")
            return
        click.echo(f"{weights}; on the test users:")
        echo_views(run.results(), run.id_weight())


def echo_views(results: Mapping[str, Mapping[str, float]], id_weight: float | None) -> None:
    """Print the metrics of each view at TOLD_K, and how both rank together."""
    of_k = {
        view: {name: v for name, v in metrics.items() if name.endswith(f"@{TOLD_K}")}
        for view, metrics in results.items()
    }
    click.echo(results_table(of_k))
    if id_weight is not None:
        click.echo(f"both = {mixture(id_weight)}")


def echo_evaluation(told: Mapping[str, Any]) -> None:
    """Print what `bivrec evaluate --json` tells as tables."""
    one_target = told["protocol"] == LEAVE_ONE_OUT
    metrics = [
        metric
        for metric in next(iter(told["results"].values()))
        if not (one_target and metric.startswith(("hr@", "ndcg_hits@")))
    ]
    shown = {name: {metric: of_row[metric] for metric in metrics} for name, of_row in told["results"].items()}
    click.echo(results_table(shown, "model"))
    for name, weight in told["id_weights"].items():
        click.echo(f"{name} = {mixture(weight)}")
    skipped = f", {told['skipped_users']} with fewer than 2 items left out" if told["skipped_users"] else ""
    click.echo(
        f"{told['users']} {told['split']} users of {told['domain']} ({told['protocol']}){skipped}; "
        f"{told['items']} items ranked"
    )
    click.echo(_protocol(told["remove_seen"], told["cold"]))
    if one_target:
        click.echo("with one target for each user hr is recall, and ndcg_hits is ndcg")
    if "p_values" in told:
        tests = {metric: told["p_values"][metric] for metric in metrics}
        click.echo(p_table(list(told["results"]), tests, told["reference"]))
    if "by_popularity" in told:
        _echo_by_popularity(told["by_popularity"], told["reference"])


def _echo_by_popularity(told: Mapping[str, Any], reference: str | None) -> None:
    click.echo(f"\n{told['metric']} by how often the training users had the target:")
    click.echo(results_table(told["results"], "model"))
    counts = (f"{told['targets'][group]:,} ({users:,})" for group, users in told["users"].items())
    click.echo(f"targets (users with any): {', '.join(counts)}")
    if "p_values" in told:
        click.echo(p_table(list(told["results"]), told["p_values"], reference))
    k = told["metric"].partition("@")[2]
    click.echo(f"\nshares of such items in the lists of {k}, and of the catalogue that is in any list:")
    click.echo(results_table(told["recommended"], "model"))


def _protocol(remove_seen: bool, cold: int | None) -> str:
    """What of the protocol the options say."""
    seen = f"seen items {'removed' if remove_seen else 'kept'}"
    if cold is None:
        return seen
    return f"{seen}; of each history {'the last item is' if cold == 1 else f'the last {cold} items are'} read"


def mixture(id_weight: float) -> str:
    """How both views rank together: `0.7 id + 0.3 mm`."""
    return f"{id_weight:g} id + {1 - id_weight:g} mm"


def results_table(results: Mapping[str, Mapping[str, float]], label: str = "view") -> str:
    """Rows of metrics, in percent, aligned for a terminal."""
    metrics = list(next(iter(results.values())))
    width = max(len(label), *(len(name) for name in results))
    lines = [f"{label:<{width}}  " + "  ".join(f"{metric:>12}" for metric in metrics)]
    for name, values in results.items():
        lines.append(f"{name:<{width}}  " + "  ".join(f"{100 * values[metric]:>12.2f}" for metric in metrics))
    return "\n".join(lines) + "\n(all in %)"


def p_table(rows: Sequence[str], tests: Mapping[str, Mapping[str, Mapping[str, float]]], reference: str | None) -> str:
    """Rows of p-values, aligned for a terminal. reference: the row that was to be tested; None: the best."""
    width = max(len("p (t-test)"), *map(len, rows))
    lines = [f"{'p (t-test)':<{width}}  " + "  ".join(f"{metric:>12}" for metric in tests)]
    for row in rows:
        cells = (_p_cell(row, of_rows, "best" if reference is None else "tested") for of_rows in tests.values())
        lines.append(f"{row:<{width}}  " + "  ".join(f"{cell:>12}" for cell in cells))
    asked, over = (
        ("lead of the best row", "all pairs") if reference is None else (f"difference to {reference}", "the rows")
    )
    note = f"(how likely so large a {asked} is by chance; paired over users, Holm-corrected over {over})"
    return "\n".join([*lines, note])


def _p_cell(row: str, of_rows: Mapping[str, Mapping[str, float]], tested: str) -> str:
    if not of_rows:
        # Of one user nothing can be said.
        return "-"
    return _p(of_rows[row]["t_test"]) if row in of_rows else tested


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
