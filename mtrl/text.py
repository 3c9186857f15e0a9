"""How numbers and counts are said to people, and values to a shell and to Hydra."""

import math
import re
import shlex
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]*[A-Za-z_./-][A-Za-z0-9_./+-]*", re.ASCII)
_NOT_TEXT = re.compile(r"[+-]?(?:nan|inf|infinity|null|true|false|[\d_.]+(?:e[+-]?[\d_]+)?)", re.IGNORECASE)


def number(value: float, size: float | None = None, sign: str = "") -> str:
    """A number with three decimals, more where it is small, as a power of ten where it is tiny or huge.

    Args:
        value: what to say.
        size: of the numbers that it stands among, which its digits follow; by default its own.
        sign: ``"+"`` for one in front of positive numbers too.
    """
    size = abs(value) if size is None else size
    if not math.isfinite(value):
        return "-"
    if size >= 1e6 or 0 < size < 1e-4:
        return f"{value:{sign}z.2e}" if value else f"{0:{sign}}"
    decimals = 2 - math.floor(math.log10(size)) if 0 < size < 0.1 else 3
    return f"{value:{sign}z.{decimals}f}"


def counted(count: int, noun: str) -> str:
    """E.g. ``1 run`` or ``1,200 runs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_order(text: str) -> list[str | float]:
    """A key that sorts texts which hold numbers by these: ``rate=0.002`` before ``rate=0.01``, and 1e-4 before both."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [float(part) if index % 2 else part for index, part in enumerate(parts)]


def quoted(value: object) -> str:
    """A value as Hydra's command line reads it whatever it holds, but for interpolations, which stay what they are."""
    text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", str(value))  # Hydra halves backslashes there, and nowhere else
    return "'" + text.replace("'", "\\'") + "'"


def unquoted(text: str) -> str:
    """What Hydra's command line reads a quoted value as; others stay as they are."""
    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        return text
    quote = text[0]
    return re.sub(rf"(\\+)(?={quote}|\Z)", lambda found: found[1][: len(found[1]) // 2], text[1:-1])


def argument(key: str, path: str | Path) -> str:
    """The argument ``key=path`` of one of the scripts, as it is typed into a shell."""
    text = str(path)
    if _PLAIN.fullmatch(text) and not _NOT_TEXT.fullmatch(text):
        return f"{key}={text}"
    text = "./???" if text == "???" else text  # which is Hydra's for a missing value
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # no interpolation
    return shlex.quote(f"{key}={quoted(literal)}")
