"""The example of docs/checking.md prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "checking.md"


def test_the_example_prints_the_owners_that_the_page_shows() -> None:
    text = DOCS.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(DOCS), "exec"), {})  # our own page
    assert sorted(printed.getvalue().splitlines()) == sorted(shown.splitlines())
