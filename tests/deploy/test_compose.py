"""compose.yaml and Dockerfile as far as they can be checked without a container engine.

`compose-spec.schema.json` is the Compose Specification's schema as docker-compose 1.29.2 carries it
(Apache-2.0). Nothing here runs a container.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from fleet.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMA = Path(__file__).with_name("compose-spec.schema.json")


@pytest.fixture
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


def dockerfile() -> dict[str, list[str]]:
    """instruction -> what follows it, for each time it is given."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            instruction, rest = line.strip().split(" ", 1)
            found.setdefault(instruction, []).append(rest.strip())
    return found


def check_serve(arguments: list[str]) -> None:
    """Fails unless `lufleet` knows the command and each of its options."""
    name, scenario, *rest = arguments
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert (ROOT / scenario).is_file()
    options = {word.split("=")[0] for word in rest if word.startswith("--")}
    assert options <= known


def test_compose_file_fits_the_specification(compose: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text())
    # The top-level `name` came later than this copy of the schema.
    schema["properties"].setdefault("name", {"type": "string"})
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(compose)


def test_what_compose_mounts_and_builds_is_in_the_repository(compose: dict[str, Any]) -> None:
    volumes = [v for service in compose["services"].values() for v in service.get("volumes", ())]
    for volume in volumes:
        source = volume.split(":")[0]
        assert (
            (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        )
    build = compose["services"]["lufleet"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_what_dockerfile_copies_is_in_the_repository_and_not_ignored() -> None:
    allowed = {
        line[1:]
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for copy in dockerfile()["COPY"]:
        for source in shlex.split(copy)[:-1]:
            assert (ROOT / source).exists(), source
            assert source in allowed, source


def test_commands_are_ones_that_lufleet_understands(compose: dict[str, Any]) -> None:
    check_serve(compose["services"]["lufleet"]["command"])
    (command,) = dockerfile()["CMD"]
    check_serve(json.loads(command))


def test_ports_agree(compose: dict[str, Any]) -> None:
    command = " ".join(compose["services"]["lufleet"]["command"])
    served = set(re.findall(r"--(?:grpc|metrics)=0\.0\.0\.0:(\d+)", command))
    published = {port.split(":")[-1] for port in compose["services"]["lufleet"]["ports"]}
    assert served == published == set(dockerfile()["EXPOSE"][0].split())
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ]
    (target,) = scrape["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert service in compose["services"]
    assert port in served
