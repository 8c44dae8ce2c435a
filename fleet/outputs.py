"""What a run leaves behind in its directory: everything that is made from its record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from fleet.event_store import write_event_store
from fleet.report import write_report
from fleet.results import Result, summarise, write_result
from fleet.unwritable import writing

if TYPE_CHECKING:
    from pathlib import Path

    from fleet.api import RunRecord

__all__ = ["Outputs", "write_outputs"]


class Outputs(Struct, frozen=True):
    """The summary of a run and where it and the rest were written."""

    result: Result
    result_json: Path
    report_html: Path
    event_store: Path


def write_outputs(record: RunRecord, out: Path) -> Outputs:
    """Write `result.json`, `report.html` and `run.duckdb` into `out`, which is made if need be.

    Raises:
        CannotWrite: a file cannot be written there.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    outputs = Outputs(
        result=summarise(record),
        result_json=out / "result.json",
        report_html=out / "report.html",
        event_store=out / "run.duckdb",
    )
    with writing(outputs.result_json):
        write_result(outputs.result, outputs.result_json)
    with writing(outputs.event_store):
        write_event_store(record, outputs.event_store)
    with writing(outputs.report_html):
        write_report(record, outputs.result, outputs.report_html)
    return outputs
