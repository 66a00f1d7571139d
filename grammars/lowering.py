"""Lowering: each subschema that can be reached becomes a node, keyword by keyword.

A keyword denotes the set of values that satisfy it, whatever their type; keywords beside each other intersect.
So every keyword has one function in LOWERINGS from its value to a ValueSet, and they need not know each other
(`additionalProperties` alone looks at its sibling `properties`, as JSON Schema defines it). `anyOf` and a `$ref`
with siblings are kept as disjunctions of goals, for goals.py to multiply out.

A keyword that is neither lowered here nor known to constrain nothing is refused by name if it is JSON Schema's,
and is an annotation otherwise. Subschemas wait in a queue, so nothing recurses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from specdec.grammars.errors import InvalidSchemaError, LimitExceededError, UnsupportedSchemaError
from specdec.grammars.limits import Limits
from specdec.grammars.report import EnforcementReport, Restriction
from specdec.grammars.schema import Json, SchemaDocument, child_pointer, type_name
from specdec.grammars.values import (
    ALL_VALUES,
    ANYTHING,
    NO_VALUES,
    ArrayShape,
    Goal,
    LengthRange,
    NumberSet,
    ObjectShape,
    Property,
    StringSet,
    ValueSet,
)

_ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "contentMediaType",
    "contentEncoding", "contentSchema", "$comment", "$schema", "$id", "id", "$vocabulary", "$defs", "definitions",
})  # fmt: skip

_REFUSED = frozenset({
    "allOf", "oneOf", "not", "if", "then", "else", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "prefixItems",
    "additionalItems", "unevaluatedItems", "patternProperties", "propertyNames", "minProperties", "maxProperties",
    "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedProperties", "$anchor", "$dynamicAnchor",
    "$dynamicRef", "$recursiveAnchor", "$recursiveRef",
})  # fmt: skip

_ROOT_RESTRICTIONS = (
    "no whitespace between tokens of JSON",
    "one escape spelling for each character, and no character that the vocabulary cannot spell byte by byte",
    "no key twice in one object",
)
_KEY_ORDER = "declared keys come in schema order, keys that are only required after them, all others last"
_DIGITS = (
    "integers have no fraction or exponent and at most 18 digits; other numbers at most 15 significant digits and an "
    "exponent of at most two digits"
)


class Node(NamedTuple):
    """What one subschema asks of a value: to be in `local`, and for each disjunction to satisfy one of its goals."""

    local: ValueSet
    disjunctions: tuple[tuple[Goal, ...], ...]
    pointer: str

    @property
    def alternatives(self) -> frozenset[int]:
        """The nodes that the disjunctions name: what the same value may have to satisfy."""
        return frozenset(node for branches in self.disjunctions for goal in branches for node in goal)


class Lowering:
    """The nodes of one document; `nodes[i]` is subschema i, and `root` the goal of the whole."""

    def __init__(self, document: SchemaDocument, limits: Limits) -> None:
        self.limits = limits
        self.nodes: list[Node] = []
        self._document = document
        self._pending: list[tuple[str, Json, Callable[[str, Json], Node]]] = []
        self._id_of_pointer: dict[str, int] = {}
        self._id_of_scalar: dict[tuple[type, Json], int] = {}
        self._references: set[str] = set()
        self._enforced: set[str] = set()
        self._annotations: set[str] = set()
        self._restrictions = [Restriction(reason=reason, pointer="") for reason in _ROOT_RESTRICTIONS]
        self.root = self.goal("", document.root)
        # Lowering a node appends to what is pending; ids are positions in it.
        for pointer, value, lower in self._pending:
            self.nodes.append(lower(pointer, value))
        self._refuse_cycles()

    @property
    def report(self) -> EnforcementReport:
        return EnforcementReport(
            enforced=tuple(sorted(self._enforced)),
            restrictions=tuple(self._restrictions),
            annotations=tuple(sorted(self._annotations)),
        )

    def goal(self, pointer: str, schema: Json) -> Goal:
        """The goal of satisfying a subschema; a mere `$ref` is the goal of its target."""
        visited = {pointer}
        while isinstance(schema, dict) and "$ref" in schema and self._hides_siblings(schema):
            pointer, schema = self.resolve(schema["$ref"], child_pointer(pointer, "$ref"))
            if pointer in visited:
                raise InvalidSchemaError("$ref leads back to itself", keyword="$ref", pointer=pointer)
            visited.add(pointer)
        if schema is True or (isinstance(schema, dict) and not schema):
            return ANYTHING
        if not isinstance(schema, (dict, bool)):
            raise InvalidSchemaError(f"a schema is an object or a boolean, not {type_name(schema)}", pointer=pointer)
        if pointer not in self._id_of_pointer:
            self._id_of_pointer[pointer] = self._enqueue(pointer, schema, self._lower_schema)
        return frozenset((self._id_of_pointer[pointer],))

    def constant_goal(self, pointer: str, value: Json) -> Goal:
        """The goal of being equal to a value."""
        if isinstance(value, (dict, list)):
            return frozenset((self._enqueue(pointer, value, self._lower_constant),))
        key = (type(value), value)
        if key not in self._id_of_scalar:
            self._id_of_scalar[key] = self._enqueue(pointer, value, self._lower_constant)
        return frozenset((self._id_of_scalar[key],))

    def resolve(self, reference: Json, pointer: str) -> tuple[str, Json]:
        """Where a `$ref` leads."""
        if not isinstance(reference, str):
            raise InvalidSchemaError(f"$ref is {type_name(reference)}, not a string", keyword="$ref", pointer=pointer)
        self._enforced.add("$ref")
        self._references.add(pointer)
        if len(self._references) > self.limits.max_refs:
            raise LimitExceededError(
                f"more than {self.limits.max_refs} $ref keywords (max_refs)", keyword="$ref", pointer=pointer
            )
        return self._document.resolve(reference, pointer)

    def restrict(self, reason: str, pointer: str) -> None:
        """Note in the report that fewer texts are generated than the schema allows."""
        self._restrictions.append(Restriction(reason=reason, pointer=pointer))

    def literal(self, value: float) -> float:
        """The number as it will be spelt; where 1.0 is no integer it is spelt 1, which equals it and is one."""
        whole = isinstance(value, float) and value.is_integer()
        return int(value) if whole and not self._document.dialect.whole_floats_are_integers else value

    def _hides_siblings(self, schema: dict[str, Json]) -> bool:
        return self._document.dialect.ref_hides_siblings or all(
            key == "$ref" or (key not in LOWERINGS and key not in _REFUSED and key != "anyOf") for key in schema
        )

    def _refuse_cycles(self) -> None:
        """A chain of `$ref` and `anyOf` that returns to itself before it enters a property or an item says nothing.

        It is malformed wherever it stands, also where no value can ever reach it: validators do not end on it.
        """
        is_open, is_done = set[int](), set[int]()
        for root in range(len(self.nodes)):
            path = [root]
            while path:
                node = path[-1]
                if node in is_open:
                    path.pop()
                    is_open.discard(node)
                    is_done.add(node)
                    continue
                if node in is_done:
                    path.pop()
                    continue
                is_open.add(node)
                following = self.nodes[node].alternatives
                if following & is_open:
                    raise InvalidSchemaError(
                        "$ref and anyOf lead back here without entering a property or an item",
                        keyword="$ref",
                        pointer=self.nodes[min(following & is_open)].pointer,
                    )
                path.extend(following - is_done)

    def _enqueue(self, pointer: str, value: Json, lower: Callable[[str, Json], Node]) -> int:
        if len(self._pending) >= self.limits.max_nodes:
            raise LimitExceededError(
                f"the schema has more than {self.limits.max_nodes} subschemas and constants (max_nodes)",
                pointer=pointer,
            )
        self._pending.append((pointer, value, lower))
        return len(self._pending) - 1

    def _lower_schema(self, pointer: str, schema: Json) -> Node:
        if schema is False:
            return Node(NO_VALUES, (), pointer)
        values = ALL_VALUES
        for keyword in schema:
            if keyword in _REFUSED:
                raise UnsupportedSchemaError(
                    f"the keyword {keyword!r} cannot be enforced yet",
                    keyword=keyword,
                    pointer=child_pointer(pointer, keyword),
                )
            if keyword in LOWERINGS or keyword in {"anyOf", "$ref"}:
                self._enforced.add(keyword)
            else:
                self._annotations.add(keyword)
        for keyword, lower in LOWERINGS.items():
            if keyword in schema:
                values = values.intersect(lower(self, child_pointer(pointer, keyword), schema))
        return Node(values, self._disjunctions(pointer, schema), pointer)

    def _disjunctions(self, pointer: str, schema: dict[str, Json]) -> tuple[tuple[Goal, ...], ...]:
        disjunctions: list[tuple[Goal, ...]] = []
        if "$ref" in schema:
            target, value = self.resolve(schema["$ref"], child_pointer(pointer, "$ref"))
            disjunctions.append((self.goal(target, value),))
        if "anyOf" in schema:
            place = child_pointer(pointer, "anyOf")
            branches = require_list(schema["anyOf"], place)
            if not branches:
                raise InvalidSchemaError("anyOf is empty", keyword="anyOf", pointer=place)
            disjunctions.append(lower_any_of(self, place, branches))
        return tuple(disjunctions)

    def _lower_constant(self, pointer: str, value: Json) -> Node:
        return Node(constant_set(self, pointer, value), (), pointer)


def lower_any_of(lowering: Lowering, pointer: str, branches: list[Json]) -> tuple[Goal, ...]:
    return tuple(
        dict.fromkeys(lowering.goal(child_pointer(pointer, index), branch) for index, branch in enumerate(branches))
    )


def lower_type(lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not names:
        raise InvalidSchemaError("type is an empty array", keyword="type", pointer=pointer)
    for name in names:
        if not isinstance(name, str) or name not in _TYPES:
            raise InvalidSchemaError(f"{name!r} is not a JSON type", keyword="type", pointer=pointer)
        if name in {"integer", "number"}:
            lowering.restrict(_DIGITS, pointer)
    return ValueSet.union([_TYPES[name] for name in names])


def lower_enum(lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    values = require_list(schema["enum"], pointer)
    if len(values) > lowering.limits.max_enum_values:
        raise LimitExceededError(
            f"enum has {len(values)} values; the limit is {lowering.limits.max_enum_values} (max_enum_values)",
            keyword="enum",
            pointer=pointer,
        )
    return ValueSet.union(
        [constant_set(lowering, child_pointer(pointer, index), value) for index, value in enumerate(values)]
    )


def lower_const(lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    return constant_set(lowering, pointer, schema["const"])


def lower_properties(lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    declared = _require_properties(schema, pointer)
    if len(declared) > lowering.limits.max_properties:
        raise LimitExceededError(
            f"properties has {len(declared)} keys; the limit is {lowering.limits.max_properties} (max_properties)",
            keyword="properties",
            pointer=pointer,
        )
    if declared:
        lowering.restrict(_KEY_ORDER, pointer)
    properties = tuple(
        (key, Property(lowering.goal(child_pointer(pointer, key), subschema))) for key, subschema in declared.items()
    )
    return _only_objects(ObjectShape(properties))


def lower_additional_properties(lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    declared = _require_properties(schema, pointer)
    subschema = schema["additionalProperties"]
    additional = None if subschema is False else lowering.goal(pointer, subschema)
    return _only_objects(ObjectShape(tuple((key, Property(ANYTHING)) for key in declared), additional))


def lower_required(lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    keys = require_list(schema["required"], pointer)
    if len(keys) > lowering.limits.max_properties:
        raise LimitExceededError(
            f"required has {len(keys)} keys; the limit is {lowering.limits.max_properties} (max_properties)",
            keyword="required",
            pointer=pointer,
        )
    for key in keys:
        if not isinstance(key, str):
            raise InvalidSchemaError(f"required holds {type_name(key)}", keyword="required", pointer=pointer)
    return _only_objects(ObjectShape(tuple((key, Property(ANYTHING, True)) for key in dict.fromkeys(keys))))


def lower_items(lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    if isinstance(schema["items"], list):
        raise UnsupportedSchemaError(
            "items as an array (a tuple of schemas) cannot be enforced yet", keyword="items", pointer=pointer
        )
    return _only_arrays(ArrayShape(items=lowering.goal(pointer, schema["items"])))


def lower_min_items(_lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    return _only_arrays(ArrayShape(min_items=require_count(schema["minItems"], pointer)))


def lower_max_items(_lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    return _only_arrays(ArrayShape(max_items=require_count(schema["maxItems"], pointer)))


def lower_min_length(_lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    return _only_strings(LengthRange(min_length=require_count(schema["minLength"], pointer)))


def lower_max_length(_lowering: Lowering, pointer: str, schema: dict[str, Json]) -> ValueSet:
    return _only_strings(LengthRange(max_length=require_count(schema["maxLength"], pointer)))


LOWERINGS: dict[str, Callable[[Lowering, str, dict[str, Json]], ValueSet]] = {
    "type": lower_type,
    "enum": lower_enum,
    "const": lower_const,
    # The order of these three is the order of keys in the text: declared, then only required.
    "properties": lower_properties,
    "additionalProperties": lower_additional_properties,
    "required": lower_required,
    "items": lower_items,
    "minItems": lower_min_items,
    "maxItems": lower_max_items,
    "minLength": lower_min_length,
    "maxLength": lower_max_length,
}
"""From a keyword to the function (lowering, pointer to the keyword, its schema) -> values that satisfy it."""

_TYPES = {
    "null": ValueSet(null=True),
    "boolean": ValueSet(booleans=ALL_VALUES.booleans),
    "integer": ValueSet(numbers=NumberSet(integers=True)),
    "number": ValueSet(numbers=ALL_VALUES.numbers),
    "string": ValueSet(strings=ALL_VALUES.strings),
    "object": ValueSet(objects=ALL_VALUES.objects),
    "array": ValueSet(arrays=ALL_VALUES.arrays),
}


def constant_set(lowering: Lowering, pointer: str, value: Json) -> ValueSet:
    """The values equal to a given one."""
    if value is None:
        return ValueSet(null=True)
    if isinstance(value, bool):
        return ValueSet(booleans=frozenset((value,)))
    if isinstance(value, (int, float)):
        return ValueSet(numbers=NumberSet(literals=(lowering.literal(value),)))
    if isinstance(value, str):
        return ValueSet(strings=StringSet(literals=(value,)))
    if isinstance(value, list):
        prefix = tuple(lowering.constant_goal(child_pointer(pointer, index), item) for index, item in enumerate(value))
        return ValueSet(arrays=(ArrayShape(prefix, ANYTHING, len(prefix), len(prefix)),))
    properties = tuple(
        (key, Property(lowering.constant_goal(child_pointer(pointer, key), item), True)) for key, item in value.items()
    )
    return ValueSet(objects=(ObjectShape(properties, None),))


def require_count(value: Json, pointer: str) -> int:
    """A non-negative whole number; 2.0 is one."""
    keyword = pointer.rpartition("/")[2]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSchemaError(f"{keyword} is {value!r}, not an integer", keyword=keyword, pointer=pointer)
    if value < 0:
        raise InvalidSchemaError(f"{keyword} is {value}, below zero", keyword=keyword, pointer=pointer)
    return value


def require_list(value: Json, pointer: str) -> list[Json]:
    keyword = pointer.rpartition("/")[2]
    if not isinstance(value, list):
        raise InvalidSchemaError(f"{keyword} is {type_name(value)}, not an array", keyword=keyword, pointer=pointer)
    return value


def _require_properties(schema: dict[str, Json], pointer: str) -> dict[str, Json]:
    declared = schema.get("properties", {})
    if not isinstance(declared, dict):
        raise InvalidSchemaError(
            f"properties is {type_name(declared)}, not an object", keyword="properties", pointer=pointer
        )
    return declared


def _only_objects(shape: ObjectShape) -> ValueSet:
    """Constrain objects; values of other types pass."""
    return msgspec.structs.replace(ALL_VALUES, objects=(shape,))


def _only_arrays(shape: ArrayShape) -> ValueSet:
    return msgspec.structs.replace(ALL_VALUES, arrays=(shape,))


def _only_strings(lengths: LengthRange) -> ValueSet:
    return msgspec.structs.replace(ALL_VALUES, strings=StringSet((lengths,)))
