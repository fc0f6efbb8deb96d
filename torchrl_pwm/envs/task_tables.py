"""Tables of MT80's tasks: fields of their observations, sizes, and the reference results of the published models."""

from __future__ import annotations

_WALKER = (("orientations", 14), ("height", 1), ("velocity", 9))
_CHEETAH = (("position", 8), ("velocity", 9))
_REACHER = (("position", 2), ("to_target", 2), ("velocity", 2))
_REACHER_THREE = (("position", 3), ("to_target", 2), ("velocity", 3))
_ACROBOT = (("orientations", 4), ("velocity", 2))
_PENDULUM = (("orientation", 2), ("velocity", 1))
_CARTPOLE = (("position", 3), ("velocity", 2))
_CUP = (("position", 4), ("velocity", 4))
_FINGER = (("position", 4), ("velocity", 3), ("touch", 2))
_FINGER_TURN = (*_FINGER, ("target_position", 2), ("dist_to_target", 1))
_FISH = (("joint_angles", 7), ("upright", 1), ("target", 3), ("velocity", 13))
_HOPPER = (("position", 6), ("velocity", 7), ("touch", 2))
SAWYER = (("frame", 18), ("previous_frame", 18), ("goal", 3))

# name, observation layout, action size, published return, whether the task is not in the suite itself
DM_CONTROL: tuple[tuple[str, tuple[tuple[str, int], ...], int, float, bool], ...] = (
    ("walker-stand", _WALKER, 6, 992.7, False),
    ("walker-walk", _WALKER, 6, 981.1, False),
    ("walker-run", _WALKER, 6, 877.2, False),
    ("cheetah-run", _CHEETAH, 6, 895.8, False),
    ("reacher-easy", _REACHER, 2, 987.2, False),
    ("reacher-hard", _REACHER, 2, 981.8, False),
    ("acrobot-swingup", _ACROBOT, 1, 662.9, False),
    ("pendulum-swingup", _PENDULUM, 1, 838.0, False),
    ("cartpole-balance", _CARTPOLE, 1, 998.3, False),
    ("cartpole-balance-sparse", _CARTPOLE, 1, 977.0, False),
    ("cartpole-swingup", _CARTPOLE, 1, 877.2, False),
    ("cartpole-swingup-sparse", _CARTPOLE, 1, 850.0, False),
    ("cup-catch", _CUP, 2, 983.8, False),
    ("finger-spin", _FINGER, 2, 990.5, False),
    ("finger-turn-easy", _FINGER_TURN, 2, 982.5, False),
    ("finger-turn-hard", _FINGER_TURN, 2, 977.1, False),
    ("fish-swim", _FISH, 5, 761.0, False),
    ("hopper-stand", _HOPPER, 4, 954.8, False),
    ("hopper-hop", _HOPPER, 4, 449.2, False),
    ("walker-walk-backwards", _WALKER, 6, 983.5, True),
    ("walker-run-backwards", _WALKER, 6, 938.9, True),
    ("cheetah-run-backwards", _CHEETAH, 6, 753.6, True),
    ("cheetah-run-front", _CHEETAH, 6, 693.8, True),
    ("cheetah-run-back", _CHEETAH, 6, 845.7, True),
    ("cheetah-jump", _CHEETAH, 6, 822.9, True),
    ("hopper-hop-backwards", _HOPPER, 4, 932.2, True),
    ("reacher-three-easy", _REACHER_THREE, 3, 981.6, True),
    ("reacher-three-hard", _REACHER_THREE, 3, 846.4, True),
    ("cup-spin", _CUP, 2, 847.8, True),
    ("pendulum-spin", _PENDULUM, 1, 843.3, True),
)

# name, published success rate, return of the scripted expert with the hold rule, its successes in 3 episodes
META_WORLD: tuple[tuple[str, float, float, int], ...] = (
    ("mw-assembly", 1.0, 1293.5, 3),
    ("mw-basketball", 1.0, 1213.5, 3),
    ("mw-button-press-topdown", 1.0, 704.7, 2),
    ("mw-button-press-topdown-wall", 1.0, 1105.7, 3),
    ("mw-button-press", 0.9, 210.4, 3),
    ("mw-button-press-wall", 1.0, 1243.4, 3),
    ("mw-coffee-button", 1.0, 241.4, 3),
    ("mw-coffee-pull", 1.0, 1180.2, 3),
    ("mw-coffee-push", 1.0, 874.3, 3),
    ("mw-dial-turn", 0.9, 759.5, 3),
    ("mw-disassemble", 0.7, 949.3, 2),
    ("mw-door-open", 1.0, 1518.7, 3),
    ("mw-door-close", 1.0, 1453.5, 3),
    ("mw-drawer-close", 1.0, 1252.4, 3),
    ("mw-drawer-open", 1.0, 1364.6, 3),
    ("mw-faucet-open", 1.0, 1640.4, 3),
    ("mw-faucet-close", 1.0, 1621.1, 3),
    ("mw-hammer", 1.0, 1229.8, 3),
    ("mw-handle-press-side", 1.0, 857.1, 1),
    ("mw-handle-press", 1.0, 585.3, 0),
    ("mw-handle-pull-side", 1.0, 640.1, 2),
    ("mw-handle-pull", 1.0, 1152.2, 2),
    ("mw-lever-pull", 0.8, 600.1, 3),
    ("mw-peg-insert-side", 1.0, 1101.4, 3),
    ("mw-peg-unplug-side", 1.0, 819.7, 3),
    ("mw-pick-out-of-hole", 1.0, 485.3, 3),
    ("mw-pick-place", 1.0, 1528.2, 3),
    ("mw-pick-place-wall", 0.8, 1370.4, 3),
    ("mw-plate-slide", 1.0, 1600.0, 3),
    ("mw-plate-slide-side", 1.0, 1566.3, 3),
    ("mw-plate-slide-back", 1.0, 1577.0, 3),
    ("mw-plate-slide-back-side", 1.0, 1705.4, 3),
    ("mw-push-back", 0.7, 40.3, 1),
    ("mw-push", 1.0, 1535.5, 3),
    ("mw-push-wall", 1.0, 1446.8, 3),
    ("mw-reach", 0.9, 1837.6, 3),
    ("mw-reach-wall", 1.0, 1805.7, 3),
    ("mw-shelf-place", 1.0, 852.0, 2),
    ("mw-soccer", 0.9, 879.4, 3),
    ("mw-stick-push", 0.9, 1471.1, 3),
    ("mw-stick-pull", 1.0, 405.8, 0),
    ("mw-sweep-into", 1.0, 825.7, 1),
    ("mw-sweep", 1.0, 1337.8, 3),
    ("mw-window-open", 1.0, 622.0, 3),
    ("mw-window-close", 1.0, 1078.7, 3),
    ("mw-bin-picking", 1.0, 737.7, 3),
    ("mw-box-close", 1.0, 1103.0, 3),
    ("mw-door-lock", 1.0, 1102.9, 3),
    ("mw-door-unlock", 1.0, 1433.6, 3),
    ("mw-hand-insert", 1.0, 1587.4, 3),
)
