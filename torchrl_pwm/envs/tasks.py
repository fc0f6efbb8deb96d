"""The MT30 and MT80 task sets as data: 30 DMControl tasks, and those plus 50 Meta-World tasks.

Nothing here imports a simulator. The order of a set is a promise: the index of a task is its row of the task
embedding and the value of the ``task`` key in offline data. The first 30 tasks of MT80 are MT30.

Sources: the task sets are those of TD-MPC2 (Hansen et al., ICLR 2024, arXiv 2310.16828), also used by PWM
(Georgiev et al., ICLR 2025, arXiv 2407.02466). ``reference_score`` is the mean over three seeds of the published
single-task TD-MPC2 runs. Expert numbers were measured over three episodes with metaworld 3.1.1.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, overload

from torchrl_pwm.envs.task_tables import DM_CONTROL, META_WORLD, SAWYER

__all__ = ["MT30", "MT80", "TaskSet", "TaskSpec", "get_task_set", "get_task_spec"]

Suite = Literal["dm_control", "dm_control_custom", "metaworld"]
ScoreRule = Literal["return", "success"]


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task: names, sizes, lengths and how it is scored.

    A *raw step* is one step of the simulator's own environment; a *step* is one policy step, that is
    ``action_repeat`` raw steps with one action and their rewards added.

    A task of your own needs a name, sizes and the length of its episodes; without a suite it is known by its data
    alone. Data sets keep the tasks that they are of, see :func:`~torchrl_pwm.write_episodes`.

    Args:
        name: name of the task in the sets, such as ``"walker-run"`` or ``"mw-reach"``.
        observation_fields: names and sizes of the parts of the observation, in order.
        action_dim: number of action entries, each in [-1, 1].
        episode_length: steps until the time-out; no task of MT30 and MT80 terminates earlier.
        index: position in the task set that holds this row.
        suite: which family builds it; None where no env does.
        domain: DMControl domain, or ``"sawyer"``.
        task: DMControl task name, or the Meta-World base name.
        max_reward: largest reward of one step; None where it is not known, and then no return has a score.
        score_rule: ``"return"`` (return / ``max_return``) or ``"success"`` (success at the last step).
        discount: discount that TD-MPC2 derives from the episode length.
        reference_score: published single-task TD-MPC2 result, in the units of :meth:`score`.
        warmup_raw_steps: raw steps with a zero action that a reset makes after the observation was read.
        expert_return: mean return of the scripted expert with the hold rule (Meta-World only).
        expert_success: its rate of success at the last step (Meta-World only).

    Examples:
        >>> from torchrl_pwm.envs import MT80
        >>> spec = MT80["walker-run"]
        >>> spec.observation_dim, spec.action_dim, spec.episode_length
        (24, 6, 500)
        >>> spec.score(877.0)
        0.877
        >>> TaskSpec("pick", observation_fields=(("joints", 6),), action_dim=3, episode_length=200).observation_dim
        6
    """

    name: str
    _: dataclasses.KW_ONLY
    observation_fields: tuple[tuple[str, int], ...]
    action_dim: int
    episode_length: int
    index: int = 0
    suite: Suite | None = None
    domain: str = ""
    task: str = ""
    max_reward: float | None = None
    score_rule: ScoreRule = "return"
    discount: float = 0.99
    reference_score: float | None = None
    warmup_raw_steps: int = 0
    action_repeat: int = 2
    expert_return: float | None = None
    expert_success: float | None = None

    @property
    def observation_dim(self) -> int:
        """Number of observation entries before padding."""
        return sum(size for _, size in self.observation_fields)

    def __post_init__(self) -> None:
        sizes = (self.observation_dim, self.action_dim, self.episode_length)
        if not self.name or min(sizes) < 1:
            raise ValueError(
                f"a task needs a name, and at least one observation entry, action entry and step, found "
                f"{self.name!r} with {', '.join(map(str, sizes))}"
            )
        if self.score_rule not in get_args(ScoreRule):
            raise ValueError(f"score_rule of {self.name} must be 'return' or 'success', found {self.score_rule!r}")

    @property
    def max_return(self) -> float | None:
        """Largest return of an episode: 1000 for DMControl, 2000 for Meta-World; None where it is not known."""
        return None if self.max_reward is None else self.max_reward * self.episode_length

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TaskSpec:
        """The task that ``dataclasses.asdict`` and JSON made a record of.

        Raises:
            TypeError: if an entry is missing or not known.
        """
        fields = tuple((str(name), int(size)) for name, size in record["observation_fields"])
        return cls(**{**record, "observation_fields": fields})

    @property
    def env_id(self) -> str | None:
        """Key of the Meta-World class, None for DMControl."""
        return f"{self.task}-v3-goal-observable" if self.suite == "metaworld" else None

    def score(self, return_: Any, success: Any = None) -> Any:
        """Normalised score of an episode: 1 is the best possible.

        Args:
            return_: undiscounted return of the episode; a number, array or tensor.
            success: success at the last step; needed where ``score_rule`` is ``"success"``.

        Returns:
            ``return_ / max_return`` or ``success`` as a float (arrays and tensors elementwise).

        Raises:
            ValueError: if the task is scored by success and none is given, or its largest reward is not known.
        """
        if self.score_rule == "return":
            if self.max_return is None:
                raise ValueError(f"{self.name} has no max_reward, so that its returns have no score; give it one")
            return return_ / self.max_return
        if success is None:
            raise ValueError(
                f"{self.name} is scored by success at the last step of the episode, but success is None; "
                'pass the value of ("next", "success") at that step'
            )
        return success * 1.0


class TaskSet(Sequence[TaskSpec]):
    """An ordered table of tasks that share one padded observation and action size.

    Args:
        name: name of the set.
        tasks: rows, or names of MT80 tasks. Rows are numbered by their position here.

    Raises:
        ValueError: for an unknown, repeated or missing task name.

    Examples:
        >>> from torchrl_pwm.envs import MT80, TaskSet
        >>> MT80[2].name, MT80["mw-reach"].index, len(MT80)
        ('walker-run', 65, 80)
        >>> pair = TaskSet("pair", ["mw-reach", "walker-run"])
        >>> pair["walker-run"].index, pair.observation_dim, pair.action_dims
        (1, 39, (4, 6))
    """

    def __init__(self, name: str, tasks: Iterable[TaskSpec | str]) -> None:
        rows = [get_task_spec(task) if isinstance(task, str) else task for task in tasks]
        if not rows:
            raise ValueError(f"task set {name!r} needs at least one task, got none")
        self.name = name
        self._rows = tuple(dataclasses.replace(row, index=index) for index, row in enumerate(rows))
        self._by_name = {row.name: row for row in self._rows}
        if len(self._by_name) != len(self._rows):
            repeated = sorted({n for n in self.names if self.names.count(n) > 1})
            raise ValueError(f"task set {name!r} must name each task once, but repeats {repeated}")

    @property
    def names(self) -> tuple[str, ...]:
        """Task names in order."""
        return tuple(row.name for row in self._rows)

    @property
    def observation_dim(self) -> int:
        """Padded observation size: the largest of the set."""
        return max(row.observation_dim for row in self._rows)

    @property
    def action_dim(self) -> int:
        """Padded action size: the largest of the set."""
        return max(row.action_dim for row in self._rows)

    @property
    def action_dims(self) -> tuple[int, ...]:
        """Number of action entries that each task uses."""
        return tuple(row.action_dim for row in self._rows)

    @overload
    def __getitem__(self, key: int | str) -> TaskSpec: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[TaskSpec, ...]: ...
    def __getitem__(self, key: int | str | slice) -> TaskSpec | tuple[TaskSpec, ...]:
        if not isinstance(key, str):
            return self._rows[key]
        if key not in self._by_name:
            raise ValueError(_unknown("task", key, self.names, f" in task set {self.name!r}"))
        return self._by_name[key]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TaskSpec]:
        return iter(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._by_name if isinstance(key, str) else key in self._rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskSet):
            return NotImplemented
        return self.name == other.name and self._rows == other._rows

    def __hash__(self) -> int:
        return hash((self.name, self._rows))

    def __repr__(self) -> str:
        return (
            f"TaskSet({self.name!r}, {len(self)} tasks, observation_dim={self.observation_dim}, "
            f"action_dim={self.action_dim})"
        )


def get_task_set(task_set: str | TaskSet) -> TaskSet:
    """The task set of a name; a :class:`TaskSet` is returned as it is.

    Args:
        task_set: ``"mt30"``, ``"mt80"`` (in any case) or a :class:`TaskSet`.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(task_set, TaskSet):
        return task_set
    key = str(task_set).lower()
    if key not in _TASK_SETS:
        raise ValueError(_unknown("task set", task_set, tuple(_TASK_SETS)))
    return _TASK_SETS[key]


def get_task_spec(name: str) -> TaskSpec:
    """The MT80 row of a task name.

    Raises:
        ValueError: for an unknown name, with the nearest known names.
    """
    return MT80[name]


def _unknown(kind: str, name: object, known: Sequence[str], where: str = "") -> str:
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    near += [n for n in known if str(name) and n.endswith(f"-{name}") and n not in near]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(known)}"
    return f"unknown {kind} {name!r}{where}; {hint}"


def _dm_control_rows() -> Iterator[TaskSpec]:
    for name, fields, action_dim, reference, custom in DM_CONTROL:
        domain, task = name.split("-", 1)
        yield TaskSpec(
            name=name,
            index=0,
            suite="dm_control_custom" if custom else "dm_control",
            domain={"cup": "ball_in_cup"}.get(domain, domain),
            task=task.replace("-", "_"),
            observation_fields=fields,
            action_dim=action_dim,
            episode_length=500,
            max_reward=2.0,
            score_rule="return",
            discount=0.99,
            reference_score=reference / 1000.0,
        )


def _meta_world_rows() -> Iterator[TaskSpec]:
    for name, reference, expert_return, successes in META_WORLD:
        yield TaskSpec(
            name=name,
            index=0,
            suite="metaworld",
            domain="sawyer",
            task=name.removeprefix("mw-"),
            observation_fields=SAWYER,
            action_dim=4,
            episode_length=100,
            max_reward=20.0,
            score_rule="success",
            discount=0.95,
            reference_score=reference,
            warmup_raw_steps=1,
            expert_return=expert_return,
            expert_success=successes / 3.0,
        )


MT30 = TaskSet("mt30", _dm_control_rows())
MT80 = TaskSet("mt80", [*_dm_control_rows(), *_meta_world_rows()])
_TASK_SETS = {"mt30": MT30, "mt80": MT80}
