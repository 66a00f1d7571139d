"""Keywords that apply subschemas to the value itself: each a list of disjunctions of goals.

In the positive polarity a value must satisfy one alternative of every disjunction; in the negative, any alternative at
all is a way to violate the keyword.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec

from specdec.grammars.errors import InvalidSchemaError, LimitExceededError
from specdec.grammars.lowering import Alternative, Alternatives, Lowering
from specdec.grammars.schema import Json, Place, child_pointer, type_name
from specdec.grammars.values import ALL_VALUES, ANYTHING, Goal, ObjectShape, Property, ValueSet

UNEVALUATED = frozenset({"unevaluatedProperties", "unevaluatedItems"})


def branches_of(place: Place, keyword: str) -> int:
    """How many subschemas the keyword lists."""
    pointer = child_pointer(place.pointer, keyword)
    branches = place.schema[keyword]
    if not isinstance(branches, list):
        raise InvalidSchemaError(f"{keyword} is {type_name(branches)}, not an array", keyword=keyword, pointer=pointer)
    if not branches:
        raise InvalidSchemaError(f"{keyword} is empty", keyword=keyword, pointer=pointer)
    return len(branches)


def goals_of(lowering: Lowering, place: Place, keyword: str, *, positive: bool) -> list[Goal]:
    return [
        lowering.child_goal(place, keyword, index, positive=positive) for index in range(branches_of(place, keyword))
    ]


def _alternatives(goals: list[Goal]) -> Alternatives:
    return tuple(dict.fromkeys(Alternative(goal) for goal in goals))


def _all_of(lowering: Lowering, place: Place, positive: bool) -> list[Alternatives]:
    goals = goals_of(lowering, place, "allOf", positive=positive)
    return [(Alternative(goal),) for goal in goals] if positive else [_alternatives(goals)]


def _any_of(lowering: Lowering, place: Place, positive: bool) -> list[Alternatives]:
    goals = goals_of(lowering, place, "anyOf", positive=positive)
    return [_alternatives(goals)] if positive else [(Alternative(frozenset[int]().union(*goals)),)]


def _one_of(lowering: Lowering, place: Place, positive: bool) -> list[Alternatives]:
    goals = goals_of(lowering, place, "oneOf", positive=True)
    if positive and len(goals) == 1:
        return [(Alternative(goals[0]),)]
    negations = goals_of(lowering, place, "oneOf", positive=False)
    if positive:
        return [
            tuple(
                Alternative(
                    goal,
                    tuple(
                        (negation, other)
                        for j, (other, negation) in enumerate(zip(goals, negations, strict=True))
                        if j != i
                    ),
                )
                for i, goal in enumerate(goals)
            )
        ]
    if len(goals) > lowering.limits.max_one_of_negated:
        raise LimitExceededError(
            f"a oneOf of {len(goals)} branches is negated; the limit is {lowering.limits.max_one_of_negated} "
            "(max_one_of_negated)",
            keyword="oneOf",
            pointer=place.pointer,
        )
    none = Alternative(frozenset[int]().union(*negations))
    return [(none, *(Alternative(a | b) for a, b in itertools.combinations(goals, 2)))]


def _not(lowering: Lowering, place: Place, positive: bool) -> list[Alternatives]:
    return [(Alternative(lowering.child_goal(place, "not", positive=not positive)),)]


def _if(lowering: Lowering, place: Place, positive: bool) -> list[Alternatives]:
    if not {"then", "else"} & place.schema.keys():
        # It decides nothing, but a validator looks at it all the same.
        lowering.refuse_cycles_in(lowering.child(place, "if"))
        return [] if positive else [()]
    cases = []
    # The condition's keys come first in the text, so it is lowered first.
    conditions = [lowering.child_goal(place, "if", positive=holds) for holds in (True, False)]
    for keyword, condition in zip(("then", "else"), conditions, strict=True):
        if keyword in place.schema:
            lowering.enforce(keyword)
            goal = lowering.child_goal(place, keyword, positive=positive)
        elif positive:
            goal = ANYTHING
        else:
            continue
        cases.append(Alternative(condition | goal))
    return [tuple(cases)]


def _reference(keyword: str) -> Callable[[Lowering, Place, bool], list[Alternatives]]:
    def apply(lowering: Lowering, place: Place, positive: bool) -> list[Alternatives]:
        return [(Alternative(lowering.goal(lowering.resolve(place, keyword), positive=positive)),)]

    return apply


def _dependent_schemas(lowering: Lowering, place: Place, positive: bool) -> list[Alternatives]:
    return _dependencies(lowering, place, "dependentSchemas", positive)


def _dependent_required(lowering: Lowering, place: Place, positive: bool) -> list[Alternatives]:
    return _dependencies(lowering, place, "dependentRequired", positive)


def _legacy_dependencies(lowering: Lowering, place: Place, positive: bool) -> list[Alternatives]:
    return _dependencies(lowering, place, "dependencies", positive)


def _dependencies(lowering: Lowering, place: Place, keyword: str, positive: bool) -> list[Alternatives]:
    pointer = child_pointer(place.pointer, keyword)
    members = place.schema[keyword]
    if not isinstance(members, dict):
        raise InvalidSchemaError(f"{keyword} is {type_name(members)}, not an object", keyword=keyword, pointer=pointer)
    disjunctions: list[Alternatives] = []
    violations: list[Alternative] = []
    for key, needed in members.items():
        absent = lowering.values_goal(without_key(key), pointer)
        if isinstance(needed, list) and keyword != "dependentSchemas":
            _check_keys(needed, keyword, child_pointer(pointer, key))
            present = lowering.values_goal(_objects_with_key(key), pointer)
            if positive:
                wanted = dict.fromkeys([*needed, key], Property(ANYTHING, is_required=True, is_declared=False))
                goal = lowering.values_goal(objects_with(wanted), pointer)
                disjunctions.append((Alternative(absent), Alternative(goal)))
            violations += [
                Alternative(present | lowering.values_goal(objects_with({other: Property(None)}), pointer))
                for other in needed
            ]
        elif keyword == "dependentRequired":
            raise InvalidSchemaError(
                f"{keyword} holds {type_name(needed)}, not an array",
                keyword=keyword,
                pointer=child_pointer(pointer, key),
            )
        else:
            # Lowered first: the order of keys in the text is that of the subschema.
            goal = lowering.child_goal(place, keyword, key, positive=positive)
            present = lowering.values_goal(_objects_with_key(key), pointer)
            disjunctions.append((Alternative(absent), Alternative(present | goal)))
            violations.append(Alternative(present | goal))
    return disjunctions if positive else [tuple(violations)]


def _check_keys(keys: list[Json], keyword: str, pointer: str) -> None:
    for key in keys:
        if not isinstance(key, str):
            raise InvalidSchemaError(f"{keyword} holds {type_name(key)}", keyword=keyword, pointer=pointer)


def objects_with(properties: dict[str, Property]) -> ValueSet:
    """The objects that have these properties, and nothing else but objects."""
    return ValueSet(objects=(ObjectShape(tuple(properties.items())),))


def _objects_with_key(key: str) -> ValueSet:
    return objects_with({key: Property(ANYTHING, is_required=True, is_declared=False)})


def without_key(key: str) -> ValueSet:
    """Everything but objects that have the key."""
    return msgspec.structs.replace(ALL_VALUES, objects=(ObjectShape(((key, Property(None)),)),))


APPLICATORS: dict[str, Callable[[Lowering, Place, bool], list[Alternatives]]] = {
    "$ref": _reference("$ref"),
    "$dynamicRef": _reference("$dynamicRef"),
    "$recursiveRef": _reference("$recursiveRef"),
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
    "dependentRequired": _dependent_required,
    "dependentSchemas": _dependent_schemas,
    "dependencies": _legacy_dependencies,
}
"""From a keyword to the function (lowering, its schema, polarity) -> disjunctions."""
