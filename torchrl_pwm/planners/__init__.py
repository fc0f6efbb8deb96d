"""Planners: policies that search in a world model while they act."""

from __future__ import annotations

from torchrl_pwm.planners.mppi import Plan, PlannerNoise, PlannerSettings, plan_actions
from torchrl_pwm.planners.tdmpc2 import TDMPC2Planner

__all__ = ["Plan", "PlannerNoise", "PlannerSettings", "TDMPC2Planner", "plan_actions"]
