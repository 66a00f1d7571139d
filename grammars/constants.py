"""The values equal to given ones, and those equal to none of them: enum and const."""

from __future__ import annotations

import msgspec

from specdec.grammars.errors import LimitExceededError
from specdec.grammars.languages import Language
from specdec.grammars.lowering import Lowering
from specdec.grammars.numbers import NumberSet
from specdec.grammars.requirements import is_number
from specdec.grammars.schema import Json, child_pointer
from specdec.grammars.strings import StringSet
from specdec.grammars.values import (
    ALL_VALUES,
    ANYTHING,
    ArrayShape,
    Goal,
    ObjectShape,
    Property,
    ValueSet,
    Witness,
    array_with,
)


def constants(lowering: Lowering, pointer: str, values: list[Json], positive: bool) -> ValueSet:
    """The values equal to one of those given, or equal to none of them."""
    numbers = NumberSet.of_many(value for value in values if is_number(value))
    texts = tuple(dict.fromkeys(value for value in values if isinstance(value, str)))
    strings = StringSet(literals=texts)
    booleans = frozenset(value for value in values if isinstance(value, bool))
    found = ValueSet(
        null=(None in values) is positive,
        booleans=booleans if positive else ALL_VALUES.booleans - booleans,
        numbers=numbers if positive else ~numbers,
        strings=strings if positive else strings.complement(),
        objects=() if positive else ALL_VALUES.objects,
        arrays=() if positive else ALL_VALUES.arrays,
    )
    containers = []
    for index, value in enumerate(values):
        if isinstance(value, list):
            containers.append(_array(lowering, child_pointer(pointer, index), value, positive))
        elif isinstance(value, dict):
            containers.append(_object(lowering, child_pointer(pointer, index), value, positive))
    if positive:
        return ValueSet.union([found, *containers])
    for one in containers:
        found = found.intersect(one)
        num_alternatives = max(len(found.objects), len(found.arrays))
        if num_alternatives > lowering.limits.max_alternatives:
            raise LimitExceededError(
                f"to equal none of {len(containers)} objects and arrays, a value has more than {num_alternatives - 1} "
                f"alternatives; the limit is {lowering.limits.max_alternatives} (max_alternatives)",
                keyword="enum",
                pointer=pointer,
            )
        lowering.stopwatch.check(pointer)
    return found


def _constant_goal(lowering: Lowering, pointer: str, value: Json, *, positive: bool) -> Goal:
    # A container's key is its own text place: equal ones elsewhere are other nodes, which is only a matter of cost.
    key = (type(value), value, positive) if not isinstance(value, (dict, list)) else (pointer, id(value), positive)
    return lowering.constant_node(key, pointer, lambda: constants(lowering, pointer, [value], positive))


def _array(lowering: Lowering, pointer: str, value: list[Json], positive: bool) -> ValueSet:
    goals = [
        _constant_goal(lowering, child_pointer(pointer, index), item, positive=positive)
        for index, item in enumerate(value)
    ]
    if positive:
        return ValueSet(arrays=(ArrayShape(tuple(goals), ANYTHING, len(value), len(value)),))
    shapes = [ArrayShape(min_items=len(value) + 1)]
    if value:
        shapes.append(ArrayShape(max_items=len(value) - 1))
    shapes += [array_with(index, goal, len(value)) for index, goal in enumerate(goals)]
    return msgspec.structs.replace(ALL_VALUES, arrays=tuple(shapes))


def _object(lowering: Lowering, pointer: str, value: dict[str, Json], positive: bool) -> ValueSet:
    goals = {
        key: _constant_goal(lowering, child_pointer(pointer, key), item, positive=positive)
        for key, item in value.items()
    }
    if positive:
        properties = tuple((key, Property(goal, is_required=True)) for key, goal in goals.items())
        return ValueSet(objects=(ObjectShape(properties, None),))
    shapes = [ObjectShape(((key, Property(None)),)) for key in goals]
    shapes += [ObjectShape(((key, Property(goal, is_required=True)),)) for key, goal in goals.items()]
    shapes.append(ObjectShape(witnesses=(Witness(~Language.of(goals), ANYTHING),)))
    return msgspec.structs.replace(ALL_VALUES, objects=tuple(shapes))
