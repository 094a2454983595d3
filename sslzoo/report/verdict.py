"""Verdict: whether a run is healthy, collapsed or not converged, and why."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Literal, NamedTuple

from sslzoo.callbacks.compare_with_start import CHANGE
from sslzoo.callbacks.online_prototypes import LEAST_PROTOTYPES
from sslzoo.callbacks.online_spectrum import LEAST_RANK, LEAST_SPREAD
from sslzoo.report.metrics import describe
from sslzoo.runs.run import Curve, Table

# LEAST_SPREAD of 2,500 dimensions: the width of a logged feature std is not known.
LEAST_STD = 0.001
RISE = 0.01  # a score that rises by more in the last quarter of a run is still rising
FALL = 0.02  # a score that ends by more below its best is falling
LINEAR = 0.25  # a linear loss falls by a third of its whole fall between the last two quarters
NUM_SCORES, NUM_LOSSES = 4, 8  # fewer values have no trend
SCORES = ("val/knn_top1", "val/linear_top1", "val/probe_top1", "val/spearman")


class Verdict(NamedTuple):
    """The state of a run, and the metrics that it follows from, in one sentence."""

    state: Literal["healthy", "collapsed", "not converged", "unknown"]
    reason: str


def verdict(
    curves: Mapping[str, Curve],
    features: Mapping[str, float] | None = None,
    scores: Table | None = None,
) -> Verdict:
    """Judge a run by its metrics.

    It has collapsed if the effective rank, the spread or the number of prototypes in use is below
    the minimum at which the callbacks warn. It has not converged if its loss is not finite, its
    kNN accuracy is below the untrained encoder's or the start weights', still rises, or ends below
    its best; or, without
    at least `NUM_SCORES` values of a score, if its loss does not fall, or falls to the end.

    Args:
        curves: logged metrics by name.
        features: `statistics` of the encoder's features.
        scores: the table of `FinalTable`: row -> column -> fraction.
    """
    trend = _score_trend(curves) or _loss_trend(curves)
    found = [
        _not_finite(curves),
        _collapse(curves, features),
        _worse_than_start(curves),
        _untrained(scores),
        trend,
    ]
    judged = [one for one in found if one is not None]
    for one in judged:
        if one.state != "healthy":
            return one
    reason = _sentence("; ".join(one.reason.removesuffix(".") for one in judged))
    if trend is None:
        few = f"A trend needs {NUM_SCORES} values of a score, or {NUM_LOSSES} of the loss."
        return Verdict("unknown", f"{few} {reason}".strip())
    return Verdict("healthy", reason)


def _sentence(text: str) -> str:
    start = text[:1] if text.startswith("kNN") else text[:1].upper()
    return f"{start}{text[1:].removesuffix('.')}." if text else ""


def _not_finite(curves: Mapping[str, Curve]) -> Verdict | None:
    loss = curves.get("train/loss")
    if loss is None or not loss.num_not_finite:
        return None
    total = len(loss.values) + loss.num_not_finite
    return Verdict(
        "not converged",
        f"The loss is NaN or infinite in {loss.num_not_finite} of {total} logged values; "
        "lower the learning rate.",
    )


def _collapse(curves: Mapping[str, Curve], features: Mapping[str, float] | None) -> Verdict | None:
    measured = [
        ("effective rank", _last(curves, "val/effective_rank"), LEAST_RANK),
        ("feature std", _last(curves, "val/feature_std"), LEAST_STD),
        (
            "number of prototypes in use",
            _last(curves, "val/effective_prototypes"),
            LEAST_PROTOTYPES,
        ),
        ("effective rank of the samples", (features or {}).get("effective rank"), LEAST_RANK),
        ("spread of the samples", (features or {}).get("spread"), LEAST_SPREAD),
    ]
    known = [(name, value, least) for name, value, least in measured if value is not None]
    for name, value, least in known:
        if value < least:
            return Verdict(
                "collapsed", f"The {name} is {value:.3g}, and should be at least {least:g}."
            )
    if not known:
        return None
    return Verdict("healthy", "; ".join(f"the {name} is {value:.3g}" for name, value, _ in known))


def _untrained(scores: Table | None) -> Verdict | None:
    rows = scores or {}
    row, name = (
        ("start", "start weights") if "start" in rows else ("untrained", "untrained encoder")
    )
    trained, before = (rows.get(each, {}).get("knn") for each in ("trained", row))
    if trained is None or before is None:
        return None
    if trained < before:
        text = f"kNN accuracy is {trained:.3f}, below that of the {name}, {before:.3f}."
        return Verdict("not converged", text)
    return Verdict("healthy", f"kNN accuracy is {trained:.3f}, and {before:.3f} for the {name}")


def _worse_than_start(curves: Mapping[str, Curve]) -> Verdict | None:
    """Whether a score ends below that of the start weights, which `CompareWithStart` logs."""
    for name in sorted(name for name in curves if name.startswith(SCORES)):
        change = _last(curves, f"{name}{CHANGE}")
        last = _last(curves, name)
        if change is not None and last is not None and change < -FALL:
            title = describe(name).title
            text = f"{title} ends at {last:.3f}, {change:+.3f} from the start weights."
            return Verdict("not converged", text)
    return None


def _score_trend(curves: Mapping[str, Curve]) -> Verdict | None:
    scores = [name for name in curves if name.startswith(SCORES)]
    named = sorted(name for name in scores if not name.endswith(CHANGE))
    if not named or len(curves[named[0]].values) < NUM_SCORES:
        return None
    name = describe(named[0]).title
    steps, values, _ = curves[named[0]]
    before = [v for s, v in zip(steps, values, strict=True) if s <= 0.75 * steps[-1]]
    last, best = values[-1], max(values)
    change = last - max(before or values[:1])
    if best - last > FALL:
        return Verdict("not converged", f"{name} ends at {last:.3f}, below its best, {best:.3f}.")
    if change > RISE:
        return Verdict(
            "not converged",
            f"{name} still rises, by {change:.3f} in the last quarter, to {last:.3f}; "
            "train for longer.",
        )
    return Verdict("healthy", f"{name} is {last:.3f}, {change:+.3f} in the last quarter")


def _loss_trend(curves: Mapping[str, Curve]) -> Verdict | None:
    loss = curves.get("train/loss")
    if loss is None or len(loss.values) < NUM_LOSSES:
        return None
    quarter = len(loss.values) // 4
    first, last = fmean(loss.values[:quarter]), fmean(loss.values[-quarter:])
    third = fmean(loss.values[-2 * quarter : -quarter])
    if last >= first:
        return Verdict(
            "not converged",
            f"The loss does not fall: its mean is {first:.3g} in the first quarter of the run and "
            f"{last:.3g} in the last. With a momentum encoder that can be normal: log a score "
            "(OnlineKNN).",
        )
    if third - last > LINEAR * (first - last):
        return Verdict(
            "not converged",
            f"The loss still falls, from {third:.3g} to {last:.3g} in the last quarter; "
            "train for longer.",
        )
    return Verdict("healthy", f"the loss fell from {first:.3g} to {last:.3g} and flattened")


def _last(curves: Mapping[str, Curve], name: str) -> float | None:
    values = curves[name].values if name in curves else []
    return values[-1] if values else None
