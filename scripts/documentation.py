"""What the documentation site fills in when it is built: the table of methods, from their docstrings."""

import inspect
import json
import re
from typing import Any

from mtrl import combiners
from mtrl.ranges import described

METHODS = "<!-- methods -->"


def on_page_markdown(markdown: str, **page: Any) -> str:
    """The hook that the generator calls for every page: puts what the marks stand for in their place."""
    return markdown.replace(METHODS, methods()) if METHODS in markdown else markdown


def methods() -> str:
    """Every method with its equation, source, options and defaults."""
    found = []
    for name in combiners.names():
        method = combiners.get(name)
        summary = re.sub(r"``([^`]*)``", r"`\1`", inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " ")
        needs = {"losses": "losses", "gramian": "Gramian", "jacobian": "Jacobian"}[method.needs]
        options = ", ".join(
            f"`{option.name}={_default(option)}`{_range(option)}" for option in method.options().values()
        )
        heads = "" if method.needs == "jacobian" else f" Heads are {'' if method.weights_specific else 'not '}weighted."
        lines = [
            f"### {name}",
            summary,
            f"Needs: {needs}{', of positive losses' if method.positive_losses else ''}.{heads}"
            + (f" Options: {options}." if options else ""),
        ]
        found.append("\n\n".join(lines))
    return "\n\n".join(found)


def _default(option: inspect.Parameter) -> str:
    if option.default is option.empty:
        return "..."
    return (
        json.dumps(option.default)
        if option.default is None or isinstance(option.default, bool)
        else str(option.default)
    )


def _range(option: inspect.Parameter) -> str:
    told = described(option.annotation)
    return f" ({told})" if told else ""
