"""Films of a policy's episodes, rendered off-screen. Importing this loads neither MuJoCo nor Meta-World."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from envs.metaworld.vector import TaskVector
from mtrl.errors import RunError

SIZE = 240
"""Pixels of a frame's width and height."""
_EVERY = 4
_AFTER_SUCCESS = 20
_MILLISECONDS = 50  # Meta-World's step is 12.5 ms
# Meta-World's own are upside down or far away.
_CAMERA = {"lookat": (0.0, 0.6, 0.15), "azimuth": 155, "elevation": -35, "distance": 1.3}
_COLUMNS = 10
_CAPTION = 34
_COLOURS = {True: "#009E73", False: "#D55E00"}
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 8, 8) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""

Frame = NDArray[np.uint8]


def use_offscreen_backend() -> None:
    """Has MuJoCo render without a screen, as ``MUJOCO_GL`` says or else in any way; call it before importing MuJoCo.

    Raises:
        RunError: if none works here.
    """
    asked = os.environ.get("MUJOCO_GL")
    tried = [asked] if asked else ["egl", "osmesa"]
    for backend in tried:
        environment = os.environ | {"MUJOCO_GL": backend}
        done = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, check=False)
        if done.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return
    raise RunError(
        f"video: cannot render off-screen here (tried MUJOCO_GL={', '.join(tried)}): install EGL "
        "(Debian: libegl1 libopengl0) or OSMesa (Debian: libosmesa6)"
    )


@dataclass(frozen=True)
class Film:
    """An episode."""

    task: str
    frames: list[Frame]
    """Each ``[SIZE, SIZE, 3]``: one of every four steps, and the last."""
    success: bool
    """Whether any step was one."""
    steps: int
    """How many the episode had; it ends shortly after the first success."""

    def save(self, path: Path) -> None:
        """Writes a GIF that plays at the simulation's own speed, over and over, and rests on its last frame."""
        first, *others = (Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in self.frames)
        durations = [_MILLISECONDS] * len(others) + [1000]
        first.save(path, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def film(policy: Callable[[Any], Any], vector: TaskVector, seed: int) -> Iterator[Film]:
    """Plays the first episode of every task of a vector, which may be closed, and renders one task after the other.

    The tasks are played together, as an evaluation does: a policy's arithmetic may depend on how many observations it
    is given at once. Their states are kept and rendered afterwards, so that one renderer at a time is open.
    The policy maps observations ``[T, 39]`` to actions ``[T, 4]``.
    """
    import mujoco

    from envs.metaworld.task import TaskEnv

    mujoco.set_mju_user_warning(lambda _: None)  # instead of a log file
    options = replace(vector.options, terminate_on_success=False, fast=False)
    tasks = [TaskEnv(task, seed, options) for task in vector.tasks]
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


def contact_sheet(films: Sequence[tuple[str, Frame, bool]], path: Path) -> None:
    """Writes a PNG with a frame (``[SIZE, SIZE, 3]``) of every task, its name and whether its episode was a success."""
    columns = min(_COLUMNS, int(np.ceil(np.sqrt(2 * len(films)))))
    rows = -(-len(films) // columns)
    sheet = Image.new("RGB", (columns * SIZE, rows * (SIZE + _CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, (task, frame, success) in enumerate(films):
        row, column = divmod(index, columns)
        left, top = column * SIZE, row * (SIZE + _CAPTION)
        sheet.paste(Image.fromarray(frame), (left, top))
        draw.rectangle((left + 1, top + 1, left + SIZE - 2, top + SIZE - 2), outline=_COLOURS[success], width=4)
        draw.text((left + 4, top + SIZE), task, "black", font)
        draw.text((left + 4, top + SIZE + 16), "success" if success else "failure", _COLOURS[success], font)
    sheet.save(path, format="PNG")
