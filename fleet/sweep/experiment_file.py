"""The file of an experiment, read with every mistake in it and in its scenario.

Nothing is run before all of it fits: every value of every parameter is tried on the scenario.
"""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Final

from fleet.bad_input import Faults, Place, did_you_mean
from fleet.fields import Fields
from fleet.sweep.metrics import METRICS
from fleet.sweep.plan import Adaptive, Choice, Goal, Parameter, Range, SweepPlan
from fleet.sweep.store import COLUMNS
from fleet.sweep.trial import check_keys, try_scenario, try_values
from fleet.toml_source import TomlSource, TomlValue
from fleet.units import Unfit, shown
from kernelmodel.sim.cost import CostModel

__all__ = ["read_plan"]

_METHODS: Final = ("grid", "random", "halton")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_LARGEST_SEED: Final = (1 << 63) - 1
_MOST_SEEDS: Final = 100_000
_MOST_CELLS: Final = 1_000_000
_MOST_STEPS: Final = 1_000
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
            samples = sampling.integer("samples", None, 1, _MOST_CELLS)
            sampling_seed = sampling.integer("seed", 1, 0, _LARGEST_SEED)
        sampling.close()
    tables = list(root.tables("parameters"))
    parameters = _read_parameters(tables, method)
    if root.take("parameters") in (None, []):
        root.missing("parameters", 'what to vary, as [[parameters]] with key = "rollout.wave_size"')
    cells = math.prod(len(parameter.choices) for parameter in parameters)
    if method == "grid" and cells > _MOST_CELLS:
        right = f"{_MOST_CELLS:,} at most; [sampling] takes some of them"
        root.complain("parameters", f"{cells:,} combinations are too many", right)
    adaptive = _read_adaptive(root.table("adaptive"))
    goal = _read_goal(root.table("goal"))
    root.close()
    check_keys(tables, parameters)
    base = try_scenario(root, scenario, faults)
    if base is not None:
        try_values(tables, parameters, scenario, faults)
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
        base_digest=base.digest,
        cost_digest=CostModel.load(base.cost_profile).digest(),
        budget_seconds=base.downtime_budget_ns / 1e9,
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
        ways = [way for way in ("values", "choices") if fields.given(way)]
        ways += ["from"] if fields.given("from") or fields.given("to") else []
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
        _check_name(fields, name, key, places)
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


def _check_name(fields: Fields, name: str, key: str, places: dict[str, Place]) -> None:
    """Note a name that is missing or taken; DuckDB takes large and small letters for the same."""
    column = name.strip().lower()
    if not column:
        if not fields.given("name") or isinstance(fields.take("name"), str):
            fields.missing("name", "what tables and plots call it")
        return
    if column in places:
        where = f"{places[column][0]}:{places[column][1]}"
        fields.complain("name", f'"{name}" is there twice, first at {where}', "another name")
    elif column in COLUMNS and key != "seed":
        fields.complain("name", f'"{name}" is a column of every sweep', "another name")
    places.setdefault(column, fields.place())


def _read_values(fields: Fields, key: str) -> tuple[Choice, ...]:
    def parse(value: object) -> tuple[Choice, ...]:
        if not isinstance(value, list) or not value:
            what = "is empty" if value == [] else f"{shown(value)} is no list of values"
            raise Unfit(what, "one value or more in brackets")
        found = tuple(
            Choice(_label(item), tuple(_overrides(key, item)), _number(item)) for item in value
        )
        if len({choice.overrides for choice in found}) < len(found):
            raise Unfit("a value is there twice", "each of them once")
        return found

    return fields.parsed("values", parse, (), "")


def _read_choices(fields: Fields) -> tuple[Choice, ...]:
    table = fields.table("choices")
    found: list[Choice] = []
    for label in table.free_keys() if table is not None else ():
        assert table is not None
        value = table.take(label)
        if isinstance(value, dict) and value:
            choice = Choice(label, tuple(_overrides("", value)))
            if same := [one.label for one in found if one.overrides == choice.overrides]:
                table.complain(label, f'sets what "{same[0]}" sets', "one of them")
            found.append(choice)
        else:
            right = 'what it sets, as { "update.on_panic" = "cold-reboot-new" }'
            table.complain(label, f"{shown(value)} sets nothing", right)
    return tuple(found)


def _read_range(fields: Fields, key: str, method: str) -> Range | None:
    before = len(fields.faults)
    low = fields.number("from", None, -_MOST, _MOST)
    high = fields.number("to", None, -_MOST, _MOST)
    is_range = len(fields.faults) == before and fields.given("from") and fields.given("to")
    log = fields.text("scale", "linear", ("linear", "log"), "scales") == "log"
    both_whole = _is_whole(fields.take("from")) and _is_whole(fields.take("to"))
    whole = fields.boolean("whole", both_whole)
    unit = fields.text("unit", "")
    steps = 0
    if method == "grid":
        steps = fields.integer("steps", None, 2, _MOST_STEPS)
    if not is_range:
        return None
    if not low < high:
        fields.complain("to", f"{high:g} is not above from", f"something above {low:g}")
        return None
    if whole and not math.ceil(low) < math.floor(high):
        fields.complain("to", f"{low:g} to {high:g} has not two whole numbers", "a wider range")
        return None
    if whole:
        low, high = math.ceil(low), math.floor(high)
    if log and low <= 0:
        fields.complain("from", f"{low:g} has no logarithm", "something above 0")
        return None
    return Range(key, low, high, log, whole, unit, steps)


def _overrides(key: str, value: TomlValue) -> list[str]:
    """`--set` texts for a value; one for each value within a table, an empty one as it is."""
    if isinstance(value, dict) and value:
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
    if isinstance(value, dict):
        inner = (f"{json.dumps(name)} = {_literal(item)}" for name, item in value.items())
        return f"{{ {', '.join(inner)} }}" if value else "{}"
    return str(value)


def _label(value: TomlValue) -> str:
    if isinstance(value, dict) and value:
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
        limits.append((name, within.parsed(name, partial(_parse_limit, name), 0.0, "")))
    goal = Goal(_read_metric(fields, "minimise", Goal().minimise), tuple(limits))
    fields.close()
    return goal


def _parse_limit(name: str, value: object) -> float:
    unit = METRICS[name].unit if name in METRICS else ""
    right = {"s": "seconds, as in 30", "%": "a share, 0.97 for 97 %"}.get(unit, "")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unfit(f"{shown(value)} is not a number", right)
    if not 0 <= value <= (1 if unit == "%" else _MOST):
        raise Unfit(f"{shown(value)} is out of range", right)
    return float(value)


def _read_metric(fields: Fields, name: str, default: str) -> str:
    return fields.text(name, default, tuple(METRICS), "metrics")
