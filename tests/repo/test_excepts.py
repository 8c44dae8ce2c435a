"""No `except` hides a bug of the model's: what is caught is what can be told apart.

Ruff forbids a blanket `except` that does not raise again (E722, BLE001, S110; all rules are on).
Here the exceptions to that are listed by place, and what no linter knows is added: nobody turns a
bug of the model into a panic of the modelled kernel.
"""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelmodel import errors

ROOT = Path(__file__).parents[2]
PACKAGES = ("kernelmodel", "node", "fleet")

#: Outermost frames: whatever went wrong is told with what replays it. And Ray's start, which
#: raises bare exceptions and runs nothing of the model's.
BLANKET = {
    "fleet/inspect_command.py:inspect",
    "fleet/launcher.py:_init",
    "fleet/run.py:run",
    "fleet/serve.py:serve",
    "fleet/sweep/worker.py:perform",
}
#: Where a `ModelBug` ends: a program, a call, a row of a table.
OF_MODEL_BUGS = {
    "fleet/conform.py:_one",
    "fleet/one_boot.py:main",
    "fleet/recorder/compare.py:modelled",
    "node/servicer.py:_call",
}

EVERYTHING = {"", "Exception", "BaseException"}
BUGS = {"ModelBug", "AssertionError"}
#: What a kernel can go down with.
OF_THE_KERNEL = {
    name
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.KernelError | errors.KernelPanic)
} | {"FdtError"}  # bytes that are no tree


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every node with the name of the function that it stands in."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else name
        yield inner, node
        yield from functions(node, inner)


def names(caught: ast.expr | None) -> set[str]:
    """The classes of an `except`; "" for none, which is all."""
    if caught is None:
        return {""}
    parts = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return {ast.unparse(part).rpartition(".")[2] for part in parts}


def handlers() -> Iterator[tuple[str, str, set[str], ast.AST]]:
    """(package, file:function, what is caught, the code that follows) of all that catch."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            for function, node in functions(ast.parse(path.read_text())):
                where = f"{file}:{function}"
                if isinstance(node, ast.ExceptHandler):
                    yield package, where, names(node.type), node
                elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                    yield package, where, {n for arg in node.args for n in names(arg)}, node


def test_blanket_excepts_stand_where_they_are_listed() -> None:
    assert {where for _, where, caught, _ in handlers() if caught & EVERYTHING} == BLANKET


def test_bugs_of_the_model_end_where_they_are_listed() -> None:
    assert {where for _, where, caught, _ in handlers() if caught & BUGS} == OF_MODEL_BUGS


def test_only_refusals_of_the_kernel_become_its_panics() -> None:
    found = [
        (where, sorted(caught - OF_THE_KERNEL))
        for _, where, caught, node in handlers()
        if any(
            isinstance(inner, ast.Raise)
            and inner.exc is not None
            and ast.unparse(inner.exc).startswith("KernelPanic")
            for inner in ast.walk(node)
        )
        and not caught <= OF_THE_KERNEL
    ]
    assert not found


def test_the_linter_has_its_rules_on() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert lint["select"] == ["ALL"]
    ignored = {*lint["ignore"], *(r for rules in lint["per-file-ignores"].values() for r in rules)}
    assert not {"E", "E7", "E722", "BLE", "BLE001", "S110", "S112"} & ignored


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("try:\n    f()\nexcept:\n    pass", {""}),
        (
            "try:\n    f()\nexcept (KeyError, builtins.Exception):\n    pass",
            {"KeyError", "Exception"},
        ),
        ("try:\n    f()\nexcept* OSError:\n    pass", {"OSError"}),
    ],
)
def test_all_ways_of_catching_are_seen(code: str, caught: set[str]) -> None:
    (handler,) = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ExceptHandler)]
    assert names(handler.type) == caught
