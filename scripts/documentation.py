"""What the documentation site fills in when it is built: every method, from its docstring and the table of costs."""

import inspect
import json
import re
from typing import Any

from griffe import Docstring, DocstringSection

from mtrl import combiners
from mtrl.ranges import described

METHODS = "<!-- methods -->"
_NEEDS = {"losses": "losses", "gramian": "Gramian", "jacobian": "Jacobian"}


def on_page_markdown(markdown: str, **page: Any) -> str:
    """The hook that the generator calls for every page: puts what the marks stand for in their place."""
    if METHODS not in markdown:
        return markdown
    told = methods(costs(markdown))
    linked = re.sub(r"^\| `(\w+)` \|", r"| [`\1`](#\1) |", markdown, flags=re.MULTILINE)
    return linked.replace(METHODS, told)


def on_page_content(html: str, page: Any, **rest: Any) -> str:
    """The hook for a page as HTML: the links of notebooks, which the generator leaves as they are, go to its pages."""
    notebook = page.file.src_uri.endswith(".ipynb")
    return re.sub(r'(href="(?!\w+:)[^"#]+)\.md', r"\1.html", html) if notebook else html


def costs(markdown: str) -> dict[str, str]:
    """What each method costs, in words, by the page's first table: its third column and the one before the last."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", markdown, re.MULTILINE)
    cells = {name: [cell.strip() for cell in row.split("|")] for name, row in reversed(rows)}
    return {name: f"{row[2]} (10 tasks), {row[-2]} (50 tasks of 26 samples)" for name, row in cells.items()}


def methods(costs: dict[str, str]) -> str:
    """Every method with its equation, source, needs, cost and options with their defaults and ranges."""
    return "\n\n".join(_method(name, costs[name]) for name in combiners.names())


def _method(name: str, cost: str) -> str:
    method = combiners.get(name)
    sections = Docstring(inspect.getdoc(method) or "").parse("google", warnings=False)
    text = "\n\n".join(_marked(section.value) for section in sections if section.kind.value == "text")
    source = re.search(r"\(([^()]*\b(?:19|20)\d\d[^()]*)\)", text)
    assert source is not None, name
    needs = f"{_NEEDS[method.needs]}{', of positive losses' if method.positive_losses else ''}"
    if method.needs != "jacobian":
        needs += f"; heads are {'' if method.weights_specific else 'not '}weighted"
    facts = {"Source": source[1], "Needs": needs, "Cost here": f"{cost}, times an update of `unitary`"}
    rows = [f"| {key} | {value} |" for key, value in (facts | _options(method, sections)).items()]
    return "\n\n".join([f"### {name}", text, "\n".join(["| | |", "|---|---|", *rows])])


def _options(method: type[combiners.Combiner], sections: list[DocstringSection]) -> dict[str, str]:
    """The rows of the options: each with its default, range and description."""
    told = {
        one.name: one.description for section in sections if section.kind.value == "parameters" for one in section.value
    }
    return {
        f"`{name}={_default(option)}`": ": ".join(
            filter(None, [described(option.annotation), _marked(" ".join(told.get(name, "").split()))])
        )
        for name, option in method.options().items()
    }


def _marked(text: str) -> str:
    """A docstring's text as Markdown: code as such, equations in lines of their own, methods by their names."""
    text = re.sub(r"^ {4}(?=``)", "", text, flags=re.MULTILINE)
    text = re.sub(r"``(.*?)``", r"`\1`", text, flags=re.DOTALL)
    for name in combiners.names():
        text = text.replace(f"`{combiners.get(name).__name__}`", f"[`{name}`](#{name})")
    return text


def _default(option: inspect.Parameter) -> str:
    if option.default is option.empty:
        return "..."
    return (
        json.dumps(option.default)
        if option.default is None or isinstance(option.default, bool)
        else str(option.default)
    )
