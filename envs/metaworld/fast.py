"""Replacements for the slow parts of Meta-World's step: the same bytes in less than half of the time.

Most of a Meta-World step is not physics but Python around it: contacts fetched one object at a time, rotations
checked for validity, names looked up, short vectors stacked, clipped and measured by functions made for long ones.
Each replacement does the same arithmetic in the same order, so its results are the same to the last bit; what it is
not made for it hands to the original. Sums of products stay with NumPy and ``**`` stays ``**``, because libraries
round these differently from processor to processor.

Nothing is replaced when this is imported: a worker calls `install` in its own process.
"""

import functools
import math
import sys
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from numpy.typing import NDArray

try:
    from scipy.spatial.transform._rotation_cy import from_matrix as _quaternion_from_matrix
except ImportError:  # a SciPy that keeps it elsewhere: its public function remains in use then
    _quaternion_from_matrix = None

_original_norm = np.linalg.norm
_original_observation = SawyerXYZEnv._get_obs
_original_tolerance = reward_utils.tolerance
_hamacher_product = reward_utils.hamacher_product

# What `numpy.clip` comes down to, after some layers of Python.
_clip = np._core.umath.clip  # type: ignore[attr-defined]
_MINUS_ONE, _ONE = np.float32(-1), np.float32(1)
_MOCAP_QUATERNION = np.array([1.0, 0.0, 1.0, 0.0])


@functools.cache
def install() -> None:
    """Puts every replacement in place, in this process."""
    for owner, name, replacement in replacements():
        setattr(owner, name, replacement)


def replacements() -> list[tuple[Any, str, Any]]:
    """What is replaced: the owner (a class or module of Meta-World's), the attribute and its new value."""
    found: list[tuple[Any, str, Any]] = [
        (SawyerXYZEnv, "step", _step),
        (SawyerXYZEnv, "do_simulation", _do_simulation),
        (SawyerXYZEnv, "touching_object", _touching_object),
        # Live views as there, on which v2 rewards depend.
        (SawyerXYZEnv, "get_body_com", lambda env, name: _views(env)["body", name]),
        (SawyerXYZEnv, "get_endeff_pos", lambda env: _views(env)["body", "hand"]),
        (SawyerXYZEnv, "tcp_center", property(_tcp_center)),
        (SawyerXYZEnv, "_get_site_pos", lambda env, name: _views(env)["site", name].copy()),
        (SawyerXYZEnv, "_get_obs", _observation),
        (SawyerXYZEnv, "_gripper_caging_reward", _gripper_caging_reward),
        (reward_utils, "tolerance", _tolerance),
    ]
    numpy = SimpleNamespace(**vars(np))
    numpy.linalg = SimpleNamespace(**vars(np.linalg))
    numpy.linalg.norm = _norm
    for module in {sys.modules[task.__module__] for task in ALL_V3_ENVIRONMENTS.values()}:
        found.append((module, "np", numpy))
        if hasattr(module, "tolerance"):
            found.append((module, "tolerance", _tolerance))
        if hasattr(module, "Rotation") and _quaternion_from_matrix is not None:
            found.append((module, "Rotation", SimpleNamespace(from_matrix=_from_matrix)))
    return found


def _step(env: Any, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
    """Replaces `SawyerXYZEnv.step`.

    Left out: moving the target's site, which ``mj_forward`` moves back before anyone looks, and what follows a
    flag that nothing sets (``_did_see_sim_exception``).
    """
    if env.curr_path_length >= env.max_path_length:
        raise ValueError("the episode is over: reset the environment first")
    views = _views(env)
    moved = views.mocap_position + _clip(action[:3], _MINUS_ONE, _ONE) * env.action_scale
    _clip(moved, env.mocap_low, env.mocap_high, views.mocap_position)
    views.mocap_quaternion[:] = _MOCAP_QUATERNION
    _do_simulation(env, (action[-1], -action[-1]), env.frame_skip)
    env.curr_path_length += 1
    mujoco.mj_forward(env.model, env.data)
    space = env.sawyer_observation_space
    env._last_stable_obs = observation = _clip(_observation(env), space.low, space.high)
    reward, info = env.evaluate_state(observation, action)
    return observation, reward, False, env.curr_path_length == env.max_path_length, info


def _do_simulation(env: Any, control: Any, substeps: int) -> None:
    """Replaces `MujocoEnv.do_simulation`.

    Left out: ``mj_rnePostConstraint``, whose results (``cacc``, ``cfrc_int``, ``cfrc_ext``) no task reads.
    """
    views = _views(env)
    views.control[0], views.control[1] = control
    mujoco.mj_step(env.model, env.data, nstep=substeps)


class _Views(dict[tuple[str, str], NDArray[np.float64]]):
    """Arrays over simulator data, made once instead of looked up by name at every use: positions by kind and name."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.control: NDArray[np.float64] = data.ctrl
        self.mocap_position: NDArray[np.float64] = data.mocap_pos[0]
        self.mocap_quaternion: NDArray[np.float64] = data.mocap_quat[0]
        self.pads: tuple[int, int] = data.geom("leftpad_geom").id, data.geom("rightpad_geom").id

    def __missing__(self, key: tuple[str, str]) -> NDArray[np.float64]:
        kind, name = key
        position: NDArray[np.float64] = getattr(self.data, kind)(name).xpos
        return self.setdefault(key, position)


def _views(env: Any) -> _Views:
    try:
        views: _Views = env._views
    except AttributeError:
        views = env._views = _Views(env.data)
    return views


def _tcp_center(env: Any) -> NDArray[np.float64]:
    """Replaces `SawyerMocapBase.tcp_center`."""
    views = _views(env)
    return (views["site", "rightEndEffector"] + views["site", "leftEndEffector"]) / 2.0


def _observation(env: Any) -> NDArray[np.float64]:
    """Replaces `SawyerXYZEnv._get_obs`: written into slices instead of stacked."""
    positions, quaternions = env._get_pos_objects(), env._get_quat_objects()
    if (len(positions), len(quaternions)) not in ((3, 4), (6, 8)):
        return _original_observation(env)
    views = _views(env)
    observation = np.zeros(39)
    observation[:3] = views["body", "hand"]
    opening = _distance(views["body", "rightclaw"], views["body", "leftclaw"]) / 0.1
    observation[3] = 1.0 if opening > 1.0 else opening
    observation[4:7] = positions[:3]
    observation[7:11] = quaternions[:4]
    if len(positions) == 6:
        observation[11:14] = positions[3:]
        observation[14:18] = quaternions[4:]
    observation[18:36] = env._prev_obs
    if not env._partially_observable:
        observation[36:] = env._get_pos_goal()
    env._prev_obs = observation[:18]
    return observation


def _touching_object(env: Any, object_geom: int) -> bool:
    """Replaces `SawyerXYZEnv.touching_object`, which makes an object of every contact, twice.

    The forces are added in the same order.
    """
    contacts = env.data.contact
    left_pad, right_pad = _views(env).pads
    left: Any = 0
    right: Any = 0
    for index, pair in enumerate(contacts.geom.tolist()):
        if object_geom in pair:
            if left_pad in pair:
                left += env.data.efc_force[contacts.efc_address[index]]
            if right_pad in pair:
                right += env.data.efc_force[contacts.efc_address[index]]
    return bool(left > 0 and right > 0)


def _from_matrix(matrix: NDArray[np.float64]) -> SimpleNamespace:
    """Replaces SciPy's `Rotation.from_matrix` in the task modules, which only turn matrices into quaternions.

    The same compiled function, without its check that the matrix is orthogonal: MuJoCo's are.
    """
    quaternion = _quaternion_from_matrix(matrix, assume_valid=True)
    return SimpleNamespace(as_quat=lambda: quaternion)


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Replaces `numpy.linalg.norm` in the task modules: for a vector, what it comes down to there."""
    if type(x) is np.ndarray and x.ndim == 1 and x.dtype == np.float64 and axis is None and ord in (None, 2):
        x = x.ravel()  # as there: a product of strided vectors may be rounded differently
        return np.sqrt(x.dot(x))
    return _original_norm(x, ord, axis, keepdims)


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The norm of ``a - b`` as a Python float."""
    difference = a - b
    return math.sqrt(difference.dot(difference))


def _tolerance(
    x: Any,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: Any = 0.0,
    sigmoid: Any = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """Replaces `reward_utils.tolerance`: for one number and the sigmoid of nearly all rewards, without arrays.

    Python's and NumPy's float64 add, multiply, divide and take square roots alike, and both leave powers to C.
    """
    lower, upper = bounds
    numbers = isinstance(x, float) and isinstance(margin, float)
    if not numbers or sigmoid != "long_tail" or lower > upper or margin < 0:
        return _original_tolerance(x, bounds, margin, sigmoid, value_at_margin)
    if lower <= x <= upper:
        return 1.0
    if margin == 0:
        return 0.0
    distance = float(lower - x if x < lower else x - upper) / float(margin)
    return 1 / ((distance * math.sqrt(1 / value_at_margin - 1)) ** 2 + 1)


def _gripper_caging_reward(
    env: Any,
    action: NDArray[np.float32],
    obj_pos: NDArray[np.float64],
    obj_radius: float,
    pad_success_thresh: float,
    object_reach_radius: float,
    xz_thresh: float,
    desired_gripper_effort: float = 1.0,
    high_density: bool = False,
    medium_density: bool = False,
) -> Any:
    """Replaces `SawyerXYZEnv._gripper_caging_reward`: numbers instead of pairs, slices instead of index lists."""
    if high_density and medium_density:
        raise ValueError("Can only be either high_density or medium_density")
    start = env.obj_init_pos
    object_y, start_y = obj_pos.item(1), start.item(1)
    caging_y = []
    for pad in ("leftpad", "rightpad"):
        pad_y = _views(env)["body", pad].item(1)
        margin = abs(abs(pad_y - start_y) - pad_success_thresh)
        caging_y.append(_tolerance(abs(pad_y - object_y), (obj_radius, pad_success_thresh), margin, "long_tail"))
    tcp = _tcp_center(env)
    margin = _distance(start[:3:2], env.init_tcp[:3:2]) - xz_thresh
    caging_xz = _tolerance(_distance(tcp[:3:2], obj_pos[:3:2]), (0, xz_thresh), margin, "long_tail")
    caging = _hamacher_product(_hamacher_product(*caging_y), caging_xz)

    closed = min(max(0, action[-1]), desired_gripper_effort) / desired_gripper_effort
    reward = _hamacher_product(caging, closed if caging > 0.97 else 0.0)
    if high_density:
        return (reward + caging) / 2
    if medium_density:
        margin = abs(_distance(start, env.init_tcp) - object_reach_radius)
        return (reward + _tolerance(_distance(obj_pos, tcp), (0, object_reach_radius), margin, "long_tail")) / 2
    return reward
