"""What is seen of a run's policies while they are extracted: progress bars, and a table with a row for each."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.envs import TaskSet
from torchrl_pwm.evaluation import EvaluationResult
from torchrl_pwm.runs.saved import read_result

_COLUMNS = ("task", "seed", "score", "return", "success", "episodes", "seconds")


class PolicyTable:
    """``policies.csv`` in the folder of a run or round: a row for each policy that has its result.

    The results are what counts; the table is written from them, so that it is complete again when a run goes on after
    it was killed.

    Args:
        folder: of the run or round.
        task_set: that scores are of.
        results: files of the results, in the order of the rows, also of policies that have none yet.
    """

    def __init__(self, folder: Path, task_set: TaskSet, results: Sequence[Path]) -> None:
        self.file, self.task_set = folder / "policies.csv", task_set
        self.rows: dict[Path, dict[str, Any] | None] = dict.fromkeys(results)
        self.update()

    def update(self) -> None:
        """Adds the rows of new results."""
        found = {file: self._row(read_result(file)) for file, row in self.rows.items() if not row and file.exists()}
        if not found:
            return
        self.rows.update(found)
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in self.rows.values() if row)
        replace_file(self.file, text.getvalue().encode())

    def _row(self, result: Mapping[str, Any]) -> dict[str, Any]:
        played = EvaluationResult.from_records(self.task_set[result["task"]], [result])
        numbers = (played.score, played.return_mean, played.success, len(played.returns), round(result["seconds"], 1))
        return dict(zip(_COLUMNS, (result["task"], result["seed"], *numbers), strict=True))


@contextlib.contextmanager
def progress_bars(updates: int, further: int, *, shown: bool) -> Iterator[_Progress]:
    """Bars of the updates of all policies and of further work; yields what reports are passed to."""
    with (
        tqdm(total=updates, desc="policies", unit="update", disable=not shown) as bar,
        tqdm(total=further, desc="baselines", unit="task", disable=not (shown and further)) as second,
    ):
        yield _Progress(bar, second)


class _Progress:
    """Adds what the workers report to the progress bars: of the updates, and of other work, which says no more."""

    def __init__(self, bar: tqdm, further: tqdm) -> None:
        self.bar, self.further, self.done = bar, further, {}  # type: ignore[var-annotated]

    def __call__(self, name: str = "", done: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        if not name:
            self.further.update()
            return
        self.bar.update(done - self.done.get(name, 0))
        self.done[name] = done
        shown = (f"{key}={value:.4g}" for key, value in (metrics or {}).items())
        self.bar.set_postfix_str(" ".join((name, *shown)))
