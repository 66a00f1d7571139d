"""Keywords about arrays."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from specdec.grammars.errors import InvalidSchemaError
from specdec.grammars.lowering import Lowering
from specdec.grammars.requirements import require_count, require_list
from specdec.grammars.schema import Place, child_pointer, type_name
from specdec.grammars.values import (
    ALL_VALUES,
    NO_VALUES,
    ArrayShape,
    Contained,
    ValueSet,
    array_with,
    only_arrays,
)

_UNIQUE = (
    "inside an array of unique items every number has one spelling, and an object has at most one key that is not "
    "declared; beside an alternative without uniqueItems whose items hold arrays of unique items or objects with "
    "counted undeclared keys, only that alternative is generated"
)
_UNIQUE_ORDER = (
    "inside an array of unique items keys come in schema order, though property_order is any: declared ones, keys that "
    "are only required, all others"
)


def lower_items(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    """items, with prefixItems before them, or as the array and the additionalItems of older drafts."""
    schema = place.schema
    keyword, prefix_keyword = "items", "prefixItems" if lowering.dialect.knows("prefixItems") else None
    if isinstance(schema.get("items"), list):
        keyword, prefix_keyword = "additionalItems", "items"
    prefix_places = []
    if prefix_keyword is not None and prefix_keyword in schema:
        listed = require_list(schema[prefix_keyword], child_pointer(place.pointer, prefix_keyword))
        prefix_places = [lowering.child(place, prefix_keyword, index) for index in range(len(listed))]
    prefix = [lowering.goal(one, positive=positive) for one in prefix_places]
    has_items = keyword in schema and not isinstance(schema[keyword], list)
    if positive:
        if not has_items:
            return only_arrays(ArrayShape(tuple(prefix)))
        if schema[keyword] is False:
            return only_arrays(ArrayShape(tuple(prefix), max_items=len(prefix)))
        return only_arrays(ArrayShape(tuple(prefix), lowering.child_goal(place, keyword)))
    shapes = [array_with(index, goal) for index, goal in enumerate(prefix)]
    if has_items:
        goal = lowering.child_goal(place, keyword, positive=False)
        shapes.append(ArrayShape(contained=(Contained(goal, None, start=len(prefix)),)))
    return ValueSet(arrays=tuple(shapes))


def lower_prefix_alone(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    if "items" in place.schema:
        return ALL_VALUES if positive else NO_VALUES
    return lower_items(lowering, place, positive)


def lower_contains(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    schema = place.schema
    low, high = 1, None
    for keyword in ("minContains", "maxContains"):
        if keyword in schema and lowering.dialect.knows(keyword):
            lowering.enforce(keyword)
            count = require_count(schema[keyword], child_pointer(place.pointer, keyword))
            low, high = (count, high) if keyword == "minContains" else (low, count)
    inside = lowering.child_goal(place, "contains")
    outside = lowering.child_goal(place, "contains", positive=False)
    if positive:
        if high is not None and high < low:
            return msgspec.structs.replace(ALL_VALUES, arrays=())
        if low == 0 and high is None:
            return ALL_VALUES
        return only_arrays(ArrayShape(contained=(Contained(inside, None if high is None else outside, low, high),)))
    shapes = []
    if low > 0:
        shapes.append(ArrayShape(contained=(Contained(inside, outside, 0, low - 1),)))
    if high is not None:
        shapes.append(ArrayShape(contained=(Contained(inside, None, high + 1),)))
    return ValueSet(arrays=tuple(shapes))


def lower_unique_items(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    value = place.schema["uniqueItems"]
    if not isinstance(value, bool):
        raise InvalidSchemaError(
            f"uniqueItems is {type_name(value)}, not a boolean",
            keyword="uniqueItems",
            pointer=child_pointer(place.pointer, "uniqueItems"),
        )
    if not value:
        return ALL_VALUES if positive else NO_VALUES
    if positive:
        lowering.restrict(_UNIQUE, place.pointer)
        if lowering.options.property_order == "any":
            lowering.restrict(_UNIQUE_ORDER, place.pointer)
        return only_arrays(ArrayShape(is_unique=True))
    # No value is known to violate it: a sound approximation from within.
    lowering.approximate("no array repeats an item in order to violate uniqueItems", place.pointer)
    return NO_VALUES


def lower_item_count(keyword: str) -> Callable[[Lowering, Place, bool], ValueSet]:
    """minItems, maxItems."""

    def lower(_lowering: Lowering, place: Place, positive: bool) -> ValueSet:
        count = require_count(place.schema[keyword], child_pointer(place.pointer, keyword))
        if (keyword == "minItems") is positive:
            shape = ArrayShape(min_items=count if positive else count + 1)
        elif positive or count > 0:
            shape = ArrayShape(max_items=count if positive else count - 1)
        else:
            return NO_VALUES
        return only_arrays(shape) if positive else ValueSet(arrays=(shape,))

    return lower
