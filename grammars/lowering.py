"""Lowering: each subschema that can be reached becomes a node, and so does the negation of one that is asked for.

A keyword denotes the set of values that satisfy it, whatever their type; keywords beside each other intersect. So every
keyword of one type of value has a function in keywords.LOWERINGS from its value to a ValueSet, in two polarities: the
values that certainly satisfy it, and those that certainly do not. Keywords that apply subschemas to the value itself
(applicators.py) become disjunctions of goals, for goals.py to multiply out; the negation of a schema is one
disjunction over its keywords. Negation therefore stands at the leaves, where sets are exact or inner approximations.

A keyword that is JSON Schema's and not lowered is refused by name; any other is an annotation. Subschemas wait in
a queue, so nothing recurses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from specdec.grammars.errors import InvalidSchemaError, LimitExceededError, UnsupportedSchemaError
from specdec.grammars.layout import restriction_of
from specdec.grammars.limits import Limits
from specdec.grammars.options import DEFAULT_OPTIONS, SchemaOptions
from specdec.grammars.report import EnforcementReport, Restriction
from specdec.grammars.schema import Json, Place, SchemaDocument, child_pointer, type_name
from specdec.grammars.stopwatch import Stopwatch
from specdec.grammars.strings import StringSet
from specdec.grammars.values import ALL_VALUES, ANYTHING, NO_VALUES, Goal, ValueSet

_ROOT_RESTRICTIONS = (
    "one escape spelling for each character, and no character that the vocabulary cannot spell byte by byte",
    "no key twice in one object",
)
_CLOSED = (
    'additional_properties is "closed": an object that declares keys has no others but those whose values some keyword '
    "constrains"
)
_MISSING = frozenset({"$recursiveAnchor"})
"""Keywords of JSON Schema that change what references mean and are read by the resolver, not here."""


_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class Alternative(NamedTuple):
    """A goal that a value may satisfy, apart from what its exclusions say."""

    goal: Goal
    exclusions: tuple[tuple[Goal, Goal], ...] = ()
    """Pairs (goal that must hold besides, its negation): the first is only looked at where the second is possible."""


Alternatives = tuple[Alternative, ...]

_NOT_OF_STRINGS = frozenset({
    "properties", "patternProperties", "additionalProperties", "propertyNames", "required", "minProperties",
    "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "items",
    "prefixItems", "additionalItems", "contains", "uniqueItems", "minItems", "maxItems", "unevaluatedItems",
})  # fmt: skip
"""Every string satisfies these keywords, and none violates them."""


class Node(NamedTuple):
    """What one node asks of a value: to be in `local`, and to satisfy one alternative of each disjunction."""

    local: ValueSet
    disjunctions: tuple[Alternatives, ...]
    pointer: str

    @property
    def alternatives(self) -> frozenset[int]:
        """The nodes that the disjunctions name: what the same value may have to satisfy."""
        return frozenset(
            node
            for branches in self.disjunctions
            for branch in branches
            for goal in (branch.goal, *(one for pair in branch.exclusions for one in pair))
            for node in goal
        )


class Lowering:
    """The nodes of one document; `nodes[i]` is node i, and `root` the goal of the whole."""

    def __init__(
        self,
        document: SchemaDocument,
        limits: Limits,
        options: SchemaOptions = DEFAULT_OPTIONS,
        *,
        start: Place | None = None,
        positive: bool = True,
        only_strings: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._only_strings = only_strings
        self.stopwatch = stopwatch or Stopwatch(limits.max_compile_seconds)
        self.limits = limits
        self.options = options
        self.dialect = document.dialect
        self.has_canonical_numbers = document.has_canonical_numbers
        self.nodes: list[Node] = []
        self._document = document
        self._pending: list[tuple[str, Callable[[], Node]]] = []
        self._id_of_key: dict[Hashable, int] = {}
        self.is_exact = True
        """Whether every set so far holds all the values that the schema says, however they are spelt."""
        self._references: set[str] = set()
        self._enforced: set[str] = set()
        self._annotations: set[str] = set()
        self._restrictions = dict.fromkeys(
            Restriction(reason=reason, pointer="") for reason in (restriction_of(options), *_ROOT_RESTRICTIONS)
        )
        if options.additional_properties == "closed":
            self.restrict(_CLOSED, "")
        self.root = self.goal(start or document.start, positive=positive)
        # Lowering a node appends to what is pending; ids are positions in it.
        for number, (pointer, lower) in enumerate(self._pending):
            self.stopwatch.check(pointer)
            # What has been lowered is let go of: a large schema has the garbage collector look at it again and again.
            self._pending[number] = pointer, _lowered
            self.nodes.append(lower())
        self._refuse_cycles()

    @property
    def report(self) -> EnforcementReport:
        return EnforcementReport(
            enforced=tuple(sorted(self._enforced)),
            restrictions=tuple(self._restrictions),
            annotations=tuple(sorted(self._annotations)),
        )

    def goal(self, place: Place, *, positive: bool = True) -> Goal:
        """The goal of satisfying a subschema, or of violating it; a mere `$ref` is the goal of its target."""
        visited = {id(place.schema)}
        while isinstance(place.schema, dict) and "$ref" in place.schema and self._hides_siblings(place.schema):
            place = self.resolve(place, "$ref")
            if id(place.schema) in visited and isinstance(place.schema, dict):
                raise InvalidSchemaError("$ref leads back to itself", keyword="$ref", pointer=place.pointer)
            visited.add(id(place.schema))
        schema = place.schema
        if not isinstance(schema, (dict, bool)):
            raise InvalidSchemaError(
                f"a schema is an object or a boolean, not {type_name(schema)}", pointer=place.pointer
            )
        if schema is positive or (isinstance(schema, dict) and not schema and positive):
            return ANYTHING
        if isinstance(schema, bool) or not schema:
            return self.values_goal(NO_VALUES, place.pointer)
        key = (id(schema), positive, self._document.scope(place))
        return self._node(key, place.pointer, lambda: self._lower_schema(place, positive=positive))

    def child(self, place: Place, *keys: str | int) -> Place:
        return self._document.child(place, *keys)

    def child_goal(self, place: Place, *keys: str | int, positive: bool = True) -> Goal:
        """The goal of a subschema some keys below a place."""
        return self.goal(self.child(place, *keys), positive=positive)

    def values_goal(self, values: ValueSet, pointer: str) -> Goal:
        """The goal of being in a set."""
        if values is ALL_VALUES:
            return ANYTHING
        return self._node(("values", values), pointer, lambda: Node(values, (), pointer))

    def any_goal(self, alternatives: Iterable[Alternative], pointer: str) -> Goal:
        """The goal of satisfying at least one of the alternatives."""
        branches = tuple(dict.fromkeys(alternatives))
        if any(not branch.goal and not branch.exclusions for branch in branches):
            return ANYTHING
        if len(branches) == 1 and not branches[0].exclusions:
            return branches[0].goal
        return self._node(("any", branches), pointer, lambda: Node(ALL_VALUES, (branches,), pointer))

    def resolve(self, place: Place, keyword: str) -> Place:
        """Where a reference leads."""
        self.enforce(keyword)
        self._references.add(child_pointer(place.pointer, keyword))
        if len(self._references) > self.limits.max_refs:
            raise LimitExceededError(
                f"more than {self.limits.max_refs} $ref keywords (max_refs)", keyword=keyword, pointer=place.pointer
            )
        return self._document.resolve(place.schema[keyword], place, keyword)

    def refuse_cycles_in(self, place: Place) -> None:
        """InvalidSchemaError where a subschema that is not lowered leads back to itself, as `_refuse_cycles` has it."""
        is_open, is_done = set[Hashable](), set[Hashable]()
        path = [place]
        while path:
            self.stopwatch.check(place.pointer)
            current = path[-1]
            key = (id(current.schema), self._document.scope(current))
            if key in is_open or key in is_done:
                path.pop()
                is_open.discard(key)
                is_done.add(key)
                continue
            is_open.add(key)
            for child in self._applied(current):
                child_key = (id(child.schema), self._document.scope(child))
                if child_key in is_open:
                    raise _cycle(child.pointer)
                if child_key not in is_done:
                    path.append(child)

    def _applied(self, place: Place) -> list[Place]:
        """The subschemas that a schema applies to the value itself, references included."""
        schema = place.schema
        if not isinstance(schema, dict):
            return []
        found = [self.resolve(place, keyword) for keyword in _REFERENCES if self.reads(keyword, place)]
        if "$ref" in schema and self.dialect.ref_hides_siblings:
            return found
        for keyword in ("allOf", "anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list):
                found += [self.child(place, keyword, index) for index in range(len(schema[keyword]))]
        for keyword in ("not", "if", "then", "else"):
            if self.reads(keyword, place):
                found.append(self.child(place, keyword))
        for keyword in ("dependentSchemas", "dependencies"):
            if self.reads(keyword, place) and isinstance(schema[keyword], dict):
                members = [key for key, value in schema[keyword].items() if isinstance(value, dict)]
                found += [self.child(place, keyword, key) for key in members]
        return found

    def enforce(self, keyword: str) -> None:
        self._enforced.add(keyword)

    def annotate(self, keyword: str) -> None:
        self._annotations.add(keyword)

    def restrict(self, reason: str, pointer: str) -> None:
        """Note in the report that fewer texts are generated than the schema allows."""
        self._restrictions[Restriction(reason=reason, pointer=pointer)] = None

    def approximate(self, reason: str | None, pointer: str) -> None:
        """Note that some set is smaller than what the schema says; a reason says so in the report as well."""
        self.is_exact = False
        if reason is not None:
            self.restrict(reason, pointer)

    def local(self, place: Place, *, positive: bool) -> list[ValueSet]:
        """The sets of the keywords that concern one type of value each."""
        from specdec.grammars.keywords import LOWERINGS  # noqa: PLC0415, they build on each other

        present = [keyword for keyword in LOWERINGS if keyword in place.schema]
        return [LOWERINGS[keyword](self, place, positive) for keyword in present if self.reads(keyword, place)]

    def reads(self, keyword: str, place: Place) -> bool:
        """Whether the keyword stands there and has a say; of strings, those about objects and arrays have none."""
        return (
            keyword in place.schema
            and self.dialect.knows(keyword)
            and not (self._only_strings and keyword in _NOT_OF_STRINGS)
        )

    def strings(self, place: Place, *, positive: bool) -> StringSet:
        """The strings that satisfy a subschema, or violate it; worked out now, as keys are matched by language."""
        from specdec.grammars.node_sets import NodeSets  # noqa: PLC0415, they build on each other

        inner = Lowering(
            self._document,
            self.limits,
            self.options,
            start=place,
            positive=positive,
            only_strings=True,
            stopwatch=self.stopwatch,
        )
        self._enforced |= inner._enforced
        self._annotations |= inner._annotations
        self._restrictions |= inner._restrictions
        self.is_exact = self.is_exact and inner.is_exact
        return NodeSets(inner.nodes, self.limits, self.stopwatch).value_set(inner.root).strings

    def _hides_siblings(self, schema: dict[str, Json]) -> bool:
        return self.dialect.ref_hides_siblings or all(
            key == "$ref" or key not in _known_keywords() or not self.dialect.knows(key) for key in schema
        )

    def _node(self, key: Hashable, pointer: str, lower: Callable[[], Node]) -> Goal:
        number = self._id_of_key.get(key)
        if number is None:
            if len(self._pending) >= self.limits.max_nodes:
                raise LimitExceededError(
                    f"the schema has more than {self.limits.max_nodes} subschemas and constants (max_nodes)",
                    pointer=pointer,
                )
            number = self._id_of_key[key] = len(self._pending)
            self._pending.append((pointer, lower))
        return frozenset((number,))

    def constant_node(self, key: Hashable, pointer: str, values: Callable[[], ValueSet]) -> Goal:
        """The goal of a set that is worked out when its turn comes; the same key is the same goal."""
        return self._node(("constant", key), pointer, lambda: Node(values(), (), pointer))

    def _lower_schema(self, place: Place, *, positive: bool) -> Node:
        from specdec.grammars.applicators import APPLICATORS, UNEVALUATED  # noqa: PLC0415
        from specdec.grammars.keywords import LOWERINGS  # noqa: PLC0415
        from specdec.grammars.scalar_keywords import asserts_format  # noqa: PLC0415
        from specdec.grammars.unevaluated import lower_unevaluated  # noqa: PLC0415

        schema, pointer = place.schema, place.pointer
        if "$schema" in schema and self._document.is_of_another_draft(schema):
            raise unsupported(
                f"a subschema of another draft, {schema['$schema']}, cannot be enforced", place, "$schema"
            )
        for keyword in schema:
            if not self.dialect.knows(keyword) or (keyword == "format" and not asserts_format(self, schema["format"])):
                self.annotate(keyword)
            elif keyword in LOWERINGS or keyword in APPLICATORS or keyword in UNEVALUATED:
                self.enforce(keyword)
            else:
                self.annotate(keyword)
        if any(self.reads(keyword, place) for keyword in UNEVALUATED):
            return lower_unevaluated(self, place, positive=positive)
        local = self.local(place, positive=positive)
        applied = [apply(self, place, positive) for keyword, apply in APPLICATORS.items() if self.reads(keyword, place)]
        if positive:
            values = ALL_VALUES
            for one in local:
                values = values.intersect(one)
            return Node(values, tuple(branches for disjunctions in applied for branches in disjunctions), pointer)
        violations = [Alternative(self.values_goal(ValueSet.union(local), pointer))] if local else []
        violations += [branch for disjunctions in applied for branches in disjunctions for branch in branches]
        return Node(ALL_VALUES, (tuple(violations),), pointer) if violations else Node(NO_VALUES, (), pointer)

    def _refuse_cycles(self) -> None:
        """A chain of references and applicators that returns to itself before it enters a property or an item.

        It says nothing, and is malformed wherever it stands, also where no value can ever reach it: validators do not
        end on it.
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
                    raise _cycle(self.nodes[min(following & is_open)].pointer)
                path.extend(following - is_done)


def _lowered() -> Node:
    raise AssertionError("a node is lowered once")


def _cycle(pointer: str) -> InvalidSchemaError:
    return InvalidSchemaError(
        "$ref and anyOf lead back here without entering a property or an item", keyword="$ref", pointer=pointer
    )


@functools.cache
def _known_keywords() -> frozenset[str]:
    from specdec.grammars.applicators import APPLICATORS, UNEVALUATED  # noqa: PLC0415, they build on each other
    from specdec.grammars.keywords import LOWERINGS  # noqa: PLC0415

    return frozenset(LOWERINGS.keys() | APPLICATORS.keys() | UNEVALUATED | _MISSING)


def unsupported(message: str, place: Place, keyword: str) -> UnsupportedSchemaError:
    """A keyword that cannot be enforced where it stands."""
    return UnsupportedSchemaError(message, keyword=keyword, pointer=child_pointer(place.pointer, keyword))
