"""Champion against challenger: the same test samples under the same resamples of subjects, and what follows from it."""

from typing import Any, NamedTuple

import numpy as np
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field
from typing_extensions import TypedDict

from storage import filesystems
from tasks.evaluate import Resampled, read_resampled
from tasks.measures import measure_difference
from tasks.references import EvaluationReference, ReportReference, StoreReference
from tasks.retrain import PromotionConfig, RetrainError

_CHANCE = 0.5  # the AUROC of every constant answer
_POLL_S = 5


class Approval(RunInput):
    """What a person is asked in the UI."""

    promote: bool = False
    note: str = Field(default="", description="Why; it is kept in champion.json")


class Comparison(TypedDict):
    """The evidence: the deciding metric, a row of it for each side and for the difference, and the same of all metrics that both have.

    Rows are those of `tasks.measures.Measured`; without a champion there are only the challenger's.
    """

    metric: str
    challenger: dict[str, Any]
    champion: dict[str, Any] | None
    difference: dict[str, Any] | None
    table: list[dict[str, Any]]


class Judged(NamedTuple):
    """The evidence, and where it lies: the report, the evaluations and the stores of challenger and, where it is another, champion."""

    comparison: Comparison
    report: ReportReference
    evaluations: list[str]
    stores: list[StoreReference]


class Verdict(NamedTuple):
    """Whether the challenger is promoted, and why."""

    promote: bool
    reason: str


def compare(challenger: EvaluationReference, champion: EvaluationReference | None, *, metric: str, coverage: float) -> Comparison:
    """Measure a challenger against a champion by a paired bootstrap over subjects; alone where there is no champion.

    Args:
        challenger, champion: evaluated on the same samples with the same bootstrap.
        metric: level/name that decides.
        coverage: of the intervals.

    Raises:
        RetrainError: measured on other samples, or a side lacks the metric.
    """
    results = [filesystems.read_json(evaluation["uri"]) for evaluation in (challenger, champion) if evaluation is not None]
    rows = [{f"{row['level']}/{row['name']}": row for row in result["metrics"]} for result in results]
    for who, of_side in zip(("challenger", "champion"), rows, strict=False):
        if metric not in of_side:
            raise RetrainError(f"the {who} has no {metric}, which decides; it has {', '.join(of_side)}")
    if champion is None:
        return Comparison(metric=metric, challenger=rows[0][metric], champion=None, difference=None, table=_tabulate(rows[0], {}, {}))
    if results[0]["paired_by"] != results[1]["paired_by"]:
        raise RetrainError(
            f"challenger and champion were measured on other test samples or resamples ({challenger['uri']}, {champion['uri']}): their "
            "difference says nothing. Score both on the frozen test set"
        )
    ours, theirs = read_resampled(challenger), read_resampled(champion)
    differences = {
        name: _subtract(name, values, theirs.metrics[name], ours, coverage=coverage)
        for name, values in ours.metrics.items()
        if name in theirs.metrics
    }
    return Comparison(
        metric=metric,
        challenger=rows[0][metric],
        champion=rows[1][metric],
        difference=differences.get(metric),
        table=_tabulate(rows[0], rows[1], differences),
    )


def first_metric(promotion: PromotionConfig) -> str:
    """By which the first champion is judged: AUROC, of which chance is known; constant answers are good ones to other metrics."""
    return f"{promotion.metric.split('/', 1)[0]}/AUROC"


def decide(comparison: Comparison, promotion: PromotionConfig) -> Verdict:
    """What the evidence says: by the interval of the difference, or, where nothing is in use yet, whether the challenger beats chance."""
    difference, challenger = comparison["difference"], comparison["challenger"]
    if comparison["champion"] is None:
        return _decide_first(comparison)
    if difference is None:
        return Verdict(False, f"{comparison['metric']} has no interval ({challenger['note'] or 'too few subjects'}): nothing is shown")
    least = promotion.margin if promotion.rule == "better" else -promotion.margin
    shown = f"{comparison['metric']}: challenger - champion {_interval(difference, sign=True)}"
    above = bool(difference["low"] > least)
    return Verdict(above, f"{shown}, {'above' if above else 'not above'} {least:g} ({promotion.rule})")


def wait_for_answer(question: str, evidence: str, *, recommended: bool, answer_within_h: float) -> Approval:
    """Pause the flow run until a person has answered in the UI; see `flows.approve`."""
    form = Approval.with_initial_data(description=f"**{question}**\n\n{evidence}", promote=recommended)
    seconds = max(1, int(answer_within_h * 3600))
    return pause_flow_run(wait_for_input=form, timeout=seconds, poll_interval=min(_POLL_S, seconds))


def conclude_answer(answer: Approval, verdict: Verdict) -> Verdict:
    """What a person said, with what the evidence says."""
    said = f"a person {'approved' if answer.promote else 'declined'}{f' ({answer.note})' if answer.note else ''}"
    return Verdict(answer.promote, f"{said}; the evidence: {verdict.reason}")


def describe_evidence(comparison: Comparison, verdict: Verdict) -> str:
    """As Markdown for the form in the UI, which is too narrow for a table."""
    lines = [f"The evidence: {verdict.reason}", ""]
    for row in comparison["table"]:
        beside = f"; in use {row['champion']}" if row["champion"] else ""
        difference = f"; difference {row['difference']}" if row["difference"] else ""
        lines.append(f"* **{row['metric']}** {row['challenger']}{beside}{difference}")
    return "\n".join(lines)


def as_markdown(comparison: Comparison) -> str:
    """The table for the UI."""
    lines = ["| metric | champion | challenger | challenger - champion |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {row['metric']} | {row['champion']} | {row['challenger']} | {row['difference']} |" for row in comparison["table"])]
    )


def _decide_first(comparison: Comparison) -> Verdict:
    challenger = comparison["challenger"]
    if challenger["low"] is None:
        return Verdict(False, f"the first one, and {comparison['metric']} {challenger['value']:.3f} has no interval ({challenger['note']})")
    above = bool(challenger["low"] > _CHANCE)
    shown = f"{comparison['metric']} {_interval(challenger)}"
    return Verdict(above, f"the first one: {shown}, {'above' if above else 'not above'} chance, {_CHANCE}")


def _subtract(name: str, values: np.ndarray, others: np.ndarray, ours: Resampled, *, coverage: float) -> dict[str, Any]:
    level, metric = name.split("/", 1)
    return measure_difference(level, metric, values, others, ours.groups[level], coverage=coverage)


def _tabulate(
    challenger: dict[str, dict[str, Any]], champion: dict[str, dict[str, Any]], differences: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row a metric, values with their intervals as text."""
    return [
        {
            "metric": name.replace("/", " "),
            "champion": _interval(champion[name]) if name in champion else "",
            "challenger": _interval(row),
            "difference": _interval(differences[name], sign=True) if name in differences else "",
        }
        for name, row in challenger.items()
    ]


def _interval(row: dict[str, Any], *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{row['value']:{form}}" + (f" [{row['low']:{form}}, {row['high']:{form}}]" if row["low"] is not None else "")
