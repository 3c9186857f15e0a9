"""The report of a comparison: one page that opens anywhere, figures for a paper, tables for a spreadsheet."""

import base64
import dataclasses
import os
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mtrl.report.comparison import Comparison, TrainingComparison, hardware_of
from mtrl.report.drawing import Picture
from mtrl.report.figures import pictures
from mtrl.report.statistics import SIGNIFICANCE, best_by_luck
from mtrl.report.supervised import SupervisedComparison
from mtrl.report.tables import Table, tables, text_of
from mtrl.run.files import write_text

_SHOWN_VERSIONS = ("mtrl", "torch", "metaworld", "mujoco")

_MOST_SENTENCES = 8

_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 68rem;
  padding: 1rem; }
h1 { font-size: 1.6rem; margin: 1rem 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.facts, figcaption, .note { color: #555; font-size: .9rem; }
.made { font-size: .78rem; color: #777; overflow-wrap: anywhere; }
.warnings { background: #fff6e5; border-left: 4px solid #e69f00; padding: .6rem 1rem; margin: 1rem 0; }
.warnings ul, .verdicts ul { margin: .2rem 0; padding-left: 1.2rem; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
figure { margin: 0 0 1rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th { border-bottom: 2px solid #999; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; background: #f5f5f5; padding: .6rem; font-size: .8rem; }
"""


def write_report(comparisons: Sequence[Comparison], folder: Path, command: Sequence[str]) -> Path:
    """Writes ``index.html``, ``figures/`` (PNG and PDF) and ``tables/`` (CSV and Markdown).

    Args:
        comparisons: what to report, a section each; where there are several, their files begin with a number.
        folder: where; made if missing, files in it are replaced.
        command: what was typed, for the reader who wants to do it again.

    Returns:
        The page: one file without links to others (except for videos that the runs hold), scripts or the network.
    """
    for directory in (folder / "figures", folder / "tables"):
        directory.mkdir(parents=True, exist_ok=True)
    titles = [_title(comparison) for comparison in comparisons]
    page = folder / "index.html"
    write_text(
        page,
        "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><head><meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape('; '.join(titles))}</title><style>{_CSS}</style></head><body>",
                *(
                    _section(comparison, folder, f"{number}-" if len(comparisons) > 1 else "", command)
                    for number, comparison in enumerate(comparisons, 1)
                ),
                "</body></html>\n",
            ]
        ),
    )
    return page


def verdicts(comparison: Comparison) -> list[str]:
    """What the comparison says: a sentence for each method other than the baseline, and how to read them."""
    if len(comparison.methods) == 1:
        return [f"Only {comparison.baseline} was run: there is nothing to compare it with."]
    sentences = [paired.sentence() for paired in comparison.paired]
    if len(sentences) > _MOST_SENTENCES:
        by_verdict: dict[str, list[str]] = {}
        for paired in sorted(comparison.paired, key=lambda paired: paired.verdict):
            by_verdict.setdefault(paired.verdict, []).append(paired.method)
        sentences = [
            f"Against {comparison.baseline}, {verdict}: {', '.join(names)}." for verdict, names in by_verdict.items()
        ]
    count = max((paired.comparisons for paired in comparison.paired), default=0)
    adjusted = f", adjusted for {count} comparisons (Holm, 1979)" if count > 1 else ""
    if any(paired.seeds for paired in comparison.paired):
        sentences.append(
            f"Differences are means over all tasks ({comparison.score}), with 95% intervals; p is that of a two-sided "
            f"sign-flip test over seeds{adjusted}; significant is p of at most {SIGNIFICANCE}. No significant "
            "difference is not evidence of equality: the interval says what is still possible."
        )
    return sentences


def bias_of_best(comparison: TrainingComparison) -> str | None:
    """How much of the best score over all updates may be luck; None where nothing is known of its noise."""
    episodes = comparison.runs[0].config.get("eval", {}).get("episodes")
    scored = [method for method in comparison.methods if method.seeds]
    if comparison.metric != "eval/success_mean" or not episodes:
        return None
    method = max(scored, key=lambda method: float(method.best.mean()))
    rates = np.clip(method.scores.mean(0), 0, 1)
    luck = best_by_luck(rates, episodes, comparison.evaluations, np.random.default_rng(comparison.seed))
    return (
        f"The best of {comparison.evaluations} evaluations flatters: it picks the luckiest. If every evaluation were "
        f"a fresh draw of {episodes} episodes per task at {method.name}'s mean rates of the last "
        f"{comparison.last_k} evaluations ({rates.mean():.3f}), the best would be about {luck:.3f} without any "
        f"progress; {method.name} shows {method.best.mean():.3f}."
    )


def _title(comparison: Comparison) -> str:
    tasks = f" ({', '.join(comparison.tasks)})" if isinstance(comparison, SupervisedComparison) else ""
    names = [method.name for method in comparison.methods]
    return f"{comparison.benchmark}{tasks}: {', '.join(names) if len(names) <= 4 else f'{len(names)} methods'}"


def _section(comparison: Comparison, folder: Path, prefix: str, command: Sequence[str]) -> str:
    """Everything about a comparison; writes its figures and tables too."""
    drawn, counted = pictures(comparison), tables(comparison)
    made = _made(comparison, command)
    figures = []
    for picture in drawn:
        picture = dataclasses.replace(picture, name=prefix + picture.name)
        picture.save(folder / "figures")
        figures.append(_figure(picture, folder / "figures", made))
    for table in counted:
        write_text(folder / "tables" / f"{prefix}{table.name}.csv", table.csv())
        write_text(folder / "tables" / f"{prefix}{table.name}.md", table.markdown())
    bias = bias_of_best(comparison) if isinstance(comparison, TrainingComparison) else None
    return "\n".join(
        [
            f'<h1>{escape(_title(comparison))}</h1><p class="facts">{escape(_facts(comparison))}</p>',
            f'<div class="verdicts">{_list(verdicts(comparison))}</div>',
            f'<div class="warnings">{_list(comparison.warnings)}</div>' if comparison.warnings else "",
            *figures,
            *(_table(table, bias if table.name == "methods" else None) for table in counted if table.rows),
            _videos(comparison, folder),
            _making(comparison, command),
        ]
    )


def _facts(comparison: Comparison) -> str:
    finished = sum(run.summary is not None for run in comparison.runs)
    if isinstance(comparison, TrainingComparison):
        by = f"at step {comparison.step:,} by {comparison.metric}, mean of the last {comparison.last_k} evaluations"
    else:
        by = f"on the test split by {comparison.score}"
    return (
        f"{len(comparison.tasks)} tasks, {len(comparison.runs)} runs ({finished} finished, {len(comparison.compared)} "
        f"scored), compared {by}. Baseline: {comparison.baseline}."
    )


def _videos(comparison: Comparison, folder: Path) -> str:
    """Links to the contact sheets that ``scripts/evaluate.py`` has left in the runs' directories."""
    items = []
    for run in comparison.runs:
        for sheet in sorted(run.directory.glob("video-*/contact_sheet.png")):
            target = quote(os.path.relpath(sheet, folder))
            name = f"{run.method}, seed {run.seed}, step {sheet.parent.name.removeprefix('video-')}"
            items.append(f'<li><a href="{escape(target)}">{escape(name)}</a>: {escape(str(sheet.parent))}</li>')
    return f"<h2>Videos</h2><ul>{''.join(items)}</ul>" if items else ""


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _figure(picture: Picture, figures: Path, made: str) -> str:
    data = base64.b64encode((figures / f"{picture.name}.png").read_bytes()).decode()
    return (
        f'<h2>{escape(picture.title)}</h2><figure><img alt="{escape(picture.title)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{escape(picture.caption)}'
        f'<div class="made">{escape(made)}</div></figcaption></figure>'
    )


def _table(table: Table, more: str | None) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(text_of(cell))}</td>' for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in (table.note, more) if note)
    return (
        f'<h2>{escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{notes}"
    )


def _made(comparison: Comparison, command: Sequence[str]) -> str:
    """Seeds, hardware, versions and command in one line, for the reader of a single figure."""
    machines = _machines(comparison)
    versions = dict.fromkeys(
        f"{package} {machine['versions'][package]}"
        for package in _SHOWN_VERSIONS
        for machine in machines
        if package in machine["versions"]
    )
    hardware = dict.fromkeys(hardware_of(machine) for machine in machines)
    seeds = f"Seeds {_seeds(comparison)}"
    return " · ".join(part for part in (seeds, "; ".join(hardware), ", ".join(versions), _typed(command)) if part)


def _making(comparison: Comparison, command: Sequence[str]) -> str:
    """Everything that is needed to make the runs and this report again."""
    machines = _machines(comparison)
    hardware = dict.fromkeys(hardware_of(machine) for machine in machines)
    versions = dict.fromkeys(
        ", ".join(f"{package} {version}" for package, version in machine["versions"].items()) for machine in machines
    )
    runs = [next((run for run in method.runs if run.summary), None) for method in comparison.methods]
    typed = dict.fromkeys(_typed(run.summary["command"]) for run in runs if run and run.summary)
    lines = [
        f"Seeds of the runs: {_seeds(comparison)}. Seed of the bootstrap: {comparison.seed}.",
        *(f"Hardware: {line}." for line in hardware),
        *(f"Versions: {line}." for line in versions),
        "Figures are in figures/ as PNG and PDF, tables in tables/ as CSV (all digits) and Markdown.",
    ]
    commands = "\n".join([*typed, _typed(command)])
    return (
        f'<h2>How this was made</h2>{_list(lines)}<p class="note">The first finished run of each method, and this '
        f"report:</p><pre>{escape(commands)}</pre>"
    )


def _machines(comparison: Comparison) -> list[dict[str, Any]]:
    return [run.summary["machine"] for run in comparison.runs if run.summary and "machine" in run.summary]


def _seeds(comparison: Comparison) -> str:
    """The seeds of scored runs, consecutive ones as a range."""
    ranges: list[list[int]] = []
    for seed in sorted({seed for method in comparison.methods for seed in method.seeds}):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in ranges)


def _typed(command: Sequence[str]) -> str:
    return shlex.join(["python", *command])
