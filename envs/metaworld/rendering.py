"""Films of Meta-World's episodes, rendered off-screen. Importing this loads neither MuJoCo nor Meta-World."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.metaworld.options import Options
from envs.rendering import SIZE, Film, Frame

_EVERY = 4  # Meta-World's step is 12.5 ms
_AFTER_SUCCESS = 20
# Meta-World's own are upside down or far away.
_CAMERA = {"lookat": (0.0, 0.6, 0.15), "azimuth": 155, "elevation": -35, "distance": 1.3}


def film(policy: Callable[[Any], Any], names: Sequence[str], options: Options, seed: int) -> Iterator[Film]:
    """Plays the first episode of every task, shortly beyond its first success, and renders one task after the other.

    Frames are one of every four steps, and the last. The tasks are played together, as an evaluation does: a policy's
    arithmetic may depend on how many observations it is given at once. Their states are kept and rendered afterwards,
    so that one renderer at a time is open.
    The policy maps observations ``[T, 39]`` to actions ``[T, 4]``.
    """
    import mujoco

    from envs.metaworld.task import TaskEnv

    mujoco.set_mju_user_warning(lambda _: None)  # instead of a log file
    options = replace(options, terminate_on_success=False, fast=False)
    tasks = [TaskEnv(task, seed, options) for task in names]
    for task, states in zip(tasks, _play(policy, tasks), strict=True):
        yield Film(task.name, _render(task.env, states), task.episode_success, task.env.curr_path_length)


def _play(policy: Callable[[Any], Any], tasks: Sequence[Any]) -> list[list[NDArray[np.float64]]]:
    """The simulators' states at every fourth step of an episode and at its end, by task."""
    from envs.metaworld.task import physics_of

    observations = np.stack([task.reset() for task in tasks]).astype(np.float32)
    states = [[physics_of(task.env)] for task in tasks]
    ends = [task.options.horizon for task in tasks]
    step = 0
    while (step := step + 1) <= max(ends):
        actions = np.clip(np.asarray(policy(observations), np.float32), -1.0, 1.0)
        for index, task in enumerate(tasks):
            if step > ends[index]:
                continue
            outcome = task.step(actions[index])
            observations[index] = outcome.next_observations
            if outcome.truncated or task.episode_success:
                ends[index] = min(ends[index], step if outcome.truncated else step + _AFTER_SUCCESS)
            if step % _EVERY == 0 or step == ends[index]:
                states[index].append(physics_of(task.env))
    return states


def _render(env: Any, states: Sequence[NDArray[np.float64]]) -> list[Frame]:
    import mujoco

    from envs.metaworld.task import PHYSICS

    data = mujoco.MjData(env.model)
    camera = mujoco.MjvCamera()
    for name, value in _CAMERA.items():
        setattr(camera, name, value)
    env.model.vis.quality.offsamples = 0  # with shadows, five times as long where there is no GPU
    frames = []
    with mujoco.Renderer(env.model, SIZE, SIZE) as renderer:
        for state in states:
            mujoco.mj_setState(env.model, data, state, PHYSICS)
            mujoco.mj_forward(env.model, data)
            renderer.update_scene(data, camera)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            frames.append(renderer.render())
    return frames
