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
        title: what it is about.
        facts: what was compared, and by what.
        verdicts: what was found, a sentence each.
        warnings: what a reader has to know, a sentence each.
        pictures: the figures.
        headline: the most important columns of the most important table, for a terminal.
        tables: all of them; those without rows are files, but not shown.
        videos: films of the runs.
        made: seeds, hardware and versions in one line, for the reader of a single figure.
        making: all that is needed to make the runs again, a sentence each.
        commands: of a run of each method.
    """

    title: str
    facts: str
    verdicts: list[str]
    warnings: list[str]
    pictures: list[Picture]
    headline: Table
    tables: list[Table]
    videos: list[Link]
    made: str
    making: list[str]
    commands: list[str]


def section_of(
    comparison: Comparison,
    *,
    subject: str,
    compared_by: str,
    pictures: Sequence[Picture | None],
    headline: Table,
    tables: list[Table],
) -> Section:
    """The section of a comparison.

    Args:
        comparison: what it is of.
        subject: what was learned.
        compared_by: at what point and by what the methods are compared.
        pictures: the figures; None for those that the runs hold no data for.
        headline: see `Section`.
        tables: all of them.
    """
    names = [method.name for method in comparison.methods]
    finished = sum(run.summary is not None for run in comparison.runs)
    machines = comparison.machines
    hardware = dict.fromkeys(machine.hardware for machine in machines)
    shown = dict.fromkeys(
        f"{package} {machine.versions[package]}"
        for package in _SHOWN_VERSIONS
        for machine in machines
        if package in machine.versions
    )
    versions = dict.fromkeys(
        ", ".join(f"{package} {version}" for package, version in machine.versions.items()) for machine in machines
    )
    return Section(
        title=f"{subject}: {', '.join(names) if len(names) <= 4 else f'{len(names)} methods'}",
        facts=f"{len(comparison.tasks)} tasks, {len(comparison.runs)} runs ({finished} finished, "
        f"{len(comparison.compared)} scored), compared {compared_by}. Baseline: {comparison.baseline}.",
        verdicts=comparison.verdicts(),
        warnings=comparison.warnings,
        pictures=[picture for picture in pictures if picture is not None],
        headline=headline,
        tables=tables,
        videos=_videos(comparison),
        made=" · ".join(filter(None, [f"Seeds {_seeds(comparison)}", "; ".join(hardware), ", ".join(shown)])),
        making=[
            f"Seeds of the runs: {_seeds(comparison)}. Seed of the bootstrap: {comparison.seed}.",
            *(f"Hardware: {line}." for line in hardware),
            *(f"Versions: {line}." for line in versions if line),
        ],
        commands=_commands(comparison),
    )


def typed(command: Sequence[str]) -> str:
    """A command as one types it."""
    return shlex.join(["python", *command])


def _videos(comparison: Comparison) -> list[Link]:
    """The contact sheets that ``scripts/evaluate.py`` has left in the runs' directories."""
    return [
        Link(sheet, f"{run.method}, seed {run.seed}, step {sheet.parent.name.removeprefix('video-')}")
        for run in comparison.runs
        for sheet in sorted(run.directory.glob("video-*/contact_sheet.png"))
    ]


def _commands(comparison: Comparison) -> list[str]:
    """That of the first finished run of each method, as far as a run says how it was started."""
    finished = [[run.summary for run in method.runs if run.summary] for method in comparison.methods]
    commands = [next((own.command for own in summaries if own.command), None) for summaries in finished]
    return list(dict.fromkeys(typed(command) for command in commands if command))


def _seeds(comparison: Comparison) -> str:
    """The seeds of scored runs, consecutive ones as a range."""
    ranges: list[list[int]] = []
    for seed in sorted({seed for method in comparison.methods for seed in method.seeds}):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in ranges)
