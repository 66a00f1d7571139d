"""Keywords about objects."""

from __future__ import annotations

from collections.abc import Callable

from specdec.grammars.errors import InvalidSchemaError, LimitExceededError
from specdec.grammars.languages import Language
from specdec.grammars.lowering import Lowering, unsupported
from specdec.grammars.node_sets import check_key_classes
from specdec.grammars.requirements import require_count, require_list, require_object
from specdec.grammars.scalar_keywords import narrow_pattern, pattern_of
from specdec.grammars.schema import Place, child_pointer, type_name
from specdec.grammars.values import (
    ALL_VALUES,
    ANYTHING,
    NO_VALUES,
    ObjectShape,
    Property,
    ValueSet,
    Witness,
    only_objects,
    union_of,
)

_KEY_ORDER = "declared keys come in schema order, keys that are only required after them, all others last"


def lower_properties(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    pointer = child_pointer(place.pointer, "properties")
    declared = require_object(place.schema["properties"], pointer)
    if len(declared) > lowering.limits.max_properties:
        raise LimitExceededError(
            f"properties has {len(declared)} keys; the limit is {lowering.limits.max_properties} (max_properties)",
            keyword="properties",
            pointer=pointer,
        )
    if declared and positive and lowering.options.property_order == "schema":
        lowering.restrict(_KEY_ORDER, pointer)
    goals = {key: lowering.child_goal(place, "properties", key, positive=positive) for key in declared}
    if positive:
        return only_objects(ObjectShape(tuple((key, Property(goal)) for key, goal in goals.items())))
    return ValueSet(
        objects=tuple(ObjectShape(((key, Property(goal, is_required=True)),)) for key, goal in goals.items())
    )


def lower_pattern_properties(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    pointer = child_pointer(place.pointer, "patternProperties")
    sources = require_object(place.schema["patternProperties"], pointer)
    values = ALL_VALUES
    violations: list[ObjectShape] = []
    for source in sources:
        inner, outer = pattern_of(source, place, "patternProperties")
        # The keys that must satisfy the schema are those that may match; those that surely do are what violates it.
        narrow_pattern(lowering, source, child_pointer(pointer, source), positive=not positive)
        if positive:
            # A key that may match must satisfy the schema.
            schema = lowering.child(place, "patternProperties", source)
            goal = None if schema.schema is False else lowering.goal(schema)
            values = values.intersect(only_objects(ObjectShape(classes=((outer, goal),))))
            check_key_classes(len(values.objects[0].classes), lowering.limits, pointer)
            lowering.stopwatch.check(pointer)
        elif not inner.is_empty:
            goal = lowering.child_goal(place, "patternProperties", source, positive=False)
            violations.append(ObjectShape(witnesses=(Witness(inner, goal),)))
    return values if positive else ValueSet(objects=tuple(violations))


def lower_additional_properties(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    schema = place.schema
    declared = require_object(schema.get("properties", {}), child_pointer(place.pointer, "properties"))
    patterns = require_object(schema.get("patternProperties", {}), child_pointer(place.pointer, "patternProperties"))
    languages = [pattern_of(source, place, "patternProperties") for source in patterns]
    for source in patterns:
        pattern_pointer = child_pointer(child_pointer(place.pointer, "patternProperties"), source)
        narrow_pattern(lowering, source, pattern_pointer, positive=positive)
    if positive:
        additional = (
            None if schema["additionalProperties"] is False else lowering.child_goal(place, "additionalProperties")
        )
        # Only a key that certainly matches a pattern is not additional.
        covered = union_of(one.inner for one in languages)
        classes = () if covered.is_empty else ((covered, ANYTHING),)
        properties = tuple((key, Property(ANYTHING)) for key in declared)
        return only_objects(ObjectShape(properties, additional, classes))
    keys = ~(union_of(one.outer for one in languages) | Language.of(declared))
    if keys.is_empty:
        return NO_VALUES
    goal = lowering.child_goal(place, "additionalProperties", positive=False)
    return ValueSet(objects=(ObjectShape(witnesses=(Witness(keys, goal),)),))


def lower_property_names(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    child = lowering.child(place, "propertyNames")
    if isinstance(child.schema, dict) and not child.schema:
        return ALL_VALUES if positive else NO_VALUES
    strings = lowering.strings(child, positive=positive)
    if positive and not strings.terms:
        return only_objects(ObjectShape(tuple((name, Property(ANYTHING)) for name in strings.literals), None))
    names = strings.language()
    if positive:
        return only_objects(ObjectShape(classes=((names, ANYTHING),), additional=None))
    return NO_VALUES if names.is_empty else ValueSet(objects=(ObjectShape(witnesses=(Witness(names, ANYTHING),)),))


def lower_required(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    pointer = child_pointer(place.pointer, "required")
    value = place.schema["required"]
    if isinstance(value, bool) and (lowering.dialect.draft == 4 or not lowering.dialect.is_named):
        raise unsupported(
            "required is a boolean, as in draft 3; list the keys in the object's schema", place, "required"
        )
    keys = require_list(value, pointer)
    if len(keys) > lowering.limits.max_properties:
        raise LimitExceededError(
            f"required has {len(keys)} keys; the limit is {lowering.limits.max_properties} (max_properties)",
            keyword="required",
            pointer=pointer,
        )
    for key in keys:
        if not isinstance(key, str):
            raise InvalidSchemaError(f"required holds {type_name(key)}", keyword="required", pointer=pointer)
    if positive:
        return only_objects(
            ObjectShape(
                tuple((key, Property(ANYTHING, is_required=True, is_declared=False)) for key in dict.fromkeys(keys))
            )
        )
    return ValueSet(objects=tuple(ObjectShape(((key, Property(None)),)) for key in dict.fromkeys(keys)))


def lower_property_count(keyword: str) -> Callable[[Lowering, Place, bool], ValueSet]:
    """minProperties, maxProperties."""

    def lower(_lowering: Lowering, place: Place, positive: bool) -> ValueSet:
        count = require_count(place.schema[keyword], child_pointer(place.pointer, keyword))
        if (keyword == "minProperties") is positive:
            shape = ObjectShape(min_properties=count if positive else count + 1)
        elif positive or count > 0:
            shape = ObjectShape(max_properties=count if positive else count - 1)
        else:
            return NO_VALUES
        return only_objects(shape) if positive else ValueSet(objects=(shape,))

    return lower
