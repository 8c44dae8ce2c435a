"""The file of an experiment, read with every mistake in it and in its scenario.

Nothing is run before all of it fits: every value of every parameter is tried on the scenario.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Final

from fleet.bad_input import BadInput, Faults, InputFault, Place, did_you_mean
from fleet.fields import Fields
from fleet.scenario import load_scenario
from fleet.sweep.metrics import METRICS
from fleet.sweep.plan import Adaptive, Choice, Goal, Parameter, Range, SweepPlan
from fleet.toml_source import TomlSource, TomlValue
from fleet.units import Unfit, shown

__all__ = ["read_plan"]

_METHODS: Final = ("grid", "random", "halton")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_LARGEST_SEED: Final = (1 << 63) - 1
_MOST_SEEDS: Final = 100_000
_MOST_SAMPLES: Final = 1_000_000
_MOST: Final = 1e15


def read_plan(path: Path) -> SweepPlan:
    """Read an experiment and try every value of every parameter on its scenario.

    Raises:
        BadInput: with every mistake that was found.
    """
    faults = Faults()
    source = TomlSource.read(path, (), faults)
    if len(faults) and not source.values:
        faults.raise_if_any()
    root = Fields(source, source.values, faults)
    name = root.text("name", path.stem)
    scenario = path.parent / root.text("scenario")
    nothing: tuple[int, ...] = ()
    seeds = root.parsed("seeds", _parse_seeds, nothing, "a number of seeds, or a list of them")
    sampling = root.table("sampling")
    method, samples, sampling_seed = "grid", 0, 1
    if sampling is not None:
        method = sampling.text("method", "grid", _METHODS, "methods")
        if method != "grid":
            samples = sampling.integer("samples", None, 1, _MOST_SAMPLES)
            sampling_seed = sampling.integer("seed", 1, 0, _LARGEST_SEED)
        sampling.close()
    tables = list(root.tables("parameters"))
    parameters = _read_parameters(tables, method)
    if not root.given("parameters"):
        root.missing("parameters", 'what to vary, as [[parameters]] with key = "rollout.wave_size"')
    adaptive = _read_adaptive(root.table("adaptive"))
    goal = _read_goal(root.table("goal"))
    root.close()
    base = _try_scenario(root, scenario, faults)
    if base is not None:
        _try_values(tables, parameters, scenario, faults)
    faults.raise_if_any()
    assert base is not None, "or there was a fault"
    return SweepPlan(
        name=name,
        source=path,
        scenario=scenario,
        seeds=seeds,
        parameters=parameters,
        method=method,
        samples=samples,
        sampling_seed=sampling_seed,
        adaptive=adaptive,
        goal=goal,
        base_digest=base[0],
        budget_seconds=base[1],
    )


def _parse_seeds(value: object) -> tuple[int, ...]:
    right = "a number of seeds, or a list of them without repetition"
    if isinstance(value, list):
        if not value or not all(_is_whole(seed) and 0 <= seed <= _LARGEST_SEED for seed in value):
            raise Unfit(f"{shown(value)} are no seeds", right)
        if len(set(value)) < len(value):
            raise Unfit("a seed is there twice", right)
        return tuple(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_SEEDS:
        raise Unfit(f"{shown(value)} is no number of seeds", right)
    return tuple(range(1, value + 1))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_parameters(tables: list[Fields], method: str) -> tuple[Parameter, ...]:
    found: list[Parameter] = []
    places: dict[str, Place] = {}
    for fields in tables:
        key = fields.text("key") if fields.given("key") else ""
        name = fields.text("name", key.rpartition(".")[2])
        ways = [way for way in ("values", "choices", "from") if fields.given(way)]
        if len(ways) != 1:
            fields.complain(
                "values",
                f"{' and '.join(ways) or 'nothing'} to choose from",
                "give values = […], or [parameters.choices], or from and to",
            )
        elif ways[0] != "choices" and not key:
            fields.missing("key", 'the field of the scenario, as key = "rollout.wave_size"')
        elif ways[0] == "choices" and key:
            fields.complain("key", "choices name their own keys", "leave it out")
        if not name:
            fields.missing("name", "what tables and plots call it")
        elif name in places:
            where = f"{places[name][0]}:{places[name][1]}"
            fields.complain("name", f'"{name}" is there twice, first at {where}', "another name")
        places.setdefault(name, fields.place())
        spread = _read_range(fields, key, method) if ways == ["from"] else None
        choices: tuple[Choice, ...] = ()
        if ways == ["values"]:
            choices = _read_values(fields, key)
        elif ways == ["choices"]:
            choices = _read_choices(fields)
        if spread is not None and method == "grid" and spread.steps:
            steps = spread.steps
            choices = tuple(dict.fromkeys(spread.at(nr / max(1, steps - 1)) for nr in range(steps)))
        fields.close()
        found.append(Parameter(name, choices, spread))
    return tuple(found)


def _read_values(fields: Fields, key: str) -> tuple[Choice, ...]:
    def parse(value: object) -> tuple[Choice, ...]:
        if not isinstance(value, list) or not value:
            raise Unfit(f"{shown(value)} is no list of values", "one value or more in brackets")
        found = tuple(
            Choice(_label(item), tuple(_overrides(key, item)), _number(item)) for item in value
        )
        if len({choice.overrides for choice in found}) < len(found):
            raise Unfit("a value is there twice", "each of them once")
        return found

    return fields.parsed("values", parse, (), "")


def _read_choices(fields: Fields) -> tuple[Choice, ...]:
    table = fields.table("choices")
    found = []
    for label in table.free_keys() if table is not None else ():
        assert table is not None
        value = table.take(label)
        if isinstance(value, dict) and value:
            found.append(Choice(label, tuple(_overrides("", value))))
        else:
            right = 'what it sets, as { "update.on_panic" = "cold-reboot-new" }'
            table.complain(label, f"{shown(value)} sets nothing", right)
    return tuple(found)


def _read_range(fields: Fields, key: str, method: str) -> Range:
    low = fields.number("from", None, -_MOST, _MOST)
    high = fields.number("to", None, -_MOST, _MOST)
    log = fields.text("scale", "linear", ("linear", "log"), "scales") == "log"
    both_whole = _is_whole(fields.take("from")) and _is_whole(fields.take("to"))
    whole = fields.boolean("whole", both_whole)
    unit = fields.text("unit", "")
    steps = 0
    if method == "grid":
        steps = fields.integer("steps", None, 2, _MOST_SAMPLES)
    if not low < high:
        fields.complain("to", f"{high:g} is not above from", f"something above {low:g}")
    elif log and low <= 0:
        fields.complain("from", f"{low:g} has no logarithm", "something above 0")
    return Range(key, low, high, log, whole, unit, steps)


def _overrides(key: str, value: TomlValue) -> list[str]:
    """`--set` texts for a value; one for each value within a table."""
    if isinstance(value, dict):
        found = []
        for name, inner in value.items():
            # At the top a name is a whole key as --set takes it, further down a part of one.
            part = name if not key or _BARE.fullmatch(name) else json.dumps(name)
            found += _overrides(f"{key}.{part}" if key else part, inner)
        return found
    return [f"{key}={_literal(value)}"]


def _literal(value: TomlValue) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return str(value)


def _label(value: TomlValue) -> str:
    if isinstance(value, dict):
        return ", ".join(text.replace("=", " ", 1) for text in _overrides("", value))
    return value if isinstance(value, str) else _literal(value)


def _number(value: TomlValue) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _read_adaptive(fields: Fields | None) -> Adaptive:
    given = Adaptive()
    if fields is None:
        return given
    relative = not fields.given("half_width")
    name = "relative_half_width" if relative else "half_width"
    adaptive = Adaptive(
        metric=_read_metric(fields, "metric", given.metric),
        half_width=fields.number(name, given.half_width, 0.0, _MOST),
        relative=relative,
        min_seeds=fields.integer("min_seeds", given.min_seeds, 2, _MOST_SEEDS),
        max_seeds=fields.integer("max_seeds", given.max_seeds, 2, _MOST_SEEDS),
    )
    if fields.given("half_width") and fields.given("relative_half_width"):
        fields.complain("half_width", "given twice, once as a share", "one of them")
    if adaptive.max_seeds < adaptive.min_seeds:
        right = f"{adaptive.min_seeds} or more"
        fields.complain("max_seeds", f"{adaptive.max_seeds} is below min_seeds", right)
    fields.close()
    return adaptive


def _read_goal(fields: Fields | None) -> Goal:
    if fields is None:
        return Goal()
    limits = []
    within = fields.table("within")
    for name in within.free_keys() if within is not None else ():
        assert within is not None
        if name not in METRICS:
            right = did_you_mean(name, METRICS, noun="metrics")
            within.complain(name, "is no metric of a run", right)
        limits.append((name, within.number(name, None, -_MOST, _MOST)))
    goal = Goal(_read_metric(fields, "minimise", Goal().minimise), tuple(limits))
    fields.close()
    return goal


def _read_metric(fields: Fields, name: str, default: str) -> str:
    return fields.text(name, default, tuple(METRICS), "metrics")


def _try_scenario(root: Fields, scenario: Path, faults: Faults) -> tuple[str, float] | None:
    """Digest and downtime budget of the scenario as it is; None if it cannot be used."""
    if not root.given("scenario"):
        return None
    if not scenario.is_file():
        root.complain("scenario", f"cannot read {scenario}", "a scenario, relative to this file")
        return None
    try:
        found = load_scenario(scenario)
    except BadInput as bad:
        for fault in bad.faults:
            faults.add((fault.file, fault.line), fault.what, fault.right)
        return None
    return found.digest, found.downtime_budget_ns / 1e9


def _try_values(
    tables: list[Fields], parameters: tuple[Parameter, ...], scenario: Path, faults: Faults
) -> None:
    """Every value by itself: what the scenario says of the value is a mistake of the experiment.

    What it says of anything else (VMs that no longer fit, say) may be right with another value of
    another parameter, and is for the run to find out.
    """
    for fields, parameter in zip(tables, parameters, strict=True):
        choices = parameter.choices
        if not choices and parameter.range is not None:
            choices = (parameter.range.at(0), parameter.range.at(1))
        for choice in choices:
            for fault in _said_of(choice, scenario):
                what = f"{choice.label}: {fault.file.removeprefix('--set ')}: {fault.what}"
                faults.add(fields.place(), what, fault.right)


def _said_of(choice: Choice, scenario: Path) -> list[InputFault]:
    try:
        load_scenario(scenario, choice.overrides)
    except BadInput as bad:
        return [fault for fault in bad.faults if fault.file.startswith("--set ")]
    return []
