"""Simulated inverse dynamics of Meta-World's arm: what SARCOS is for a real one."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

JOINTS = 7
_MODEL = Path("assets", "sawyer_xyz", "sawyer_reach_v3.xml")


def inverse_dynamics(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Torques that the arm's seven hinges need, computed by MuJoCo for random motions.

    Angles are normal about the middle of the hinges' ranges (0.3 rad), velocities (rad/s) and accelerations (rad/s^2)
    standard normal.
    Simulated data: the model is Meta-World's Sawyer without damping (which would drown the rest), contacts, joint
    limits and its gripper's motion.

    Args:
        count: how many records.
        seed: draws the motions.

    Returns:
        Inputs ``[count, 21]`` (seven angles, velocities and accelerations) and torques ``[count, 7]`` (N m).
    """
    import metaworld
    import mujoco

    model = mujoco.MjModel.from_xml_path(str(Path(metaworld.__file__).parent / _MODEL))
    data = mujoco.MjData(model)
    model.opt.disableflags |= (
        mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_LIMIT | mujoco.mjtDisableBit.mjDSBL_EQUALITY
    )
    model.dof_damping[:] = 0
    hinges = [model.joint(f"right_j{number}").id for number in range(JOINTS)]
    positions, velocities = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
    random = np.random.default_rng(seed)
    deviations, speeds, accelerations = random.standard_normal((3, count, JOINTS))
    angles = model.jnt_range[hinges].mean(1) + 0.3 * deviations
    torques = np.empty((count, JOINTS))
    mujoco.mj_resetData(model, data)
    for row in range(count):
        data.qpos[positions] = angles[row]
        data.qvel[velocities] = speeds[row]
        data.qacc[:] = 0
        data.qacc[velocities] = accelerations[row]
        mujoco.mj_inverse(model, data)
        torques[row] = data.qfrc_inverse[velocities]
    return np.hstack([angles, speeds, accelerations]), torques
