"""Whoever scripts hosts finds every reason for which the simulator refuses in docs/grpc.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from lufleet.v1 import fleet_pb2, host_pb2

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "grpc.md").read_text()
#: Calls that take a reason.
REFUSING = {"HostStateError", "HostPanicked", "NotHere", "_precondition"}


def reasons() -> Iterator[str]:
    for folder in ("node", "fleet"):
        for path in (ROOT / folder).glob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") in REFUSING:
                    words = [a for arg in call.args for a in ast.walk(arg)]
                    texts = [word.value for word in words if isinstance(word, ast.Constant)]
                    yield from (str(text) for text in texts if re.fullmatch("[A-Z_]+", str(text)))


def test_every_reason_is_listed() -> None:
    found = set(reasons())
    assert {"NO_AGENT", "NO_SUCH_FAULT", "HOST_IS_UPDATING", "ROLLOUT_STARTED"} <= found
    assert not [reason for reason in sorted(found) if f"`{reason}`" not in DOCS]


def test_every_rpc_is_listed() -> None:
    services = (host_pb2.DESCRIPTOR, fleet_pb2.DESCRIPTOR)
    rpcs = [
        method.name
        for file in services
        for service in file.services_by_name.values()
        for method in service.methods
    ]
    assert not [name for name in rpcs if f"`{name}`" not in DOCS]
