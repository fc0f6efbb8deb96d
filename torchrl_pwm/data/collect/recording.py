"""Steps of a policy, recorded for a world model to learn from."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from torchrl_pwm._utils.finite import first_bad_step
from torchrl_pwm._utils.seeds import uniform_actions

__all__ = ["NoisyPolicy", "record_steps"]


def record_steps(
    policy: nn.Module, env: EnvBase, steps: int, *, noise: float = 0.5, seed: int = 0, progress: bool = False
) -> TensorDictBase:
    """Steps of a policy's mean actions, which more and more uniform noise spoils from the first env to the last.

    The actions are those of :class:`NoisyPolicy`: a model that shall tell good actions from bad ones must see both.
    What it is for is ``pretraining.data`` of ``examples/pwm_simulator.py``, after ``memmap(folder)``.

    Args:
        policy (nn.Module): writes ``action``, in [-1, 1].
        env (EnvBase): of batch [N], whose envs reset alone.
        steps (int): T, of each env.

    Keyword Args:
        noise (float): share of the noise in the last env, between 0 and 1.
        seed (int): of the noise; the env has its own.
        progress (bool): show a progress bar.

    Returns:
        TensorDict [N, T] with ``observation``, ``action`` and, under ``"next"``, ``observation``, ``reward``, ``done``
        and ``terminated``.

    Raises:
        ValueError: if ``steps`` or ``noise`` is out of range, or the env is no batch of envs.
        FloatingPointError: if a number is not finite; the entry, its env and step are named.

    Examples:
        >>> from torchrl_pwm import make_pwm_actor
        >>> from torchrl_pwm.envs.simulators import AnalyticEnv
        >>> env = AnalyticEnv("cartpole_swingup", num_envs=4)
        >>> record_steps(make_pwm_actor(5, 1, in_key="observation"), env, 3).shape
        torch.Size([4, 3])
    """
    if steps < 1 or not 0.0 <= noise <= 1.0:
        raise ValueError(f"steps must be at least 1 and noise between 0 and 1, found {steps} and {noise}.")
    if env.batch_size.numel() < 1 or len(env.batch_size) != 1:
        raise ValueError(f"env must be a batch [N] of envs, found batch {list(env.batch_size)}.")
    acting = NoisyPolicy(policy, env.batch_size[0], noise, seed=seed)
    keys = ("observation", "action", *(("next", key) for key in ("observation", "reward", "done", "terminated")))
    recorded = []
    with torch.no_grad():
        state = env.reset()
        for _ in tqdm(range(steps), desc="recording", unit="step", disable=not progress):
            step, state = env.step_and_maybe_reset(acting(state))
            recorded.append(step.select(*keys).clone())
    found = torch.stack(recorded, 1)
    bad = first_bad_step(found)
    if bad is not None:
        raise FloatingPointError(
            f"Recorded steps must be finite, but {bad.named()}: look for a NaN in the weights of the policy, or for a "
            "simulation that diverged."
        )
    return found


class NoisyPolicy(TensorDictModuleBase):
    """A policy's mean actions with uniform noise that grows from env to env of a batch [N].

    Env i acts by (1 - s_i) a + s_i u, with the policy's mean action a [A], u uniform in [-1, 1] and the share
    s_i = ``noise`` i / (N - 1). What else the policy writes, such as a recurrent state, stays in the TensorDict.

    Args:
        policy (nn.Module): reads a TensorDict and writes ``action`` [N, A], in [-1, 1].
        rows (int): number of envs, N.
        noise (float): share of the noise in the last env, between 0 and 1.

    Keyword Args:
        seed (int): of the noise.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import make_pwm_actor
        >>> policy = NoisyPolicy(make_pwm_actor(5, 1, in_key="observation"), rows=4, noise=0.5)
        >>> policy(TensorDict({"observation": torch.zeros(4, 5)}, [4]))["action"].shape
        torch.Size([4, 1])
    """

    share: Tensor

    def __init__(self, policy: nn.Module, rows: int, noise: float, *, seed: int = 0) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(getattr(policy, "in_keys", ["observation"])), ["action"]
        self.policy, self.generator = policy, torch.Generator().manual_seed(seed)
        self.register_buffer("share", torch.linspace(0.0, noise, rows)[:, None], persistent=False)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = self.policy(tensordict)["action"]
        uniform = uniform_actions(*action.shape, generator=self.generator).to(action)
        share = self.share.to(action)
        return tensordict.set("action", (1 - share) * action + share * uniform)
