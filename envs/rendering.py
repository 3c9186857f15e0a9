"""Films of a policy's episodes, as GIFs and on a contact sheet. Importing this loads no simulator."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mtrl.errors import RunError

SIZE = 240
"""Pixels of a frame's width and height."""
MILLISECONDS = 50
"""Between two frames."""
_COLUMNS = 10
_CAPTION = 34
_COLOURS = {True: "#009E73", False: "#D55E00", None: "#777777"}
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 8, 8) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""

Frame = NDArray[np.uint8]


def use_offscreen_backend(*, required: bool = True) -> None:
    """Has simulators render without a screen; call it before importing them.

    MuJoCo does as ``MUJOCO_GL`` says or else in any way, pygame as ``SDL_VIDEODRIVER`` says or else without a driver.

    Raises:
        RunError: if none works here, and one is required: of other environments, some draw without MuJoCo.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    asked = os.environ.get("MUJOCO_GL")
    tried = [asked] if asked else ["egl", "osmesa"]
    for backend in tried:
        environment = os.environ | {"MUJOCO_GL": backend}
        done = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, check=False)
        if done.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return
    if required:
        raise RunError(
            f"video: cannot render off-screen here (tried MUJOCO_GL={', '.join(tried)}): install EGL "
            "(Debian: libegl1 libopengl0) or OSMesa (Debian: libosmesa6)"
        )


@dataclass(frozen=True)
class Film:
    """An episode."""

    task: str
    frames: list[Frame]
    """Each ``[SIZE, SIZE, 3]``."""
    success: bool | None
    """Whether any step was one; None where the task has no success."""
    steps: int
    """How many the episode had."""
    episode_return: float | None = None
    """The sum of its rewards, where it was played to its end."""

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.success is not None:
            return "success" if self.success else "failure"
        return f"return {self.episode_return:.1f}"

    def save(self, path: Path) -> None:
        """Writes a GIF that plays at the simulation's own speed, over and over, and rests on its last frame."""
        first, *others = (Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in self.frames)
        durations = [MILLISECONDS] * len(others) + [1000]
        first.save(path, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def contact_sheet(films: Sequence[tuple[Film, Frame]], path: Path) -> None:
    """Writes a PNG with a frame (``[SIZE, SIZE, 3]``) of every film, its task's name and how the episode ended."""
    columns = min(_COLUMNS, int(np.ceil(np.sqrt(2 * len(films)))))
    rows = -(-len(films) // columns)
    sheet = Image.new("RGB", (columns * SIZE, rows * (SIZE + _CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, (film, frame) in enumerate(films):
        row, column = divmod(index, columns)
        left, top = column * SIZE, row * (SIZE + _CAPTION)
        colour = _COLOURS[film.success]
        sheet.paste(Image.fromarray(frame), (left, top))
        draw.rectangle((left + 1, top + 1, left + SIZE - 2, top + SIZE - 2), outline=colour, width=4)
        draw.text((left + 4, top + SIZE), film.task, "black", font)
        draw.text((left + 4, top + SIZE + 16), film.outcome, colour, font)
    sheet.save(path, format="PNG")
