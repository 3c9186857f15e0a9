"""The report: one page that opens anywhere, figures for a paper, tables for a spreadsheet."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from mtrl.report.section import Section, typed
from mtrl.report.tables import Table, text_of
from mtrl.run.files import write_text


def write_report(sections: Sequence[Section], folder: Path, command: Sequence[str]) -> Path:
    """Writes ``index.html``, ``figures/`` (PNG and PDF) and ``tables/`` (CSV and Markdown); returns the page.

    The page has no links to other files (except for videos that the runs hold), scripts or the network; it shows the
    command, so that a reader can do it again. The folder is made if missing, files in it are replaced; where there are
    several sections, the names of their files begin with a number.
    """
    figures, tables = folder / "figures", folder / "tables"
    for directory in (figures, tables):
        directory.mkdir(parents=True, exist_ok=True)
    images: dict[int, str] = {}
    for number, section in enumerate(sections, 1):
        prefix = f"{number}-" if len(sections) > 1 else ""
        for picture in section.pictures:
            images[id(picture)] = base64.b64encode(picture.save(figures, prefix)).decode()
        for table in section.tables:
            write_text(tables / f"{prefix}{table.name}.csv", table.csv())
            write_text(tables / f"{prefix}{table.name}.md", table.markdown())
    return _rendered(
        "page.html.j2",
        folder,
        sections=sections,
        command=typed(command),
        image=lambda picture: images[id(picture)],
    )


def write_tables(
    title: str, facts: Sequence[str], tables: Sequence[Table], files: Sequence[Path], folder: Path
) -> Path:
    """Writes ``index.html`` in an existing folder: paragraphs, tables, and links to files; returns the page."""
    return _rendered("tables.html.j2", folder, title=title, facts=facts, tables=tables, files=files)


def _rendered(template: str, folder: Path, **values: Any) -> Path:
    loader = PackageLoader("mtrl.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = folder / "index.html"
    link = {"text_of": text_of, "link": lambda file: quote(os.path.relpath(file, folder))}
    write_text(page, environment.get_template(template).render(**values, **link))
    return page
