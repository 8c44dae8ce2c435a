"""The code beside the protos is what the protos generate, and their linter is content."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lufleet.v1 import fleet_pb2, host_pb2

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
SOURCES = sorted(path.relative_to(PROTO).as_posix() for path in PROTO.rglob("*.proto"))
BIN = Path(sys.executable).parent


def generate(out: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
        + [f"--{kind}_out={out}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
        + SOURCES,
        check=True,
        capture_output=True,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
    )


def generated_files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in sorted(root.rglob("*_pb2*.py*"))
        if "__pycache__" not in path.parts
    }


def test_committed_code_is_what_the_protos_generate(tmp_path: Path) -> None:
    generate(tmp_path)
    fresh, committed = generated_files(tmp_path), generated_files(PROTO)
    assert list(committed) == list(fresh)
    stale = [name for name, text in fresh.items() if committed[name] != text]
    assert not stale, f"run `make proto`: {stale}"


def test_the_three_protos_of_the_contract_are_there() -> None:
    assert [f"lufleet/v1/{name}.proto" for name in ("fleet", "host", "vm")] == SOURCES


def test_buf_finds_nothing() -> None:
    for check in (["lint", str(PROTO)], ["format", "--diff", "--exit-code", str(PROTO)]):
        done = subprocess.run([BIN / "buf", *check], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["host_pb2_grpc", "fleet_pb2_grpc", "vm_pb2_grpc"])
def test_generated_code_is_imported_as_lufleet_v1(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"from lufleet.v1 import {module}"], check=True)


def test_every_rpc_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "grpc.md").read_text()
    services = [
        *host_pb2.DESCRIPTOR.services_by_name.values(),
        *fleet_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    for service in services:
        assert service.name in text
        missing = [method.name for method in service.methods if f"`{method.name}`" not in text]
        assert not missing, f"docs/grpc.md says nothing of {missing}"
