"""A section: what a report says of one comparison, ready to be shown; what kind of runs it is of no longer matters."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtrl.report.comparison import Comparison
from mtrl.report.drawing import Picture
from mtrl.report.tables import Table

_SHOWN_VERSIONS = ("mtrl", "torch", "metaworld", "mujoco")


@dataclass(frozen=True)
class Link:
    """A file beside the report.

    Attributes:
        file: where it is.
        name: what it shows.
    """

    file: Path
    name: str


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
    def facts(self) -> str:
        """What was compared, and by what."""
        runs = self.comparison.runs
        finished = sum(run.summary is not None for run in runs)
        return (
            f"{len(self.comparison.tasks)} tasks, {len(runs)} runs ({finished} finished, "
            f"{len(self.comparison.compared)} scored), compared {self.compared_by}. Baseline: "
            f"{self.comparison.baseline}."
        )

    @property
    def videos(self) -> list[Link]:
        """The contact sheets that ``scripts/evaluate.py`` has left in the runs' directories."""
        return [
            Link(sheet, f"{run.method}, seed {run.seed}, step {sheet.parent.name.removeprefix('video-')}")
            for run in self.comparison.runs
            for sheet in sorted(run.directory.glob("video-*/contact_sheet.png"))
        ]

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
        hardware = dict.fromkeys(machine.hardware for machine in machines)
        return " · ".join(filter(None, [f"Seeds {self._seeds}", "; ".join(hardware), ", ".join(versions)]))

    @property
    def making(self) -> list[str]:
        """All that is needed to make the runs again, a sentence each."""
        machines = self.comparison.machines
        versions = dict.fromkeys(", ".join(map(" ".join, machine.versions.items())) for machine in machines)
        return [
            f"Seeds of the runs: {self._seeds}. Seed of the bootstrap: {self.comparison.seed}.",
            *(f"Hardware: {line}." for line in dict.fromkeys(machine.hardware for machine in machines)),
            *(f"Versions: {line}." for line in versions if line),
        ]

    @property
    def commands(self) -> list[str]:
        """That of the first finished run of each method, as far as a run says how it was started."""
        finished = [[run.summary for run in method.runs if run.summary] for method in self.comparison.methods]
        commands = [next((own.command for own in summaries if own.command), None) for summaries in finished]
        return list(dict.fromkeys(typed(command) for command in commands if command))

    @property
    def _seeds(self) -> str:
        """Those of scored runs, consecutive ones as a range."""
        ranges: list[list[int]] = []
        for seed in sorted({seed for method in self.comparison.methods for seed in method.seeds}):
            if ranges and seed == ranges[-1][1] + 1:
                ranges[-1][1] = seed
            else:
                ranges.append([seed, seed])
        return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in ranges)


def typed(command: Sequence[str]) -> str:
    """A command as one types it."""
    return shlex.join(["python", *command])
