"""What an experiment asks of its scenario, tried before anything runs.

Every value is put into the scenario by itself: what the scenario says of the value is a mistake of
the experiment, told where the value stands. What it says of anything else (VMs that no longer fit,
say) may be right with another value of another parameter, and is for the run to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fleet.bad_input import BadInput, Faults, InputFault, Place
from fleet.fields import Fields
from fleet.scenario import Scenario, load_scenario
from fleet.sweep.plan import Choice, Parameter
from fleet.toml_source import Key, dotted

__all__ = ["check_keys", "try_scenario", "try_values"]


def try_scenario(root: Fields, scenario: Path, faults: Faults) -> Scenario | None:
    """The scenario as it is; None if it cannot be used."""
    if not root.given("scenario"):
        return None
    if not scenario.is_file():
        root.complain("scenario", f"cannot read {scenario}", "a scenario, relative to this file")
        return None
    try:
        return load_scenario(scenario)
    except BadInput as bad:
        for fault in bad.faults:
            faults.add((fault.file, fault.line), fault.what, fault.right)
        return None


def try_values(
    tables: Sequence[Fields], parameters: Sequence[Parameter], scenario: Path, faults: Faults
) -> None:
    """Note what the scenario says of each value of each parameter."""
    for fields, parameter in zip(tables, parameters, strict=True):
        said: set[tuple[Key, str, str]] = set()
        for name, place, choice in _values(fields, parameter):
            for fault in _said_of(choice, scenario):
                # A wrong key is one mistake, however many values are given for it.
                alike = (name if name[-2] == "choices" else (), fault.file, fault.what)
                if alike not in said:
                    said.add(alike)
                    what = f"{dotted(name)}: {fault.file.removeprefix('--set ')}: {fault.what}"
                    faults.add(place, what, fault.right)


def _values(fields: Fields, parameter: Parameter) -> Iterator[tuple[Key, Place, Choice]]:
    """Each value with the key that it is given by, and where it stands."""
    spread, choices = parameter.range, parameter.choices
    if spread is not None and not choices:
        choices = (spread.at(0), spread.at(1))
    for nr, choice in enumerate(choices):
        if spread is not None:
            name = (*fields.key, "to" if nr else "from")
        elif fields.given("choices"):
            name = (*fields.key, "choices", choice.label)
        else:
            name = (*fields.key, "values")
        place = (*name, nr) if name[-1] == "values" else name
        yield name, fields.source.place(place), choice


def _said_of(choice: Choice, scenario: Path) -> list[InputFault]:
    try:
        load_scenario(scenario, choice.overrides)
    except BadInput as bad:
        return [fault for fault in bad.faults if fault.file.startswith("--set ")]
    return []


def check_keys(tables: Sequence[Fields], parameters: Sequence[Parameter]) -> None:
    """Note keys without effect: seeds are given otherwise, and of two settings the last wins."""
    taken: dict[str, Place] = {}
    for fields, parameter in zip(tables, parameters, strict=True):
        name = "key" if fields.given("key") else "choices"
        mine = dict.fromkeys(_keys(parameter))
        for key in mine:
            if key == "seed":
                fields.complain(name, "every cell is run with the same seeds", "give seeds = […]")
            for other, (file, line) in taken.items():
                if other == key or other.startswith(f"{key}."):
                    what = f"sets {key}, and so does the parameter at {file}:{line}"
                    fields.complain(name, what, "one of them")
        taken |= {key: fields.place(name) for key in mine if key not in taken}


def _keys(parameter: Parameter) -> Iterator[str]:
    if parameter.range is not None:
        yield parameter.range.key
    for choice in parameter.choices:
        for override in choice.overrides:
            yield override.partition("=")[0]
