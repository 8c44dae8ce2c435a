"""The report in a real browser: it loads without a complaint and shows what result.json says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from fleet.outputs import write_outputs
from tests.fleet.sample_run import make_run

#: Fails the page's own policy, so a browser that reports nothing was not looking.
_FORBIDDEN = '<img src="https://example.invalid/x.png" alt="">'

#: Leaves in the title what a reader of a page as narrow as a telephone would not see: the page as
#: a whole scrolls sideways, a table's cell runs into the next one, a chart cuts a text off.
_MEASURE = """<script>
document.body.style.width = "400px";
const found = [], box = element => element.getBoundingClientRect();
if (document.documentElement.scrollWidth > innerWidth) found.push("page");
for (const cell of document.querySelectorAll("th, td"))
  if (cell.scrollWidth > cell.clientWidth + 1) found.push("cell " + cell.textContent);
for (const text of document.querySelectorAll("svg text"))
  if (box(text).width && box(text).left < box(text.ownerSVGElement).left - 1)
    found.push("text " + text.textContent);
document.title = JSON.stringify(found);
</script>"""


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's DOM after loading, and what the browser said on its console."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is missing: Debian package chromium")
    done = subprocess.run(
        [
            *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", "--log-level=0", f"--user-data-dir={profile}"),
            *("--no-first-run", "--disable-dev-shm-usage", "--virtual-time-budget=2000"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout, re.findall(r"CONSOLE[:(].*", done.stderr)


def shown(dom: str) -> str:
    """The text of a page, as one line."""
    body = re.sub(r"<(style|title|desc)\b.*?</\1>", " ", dom, flags=re.DOTALL)
    plain = unescape(re.sub(r"<[^>]+>", " ", body)).replace("\N{NO-BREAK SPACE}", " ")
    return " ".join(plain.split())


def test_the_report_loads_without_errors_and_shows_the_figures_of_the_result(
    tmp_path: Path,
) -> None:
    outputs = write_outputs(make_run(lose_a_vm=True), tmp_path)
    dom, console = browse(outputs.report_html, tmp_path / "profile")
    assert console == []
    result = json.loads(outputs.result_json.read_text())
    text = shown(dom)
    hosts, vms = result["hosts"], result["vms"]
    assert f"{hosts['updated']} of {hosts['total']} hosts run {result['target_release']}" in text
    assert f"{vms['preserved']} of {vms['total']} VMs kept their memory" in text
    assert f"{result['downtime_seconds']['p50']:.1f} s" in text
    for phase, summary in result["blackout_phases_seconds"].items():
        assert re.search(rf"{phase} blackout {summary['count']} ", text), phase
    for size, pages in result["preserved_pages"].items():
        assert f"{size} {pages:,}" in text
    assert result["digest"] in text
    assert dom.count("<svg") == 3


def test_the_browser_would_have_told_of_a_page_that_fetches(tmp_path: Path) -> None:
    outputs = write_outputs(make_run(hosts=2), tmp_path)
    html = outputs.report_html.read_text("utf-8").replace("</main>", f"{_FORBIDDEN}</main>")
    outputs.report_html.write_text(html, "utf-8")
    _, console = browse(outputs.report_html, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)


def hidden(page: Path, directory: Path) -> list[str]:
    """What `_MEASURE` finds on a page."""
    html = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text("utf-8"))
    copy = directory / "measured.html"
    copy.write_text(html.replace("</body>", f"{_MEASURE}</body>"), "utf-8")
    dom, console = browse(copy, directory / "profile")
    assert console == []
    title = re.search("<title>(.*?)</title>", dom)
    assert title is not None
    found: list[str] = json.loads(unescape(title[1]))
    return found


def test_on_a_narrow_screen_nothing_lies_on_anything_else(tmp_path: Path) -> None:
    outputs = write_outputs(make_run(lose_a_vm=True), tmp_path)
    assert hidden(outputs.report_html, tmp_path) == []
    options = ("--memory", "16GiB", "--vms", "4", "--out", str(tmp_path))
    done = CliRunner().invoke(app, ["designs", *options])
    assert done.exit_code == 0, done.output
    assert hidden(tmp_path / "report.html", tmp_path) == []
