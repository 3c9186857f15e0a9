"""Files of the user's own: loaded once, and told in one line where they are missing or fail."""

from pathlib import Path

import pytest

from mtrl.errors import InputError
from mtrl.plugins import load_file


def test_a_file_is_executed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("values = []\n")
    monkeypatch.chdir(tmp_path)
    module = load_file("plugins", "mine.py")
    assert load_file("plugins", tmp_path / "mine.py") is module
    assert module.values == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "plugins: there is no Python file 'mine.py'"),
        ("def f():\n    return 1 / 0\n\nf()\n", "plugins: line 2 of 'mine.py' fails: ZeroDivisionError: division by"),
        ("def (", "plugins: 'mine.py' fails: SyntaxError: .*line 1"),
        ("import nothing_of_this_name", "plugins: line 1 of 'mine.py' fails: ModuleNotFoundError: No module named"),
        ("from mtrl.combiners import *\n@register('cagrad')\nclass A(Combiner):\n    needs = 'losses'", ".* twice: "),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("mine.py").write_text(text)
    with pytest.raises(InputError, match=f"^{message}"):
        load_file("plugins", "mine.py")


def test_a_file_that_was_mended_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = y")
    with pytest.raises(InputError):
        load_file("plugins", file)
    file.write_text("x = 1  # and longer than before")
    assert load_file("plugins", file).x == 1
