"""A section: what a report says of one comparison, ready to be shown; what kind of runs it is of no longer matters."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtrl.report.comparison import Comparison
from mtrl.report.drawing import Picture
from mtrl.report.runs import Run
from mtrl.report.tables import Table

_SHOWN_VERSIONS = ("mtrl", "torch", "metaworld", "mujoco")


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        comparison: what it is of.
        subject: what was learned.
        compared_by: at what point and by what the methods are compared.
        pictures: the figures.
        headline: the most important columns of the most important table, for a terminal.
        tables: all of them; those without rows are files, but not shown.
    """

    comparison: Comparison
    subject: str
    compared_by: str
    pictures: list[Picture]
    headline: Table
    tables: list[Table]

    @property
    def title(self) -> str:
        """What it is about."""
        names = [method.name for method in self.comparison.methods]
        return f"{self.subject}: {', '.join(names) if len(names) <= 4 else f'{len(names)} methods'}"

    @property
    def videos(self) -> list[tuple[Run, Path]]:
        """The contact sheets that ``scripts/evaluate.py`` has left in the runs' directories."""
        found = [(run, run.directory.glob("video-*/contact_sheet.png")) for run in self.comparison.runs]
        return [(run, sheet) for run, sheets in found for sheet in sorted(sheets)]

    @property
    def made(self) -> str:
        """Seeds, hardware and versions in one line, for the reader of a single figure."""
        machines = self.comparison.machines
        versions = dict.fromkeys(
            f"{package} {machine.versions[package]}"
            for package in _SHOWN_VERSIONS
            for machine in machines
            if package in machine.versions
        )
        return " · ".join(filter(None, [f"Seeds {self.seeds}", "; ".join(self.hardware), ", ".join(versions)]))

    @property
    def hardware(self) -> list[str]:
        """That of the finished runs."""
        return list(dict.fromkeys(machine.hardware for machine in self.comparison.machines))

    @property
    def versions(self) -> list[str]:
        """Those of the finished runs, of every package."""
        versions = [", ".join(map(" ".join, machine.versions.items())) for machine in self.comparison.machines]
        return list(dict.fromkeys(filter(None, versions)))

    @property
    def commands(self) -> list[str]:
        """That of the first finished run of each method, as far as a run says how it was started."""
        of_methods = [[run.summary.command for run in own.runs if run.summary] for own in self.comparison.methods]
        return list(dict.fromkeys(typed(command) for own in of_methods for command in list(filter(None, own))[:1]))

    @property
    def seeds(self) -> str:
        """Those of scored runs, and those that chose their options."""
        scored = _ranges(seed for method in self.comparison.methods for seed in method.seeds)
        tuned = _ranges(self.comparison.tuning_seeds)
        return f"{scored}, options chosen by {tuned}" if tuned else scored


def _ranges(seeds: Iterable[int]) -> str:
    """Seeds in order, consecutive ones as a range."""
    ranges: list[list[int]] = []
    for seed in sorted({*seeds}):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1][1:] = [seed]
        else:
            ranges.append([seed])
    return ", ".join(" to ".join(map(str, ends)) for ends in ranges)


def typed(command: Sequence[str]) -> str:
    """A command as one types it."""
    return shlex.join(["python", *command])
