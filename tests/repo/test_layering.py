"""Who may import whom: kernelmodel knows nobody, node knows kernelmodel, fleet knows node.

Read from the syntax trees, so that a lazy import inside a function counts as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kernelmodel", "node", "fleet")

#: Beyond the standard library, what a package may import at all.
ALLOWED = {
    "kernelmodel": {"kernelmodel", "numpy"},
    "node": {"node", "kernelmodel", "lufleet", "msgspec", "google"}
    | {"grpc", "grpc_health", "grpc_reflection", "grpc_status", "ray"},
    "fleet": {"fleet", "node", "kernelmodel", "lufleet", "msgspec", "numpy", "google"}
    | {"grpc", "grpc_health", "grpc_reflection", "grpc_status", "ray", "prometheus_client"}
    | {"typer", "rich", "duckdb", "tree_sitter", "tree_sitter_toml"},
}

#: Heavy or delicate imports and the only files that may have them.
ONLY_IN = {
    "ray": {"fleet/launcher.py"},
    "prometheus_client": {"fleet/exporter.py"},
    "typer": {
        "fleet/cli.py",
        "fleet/cli_conform.py",
        "fleet/cli_designs.py",
        "fleet/cli_kernel.py",
        "fleet/cli_inspect.py",
        "fleet/cli_record.py",
        "fleet/cli_releases.py",
    },
}

#: Standard modules that would let a clock or unseeded chance into the model.
NOT_IN_KERNELMODEL = {"time", "datetime", "secrets", "uuid", "asyncio", "threading"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that `tree` imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(ast.parse(path.read_text()))}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_what_its_layer_allows(package: str) -> None:
    for path in modules(package):
        foreign = imported_packages(path) - set(sys.stdlib_module_names) - ALLOWED[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_delicate_library_is_imported_only_where_it_belongs(library: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in modules(package)
        if library in imported_packages(path)
    }
    assert found <= ONLY_IN[library]


def test_the_model_reads_no_clock_and_no_unseeded_chance() -> None:
    for path in modules("kernelmodel"):
        banned = imported_packages(path) & NOT_IN_KERNELMODEL
        assert not banned, f"{path.relative_to(ROOT)} imports {sorted(banned)}"


def top_level_imports(path: Path) -> set[str]:
    """What importing the module imports: no function bodies, nothing under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    body = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return set(imports(ast.Module(body=body, type_ignores=[])))


def test_modules_do_not_import_each_other_in_circles() -> None:
    paths = {dotted(path): path for package in PACKAGES for path in modules(package)}
    graph = {
        name: {target for target in top_level_imports(path) if target in paths and target != name}
        for name, path in paths.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has after running `code`."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_whole_kernel_model_loads_neither_ray_nor_grpc() -> None:
    everything = "\n".join(f"import {dotted(path)}" for path in modules("kernelmodel"))
    assert not loaded_by(everything) & {"ray", "grpc", "google", "node", "fleet"}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_alone_loads_nothing_heavy(package: str) -> None:
    heavy = {"ray", "grpc", "numpy", "duckdb", "prometheus_client", "typer"}
    assert not loaded_by(f"import {package}") & heavy
