"""The examples of docs/python.md do what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "python.md"
_BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


def test_the_examples_print_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parents[1])
    namespace: dict[str, object] = {}
    printed = ""
    pairs = _BLOCK.findall(DOCS.read_text("utf-8"))
    assert [kind for kind, _ in pairs] == ["python", "text"] * (len(pairs) // 2)
    for kind, block in pairs:
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, str(DOCS), "exec"), namespace)
            printed = out.getvalue()
        else:
            lines = [line.rstrip() for line in printed.rstrip().splitlines()]
            assert lines == block.rstrip().splitlines()
