"""Where the batches of a run are computed: processes of this machine, tasks of Ray, jobs of Slurm.

A run says what is to be done as a list of :class:`~torchrl_pwm.runs.engines.work.Work`, and does not know which engine
does it. What a work computes depends on the work alone, so that every engine leaves the same files.
"""

from __future__ import annotations

from omegaconf import DictConfig

from torchrl_pwm.runs.engines.work import Engine

__all__ = ["ENGINES", "make_engine"]

#: Engines, by ``engine.name`` of the configuration.
ENGINES = ("local", "ray", "submitit")


def make_engine(config: DictConfig) -> Engine:
    """The engine of a run; of one that was made before there were several, processes of this machine.

    Raises:
        ImportError: if its package is not installed.
        ValueError, ConnectionError: if it is told what it cannot do, or its cluster does not answer.
    """
    settings = config.get("engine") or {"name": "local"}
    if settings["name"] == "local":
        from torchrl_pwm.runs.engines.local import LocalEngine

        return LocalEngine(config.device, config.workers)
    options = {key: value for key, value in settings.items() if key != "name"}
    if settings["name"] == "ray":
        from torchrl_pwm.runs.engines.ray_tasks import RayEngine

        return RayEngine(config.device, workers=config.workers, **options)
    if settings["name"] == "submitit":
        from torchrl_pwm.runs.engines.submitit_jobs import SubmititEngine

        return SubmititEngine(config.device, **options)
    raise ValueError(f"engine must be one of {', '.join(ENGINES)}, found {settings['name']!r}")
