"""Means of per-question scores with standard errors, and differences of two models on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, both in the unit of what was averaged."""

    mean: float
    stderr: float


def estimate(scores: Sequence[float]) -> Estimate:
    """Mean of n >= 2 questions' scores; the error is s / sqrt(n) with the n - 1 variance, as lm-eval has it."""
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} scores have no standard error")
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return Estimate(mean, math.sqrt(variance / len(scores)))


def difference(scores: Sequence[float], reference: Sequence[float]) -> Estimate:
    """Mean of score - reference, question by question.

    What makes a question hard for both models cancels: only questions that they answer differently add to the error.
    """
    return estimate([score - other for score, other in zip(scores, reference, strict=True)])


def over_tasks(estimates: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of tasks; their questions are independent, so that variances add."""
    count = len(estimates)
    mean = math.fsum(one.mean for one in estimates) / count
    return Estimate(mean, math.sqrt(math.fsum(one.stderr**2 for one in estimates)) / count)
