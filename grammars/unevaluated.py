"""unevaluatedProperties and unevaluatedItems: what the keywords beside them have not looked at.

Which keys and items are evaluated depends on which subschemas a value satisfies. So the schema without the two keywords
is split into cells: goals that together hold exactly its values, each with the keys and items that are evaluated
wherever it holds. A branch of anyOf that could evaluate something is therefore either known to hold, or known not to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from specdec.grammars.applicators import (
    APPLICATORS,
    UNEVALUATED,
    branches_of,
    objects_with,
    without_key,
)
from specdec.grammars.errors import LimitExceededError
from specdec.grammars.languages import EVERYTHING, NOTHING, Language
from specdec.grammars.lowering import Alternative, Lowering, Node
from specdec.grammars.scalar_keywords import narrow_pattern, pattern_of
from specdec.grammars.schema import Place, child_pointer
from specdec.grammars.values import (
    ALL_VALUES,
    ANYTHING,
    ArrayShape,
    Contained,
    Goal,
    ObjectShape,
    Property,
    ValueSet,
    Witness,
)

_EVALUATING = frozenset({
    "properties", "patternProperties", "additionalProperties", "items", "prefixItems", "additionalItems", "contains",
    *UNEVALUATED,
})  # fmt: skip


class Cell(NamedTuple):
    """Values that satisfy the goal, and what of them is evaluated."""

    goal: Goal = ANYTHING
    names: tuple[str, ...] = ()
    keys: Language = NOTHING
    num_items: int = 0
    all_items: bool = False
    contained: tuple[tuple[Goal, Goal], ...] = ()
    """Items that satisfy one of these goals (with its negation) are evaluated."""

    def joined(self, other: Cell) -> Cell:
        return Cell(
            self.goal | other.goal,
            tuple(dict.fromkeys(self.names + other.names)),
            self.keys | other.keys,
            max(self.num_items, other.num_items),
            self.all_items or other.all_items,
            self.contained + other.contained,
        )


def lower_unevaluated(lowering: Lowering, place: Place, *, positive: bool) -> Node:
    """The node of a schema with at least one of the two keywords, or of its negation."""
    cells = _cells_beside(lowering, place, positive=positive)
    if positive:
        kept = [Alternative(cell.goal | _rest_goal(lowering, place, cell)) for cell in cells]
        return Node(ALL_VALUES, (tuple(dict.fromkeys(kept)),), place.pointer)
    violations = [Alternative(goal) for goal in _violations_beside(lowering, place)]
    violations += [Alternative(cell.goal | goal) for cell in cells for goal in _rest_violations(lowering, place, cell)]
    return Node(ALL_VALUES, (tuple(dict.fromkeys(violations)),), place.pointer)


def _rest_goal(lowering: Lowering, place: Place, cell: Cell) -> Goal:
    """What the keys and items that a cell has not evaluated satisfy."""
    values = ALL_VALUES
    if "unevaluatedProperties" in place.schema and not cell.keys.is_everything:
        goal = _subschema(lowering, place, "unevaluatedProperties")
        shape = ObjectShape(
            tuple((name, Property(ANYTHING)) for name in cell.names),
            goal,
            () if cell.keys.is_empty else ((cell.keys, ANYTHING),),
        )
        values = values.intersect(msgspec.structs.replace(ALL_VALUES, objects=(shape,)))
    if "unevaluatedItems" in place.schema and not cell.all_items:
        goal = _subschema(lowering, place, "unevaluatedItems")
        if goal is None:
            goal = lowering.any_goal([Alternative(inside) for inside, _ in cell.contained], place.pointer)
        elif cell.contained:
            branches = [Alternative(goal), *(Alternative(inside) for inside, _ in cell.contained)]
            goal = lowering.any_goal(branches, place.pointer)
        if not cell.contained and lowering.child(place, "unevaluatedItems").schema is False:
            shape_of_items = ArrayShape((ANYTHING,) * cell.num_items, max_items=cell.num_items)
        else:
            shape_of_items = ArrayShape((ANYTHING,) * cell.num_items, goal)
        values = values.intersect(msgspec.structs.replace(ALL_VALUES, arrays=(shape_of_items,)))
    return lowering.values_goal(values, place.pointer)


def _subschema(lowering: Lowering, place: Place, keyword: str) -> Goal | None:
    lowering.enforce(keyword)
    return None if place.schema[keyword] is False else lowering.child_goal(place, keyword)


def _rest_violations(lowering: Lowering, place: Place, cell: Cell) -> list[Goal]:
    found = []
    if "unevaluatedProperties" in place.schema:
        keys = ~(cell.keys | Language.of(cell.names))
        if not keys.is_empty:
            goal = lowering.child_goal(place, "unevaluatedProperties", positive=False)
            shape = ObjectShape(witnesses=(Witness(keys, goal),))
            found.append(lowering.values_goal(ValueSet(objects=(shape,)), place.pointer))
    if "unevaluatedItems" in place.schema and not cell.all_items:
        goal = lowering.child_goal(place, "unevaluatedItems", positive=False)
        inside = goal.union(*(outside for _, outside in cell.contained))
        shape_of_items = ArrayShape(contained=(Contained(inside, None, start=cell.num_items),))
        found.append(lowering.values_goal(ValueSet(arrays=(shape_of_items,)), place.pointer))
    return found


def _evaluates(lowering: Lowering, place: Place) -> bool:
    """Whether a subschema evaluates some key or item, itself or by what it applies to the same value."""
    pending, seen = [place], set[int]()
    while pending:
        current = pending.pop()
        if not isinstance(current.schema, dict) or id(current.schema) in seen:
            continue
        seen.add(id(current.schema))
        if _EVALUATING & current.schema.keys():
            return True
        pending += _applied(lowering, current)
    return False


def _applied(lowering: Lowering, place: Place) -> list[Place]:
    found = []
    for keyword in APPLICATORS.keys() & place.schema.keys():
        if keyword.startswith("$"):
            found.append(lowering.resolve(place, keyword))
        elif keyword in {"allOf", "anyOf", "oneOf"}:
            found += [lowering.child(place, keyword, index) for index in range(branches_of(place, keyword))]
        elif keyword == "dependentSchemas":
            found += [lowering.child(place, keyword, key) for key in place.schema[keyword]]
        elif keyword == "if":
            found += [lowering.child(place, one) for one in ("if", "then", "else") if one in place.schema]
    return found


def cells(lowering: Lowering, place: Place, *, positive: bool, depth: int = 0) -> list[Cell]:
    """The cells of a subschema; `positive` says that evaluated means certainly so, else possibly so."""
    if depth > lowering.limits.max_depth:
        raise LimitExceededError(
            f"references beside unevaluated keywords are more than {lowering.limits.max_depth} deep (max_depth)",
            pointer=place.pointer,
        )
    if not isinstance(place.schema, dict) or not _evaluates(lowering, place):
        return [Cell(lowering.goal(place))]
    found = _cells_beside(lowering, place, positive=positive, depth=depth)
    if not UNEVALUATED & place.schema.keys():
        return found
    return [
        cell.joined(
            Cell(
                _rest_goal(lowering, place, cell),
                keys=EVERYTHING if "unevaluatedProperties" in place.schema else NOTHING,
                all_items="unevaluatedItems" in place.schema,
            )
        )
        for cell in found
    ]


def _cells_beside(lowering: Lowering, place: Place, *, positive: bool, depth: int = 0) -> list[Cell]:
    """The cells of a schema without its own unevaluated keywords."""
    values = ALL_VALUES
    for one in lowering.local(place, positive=True):
        values = values.intersect(one)
    found = [_own(lowering, place, positive=positive)._replace(goal=lowering.values_goal(values, place.pointer))]
    for keyword, apply in APPLICATORS.items():
        if keyword not in place.schema or not lowering.dialect.knows(keyword):
            continue
        lowering.enforce(keyword)
        parts = _cells_of(lowering, place, keyword, positive=positive, depth=depth + 1)
        if parts is None:
            disjunctions = apply(lowering, place, True)
            goals = [lowering.any_goal(branches, place.pointer) for branches in disjunctions]
            parts = [Cell(frozenset[int]().union(*goals))]
        found = _product(lowering, found, parts, place)
    return found


def _product(lowering: Lowering, a: list[Cell], b: list[Cell], place: Place) -> list[Cell]:
    if len(a) * len(b) > lowering.limits.max_alternatives:
        raise LimitExceededError(
            f"{len(a) * len(b)} cases of what is evaluated; the limit is {lowering.limits.max_alternatives} "
            "(max_alternatives)",
            pointer=place.pointer,
        )
    return list(dict.fromkeys(mine.joined(its) for mine in a for its in b))


def _cells_of(lowering: Lowering, place: Place, keyword: str, *, positive: bool, depth: int) -> list[Cell] | None:
    """The cells of one keyword; None where it evaluates nothing."""

    def of(child: Place) -> list[Cell]:
        return cells(lowering, child, positive=positive, depth=depth)

    def fails(child: Place) -> Cell:
        return Cell(lowering.goal(child, positive=False))

    if keyword.startswith("$"):
        return of(lowering.resolve(place, keyword))
    if keyword in {"allOf", "anyOf", "oneOf"}:
        children = [lowering.child(place, keyword, index) for index in range(branches_of(place, keyword))]
        if keyword == "allOf":
            found = [Cell()]
            for child in children:
                found = _product(lowering, found, of(child), place)
            return found
        if keyword == "oneOf":
            found = []
            for i, child in enumerate(children):
                others = frozenset[int]().union(*(fails(other).goal for j, other in enumerate(children) if j != i))
                found += [cell.joined(Cell(others)) for cell in of(child)]
            return found
        return _cells_of_any(lowering, place, children, of, fails)
    if keyword == "if":
        condition = lowering.child(place, "if")
        # Lowered first: its keys come first in the text.
        holding = of(condition)
        then = of(lowering.child(place, "then")) if "then" in place.schema else [Cell()]
        otherwise = of(lowering.child(place, "else")) if "else" in place.schema else [Cell()]
        held = _product(lowering, holding, then, place)
        return [*held, *_product(lowering, [fails(condition)], otherwise, place)]
    if keyword == "dependentSchemas":
        found = [Cell()]
        for key in place.schema[keyword]:
            absent = Cell(lowering.values_goal(without_key(key), place.pointer))
            present = lowering.values_goal(
                objects_with({key: Property(ANYTHING, is_required=True, is_declared=False)}), place.pointer
            )
            cases = [absent, *(cell.joined(Cell(present)) for cell in of(lowering.child(place, keyword, key)))]
            found = _product(lowering, found, cases, place)
        return found
    return None


def _cells_of_any(
    lowering: Lowering,
    place: Place,
    children: list[Place],
    of: Callable[[Place], list[Cell]],
    fails: Callable[[Place], Cell],
) -> list[Cell]:
    silent = [child for child in children if not _evaluates(lowering, child)]
    found: list[tuple[Cell, bool]] = [(Cell(), False)]
    for child in children:
        if child in silent:
            continue
        following: list[tuple[Cell, bool]] = []
        for cell, holds in found:
            following.append((cell.joined(fails(child)), holds))
            following += [(cell.joined(own), True) for own in of(child)]
        if len(following) > lowering.limits.max_alternatives:
            raise LimitExceededError(
                f"{len(following)} cases of what anyOf evaluates; the limit is {lowering.limits.max_alternatives} "
                "(max_alternatives)",
                keyword="anyOf",
                pointer=place.pointer,
            )
        found = following
    some = lowering.any_goal([Alternative(lowering.goal(child)) for child in silent], place.pointer) if silent else None
    return [
        cell if holds else cell.joined(Cell(some or ANYTHING)) for cell, holds in found if holds or some is not None
    ]


def _own(lowering: Lowering, place: Place, *, positive: bool) -> Cell:
    """What the schema's own keywords evaluate."""
    schema = place.schema
    names = tuple(schema.get("properties", {}))
    keys: Language = NOTHING
    for source in schema.get("patternProperties", {}):
        inner, outer = pattern_of(source, place, "patternProperties")
        pattern_pointer = child_pointer(child_pointer(place.pointer, "patternProperties"), source)
        narrow_pattern(lowering, source, pattern_pointer, positive=positive)
        keys |= inner if positive else outer
    if "additionalProperties" in schema:
        keys = EVERYTHING
    num_items, all_items = 0, False
    prefix = schema.get("prefixItems") if lowering.dialect.knows("prefixItems") else None
    items = schema.get("items")
    if isinstance(items, list):
        prefix, items = items, schema.get("additionalItems")
    if prefix is not None:
        num_items = len(prefix)
    if items is not None:
        all_items = True
    contained: tuple[tuple[Goal, Goal], ...] = ()
    if "contains" in schema and lowering.dialect.draft > 8:
        contained = ((lowering.child_goal(place, "contains"), lowering.child_goal(place, "contains", positive=False)),)
    return Cell(ANYTHING, names, keys, num_items, all_items, contained)


def _violations_beside(lowering: Lowering, place: Place) -> Iterable[Goal]:
    """Ways to violate a schema without its own unevaluated keywords."""
    local = lowering.local(place, positive=False)
    if local:
        yield lowering.values_goal(ValueSet.union(local), place.pointer)
    for keyword, apply in APPLICATORS.items():
        if keyword in place.schema and lowering.dialect.knows(keyword):
            for branches in apply(lowering, place, False):
                yield from (branch.goal for branch in branches)
