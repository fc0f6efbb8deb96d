"""Evaluation: rollouts in the real environments, scores, summaries, plots and film strips.

Every name is imported on first use, so that this folder loads without a simulator or a plotting library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_pwm._utils.lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_pwm.evaluation.curves import plot_training, read_metrics
    from torchrl_pwm.evaluation.html_report import write_html_report
    from torchrl_pwm.evaluation.plots import plot_aggregates, plot_profiles, plot_scores
    from torchrl_pwm.evaluation.results import EvaluationResult
    from torchrl_pwm.evaluation.rollouts import evaluate_policy
    from torchrl_pwm.evaluation.scores import (
        compare_with_published,
        normalized_score,
        published_results,
        reference_average,
        reference_score,
        reference_scores,
    )
    from torchrl_pwm.evaluation.statistics import aggregate_scores, performance_profile
    from torchrl_pwm.evaluation.summary import (
        format_table,
        make_summary,
        package_versions,
        read_summary,
        write_summary,
    )
    from torchrl_pwm.evaluation.video import Film, FilmStrip, film_pictures, film_strip

_HOME = {
    "EvaluationResult": "results",
    "aggregate_scores": "statistics",
    "compare_with_published": "scores",
    "evaluate_policy": "rollouts",
    "Film": "video",
    "FilmStrip": "video",
    "film_pictures": "video",
    "film_strip": "video",
    "format_table": "summary",
    "make_summary": "summary",
    "normalized_score": "scores",
    "package_versions": "summary",
    "performance_profile": "statistics",
    "plot_aggregates": "plots",
    "plot_profiles": "plots",
    "plot_scores": "plots",
    "plot_training": "curves",
    "published_results": "scores",
    "read_metrics": "curves",
    "read_summary": "summary",
    "reference_average": "scores",
    "reference_score": "scores",
    "reference_scores": "scores",
    "write_html_report": "html_report",
    "write_summary": "summary",
}

__all__ = [
    "EvaluationResult",
    "Film",
    "FilmStrip",
    "aggregate_scores",
    "compare_with_published",
    "evaluate_policy",
    "film_pictures",
    "film_strip",
    "format_table",
    "make_summary",
    "normalized_score",
    "package_versions",
    "performance_profile",
    "plot_aggregates",
    "plot_profiles",
    "plot_scores",
    "plot_training",
    "published_results",
    "read_metrics",
    "read_summary",
    "reference_average",
    "reference_score",
    "reference_scores",
    "write_html_report",
    "write_summary",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
