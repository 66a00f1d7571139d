"""From nodes to rules: every goal that a position can have, multiplied out, satisfiable, and numbered.

1. The value set of a goal is the intersection of its nodes' sets, and a node's that of its local set and its
   disjunctions.
2. The children of shapes are goals again. Those reachable from the root are finitely many (sets of nodes); limits
   bound them and the work of intersecting shapes.
3. A goal is satisfiable if it has a scalar, or a shape whose needed children (required keys, the first min_items
   items) all are. That is Horn satisfiability, solved by counting, which gives the least fixpoint: a recursion
   without a base case is unsatisfiable.
4. What is not satisfiable is pruned: the shape goes, an optional key becomes forbidden, an array becomes shorter.

The result is a rule per goal in which every alternative can be completed whatever the others do. Liveness
rests on this (automaton.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from specdec.grammars.errors import LimitExceededError, UnsatisfiableSchemaError
from specdec.grammars.lowering import Lowering
from specdec.grammars.rules import FORBIDDEN, ArrayRule, ObjectRule, Rule
from specdec.grammars.spelling import spell_number, spell_string
from specdec.grammars.values import ALL_VALUES, ArrayShape, Goal, ObjectShape, StringSet, ValueSet

Shape = ObjectShape | ArrayShape


def compile_rules(lowering: Lowering, spells: Callable[[bytes], bool]) -> list[Rule]:
    """The rule of the root, then those of all goals below it; `spells` says which texts the vocabulary can spell.

    UnsatisfiableSchemaError where the root has no instance.
    """
    goals = Goals(lowering, spells)
    if 0 not in goals.satisfiable:
        raise UnsatisfiableSchemaError("no value satisfies the schema", pointer=goals.contradiction())
    return goals.rules()


class Goals:
    """Every goal reachable from the root; goal number i has value set `value_sets[i]`."""

    def __init__(self, lowering: Lowering, spells: Callable[[bytes], bool]) -> None:
        self._nodes = lowering.nodes
        self._limits = lowering.limits
        self._spells = spells
        self._spellings: dict[str, bytes | None] = {}
        self._node_sets: dict[int, ValueSet] = {}
        self._num_steps = 0
        self._goals: list[Goal] = [lowering.root]
        self._numbers: dict[Goal, int] = {lowering.root: 0}
        self.value_sets: list[ValueSet] = []
        # Exploring a goal appends its children.
        for goal in self._goals:
            self.value_sets.append(self._spellable(self._value_set(goal)))
            for shape in _shapes(self.value_sets[-1]):
                for child in _children(shape):
                    self._number(child)
        self.satisfiable = self._satisfiable()

    def rules(self) -> list[Rule]:
        """The rules of all goals, those that are not satisfiable left empty."""
        return [
            self._rule(value_set if number in self.satisfiable else ValueSet())
            for number, value_set in enumerate(self.value_sets)
        ]

    def contradiction(self) -> str:
        """Pointer of a subschema that cannot be satisfied and makes the root so."""
        number = 0
        visited = {0}
        while shapes := _shapes(self.value_sets[number]):
            needed = (self._numbers[child] for shape in shapes for child in _needed(shape))
            broken = [child for child in needed if child not in self.satisfiable and child not in visited]
            if len(shapes) > 1 or not broken:
                break
            number = broken[0]
            visited.add(number)
        return self._pointer(self._goals[number])

    def _pointer(self, goal: Goal) -> str:
        return self._nodes[min(goal)].pointer if goal else ""

    def _number(self, goal: Goal) -> int:
        number = self._numbers.get(goal)
        if number is None:
            if len(self._goals) >= self._limits.max_goals:
                raise LimitExceededError(
                    f"more than {self._limits.max_goals} distinct combinations of subschemas (max_goals)",
                    pointer=self._pointer(goal),
                )
            number = self._numbers[goal] = len(self._goals)
            self._goals.append(goal)
        return number

    def _value_set(self, goal: Goal) -> ValueSet:
        """The intersection of the goal's nodes, each worked out after those it depends on."""
        pending = sorted(goal - self._node_sets.keys(), reverse=True)
        while pending:
            node = pending[-1]
            # Lowering has refused disjunctions that lead back to themselves, so this ends.
            needed = self._nodes[node].alternatives - self._node_sets.keys()
            if needed:
                pending.extend(sorted(needed, reverse=True))
                continue
            pending.pop()
            if node not in self._node_sets:
                self._node_sets[node] = self._node_set(node)
        return self._conjunction(goal)

    def _node_set(self, number: int) -> ValueSet:
        node = self._nodes[number]
        values = node.local
        for branches in node.disjunctions:
            sets = [self._conjunction(branch) for branch in branches]
            self._count_steps(sets, node.pointer)
            union = ValueSet.union(sets)
            self._check_alternatives(len(union.objects), len(union.arrays), node.pointer)
            values = self._intersect(values, union, node.pointer)
        return values

    def _conjunction(self, goal: Goal) -> ValueSet:
        values = ALL_VALUES
        for node in sorted(goal):
            values = self._intersect(values, self._node_sets[node], self._nodes[node].pointer)
        return values

    def _intersect(self, a: ValueSet, b: ValueSet, pointer: str) -> ValueSet:
        if a is ALL_VALUES or b is ALL_VALUES:
            return a.intersect(b)
        self._check_alternatives(len(a.objects) * len(b.objects), len(a.arrays) * len(b.arrays), pointer)
        self._count_steps([a] * max(len(b.objects), len(b.arrays)), pointer)
        self._count_steps([b] * max(len(a.objects), len(a.arrays)), pointer)
        return a.intersect(b)

    def _check_alternatives(self, num_objects: int, num_arrays: int, pointer: str) -> None:
        if max(num_objects, num_arrays) > self._limits.max_alternatives:
            raise LimitExceededError(
                f"{max(num_objects, num_arrays)} alternatives for one value once anyOf and its siblings are "
                f"multiplied out; the limit is {self._limits.max_alternatives} (max_alternatives)",
                keyword="anyOf",
                pointer=pointer,
            )

    def _count_steps(self, sets: Sequence[ValueSet], pointer: str) -> None:
        self._num_steps += sum(_size(values) for values in sets)
        if self._num_steps > self._limits.max_steps:
            raise LimitExceededError(
                f"combining subschemas takes more than {self._limits.max_steps} steps (max_steps)", pointer=pointer
            )

    def _spell(self, text: str) -> bytes | None:
        if text not in self._spellings:
            spelt = spell_string(text)
            self._spellings[text] = spelt if spelt is not None and self._spells(spelt) else None
        return self._spellings[text]

    def _spellable(self, values: ValueSet) -> ValueSet:
        """Without strings and required keys that the vocabulary cannot spell."""
        literals = tuple(text for text in values.strings.literals if self._spell(text) is not None)
        objects = tuple(
            shape
            for shape in values.objects
            if all(self._spell(key) is not None for key, declared in shape.properties if declared.is_required)
        )
        if len(literals) == len(values.strings.literals) and len(objects) == len(values.objects):
            return values
        return msgspec.structs.replace(values, strings=StringSet(values.strings.ranges, literals), objects=objects)

    def _satisfiable(self) -> set[int]:
        """The numbers of the satisfiable goals: Horn satisfiability by counting what each shape still needs."""
        satisfiable: list[int] = []
        found: set[int] = set()
        # Each entry is [goal of the shape, how many of its needed children are not known to be satisfiable].
        waiting: dict[int, list[list[int]]] = defaultdict(list)
        for number, values in enumerate(self.value_sets):
            counters = []
            for shape in _shapes(values):
                needed = {self._numbers[child] for child in _needed(shape)}
                counters.append([number, len(needed)])
                for child in needed:
                    waiting[child].append(counters[-1])
            if _has_scalar(values) or any(count == 0 for _, count in counters):
                found.add(number)
                satisfiable.append(number)
        for child in satisfiable:
            for counter in waiting[child]:
                counter[1] -= 1
                if counter[1] == 0 and counter[0] not in found:
                    found.add(counter[0])
                    satisfiable.append(counter[0])
        return found

    def _rule(self, values: ValueSet) -> Rule:
        literals = [b"null"] if values.null else []
        literals += [b"true" if value else b"false" for value in sorted(values.booleans)]
        literals += [spell_number(value) for value in values.numbers.literals]
        return Rule(
            literals=tuple(literals),
            integers=values.numbers.integers or values.numbers.numbers,
            numbers=values.numbers.numbers,
            strings=tuple(self._required_spelling(text) for text in values.strings.literals),
            lengths=values.strings.ranges,
            objects=tuple(self._object_rule(shape) for shape in values.objects if self._is_satisfiable(shape)),
            arrays=tuple(self._array_rule(shape) for shape in values.arrays if self._is_satisfiable(shape)),
        )

    def _is_satisfiable(self, shape: Shape) -> bool:
        return all(self._numbers[child] in self.satisfiable for child in _needed(shape))

    def _rule_number(self, goal: Goal | None) -> int:
        # Items that no array has room for were never explored.
        number = None if goal is None else self._numbers.get(goal)
        return FORBIDDEN if number is None or number not in self.satisfiable else number

    def _required_spelling(self, text: str) -> bytes:
        spelt = self._spell(text)
        assert spelt is not None, "unspellable texts are pruned before rules are made"
        return spelt

    def _object_rule(self, shape: ObjectShape) -> ObjectRule:
        # An optional key that cannot be spelt cannot be generated as a free key either.
        declared = [(spelt, declared) for key, declared in shape.properties if (spelt := self._spell(key)) is not None]
        return ObjectRule(
            keys=tuple(spelt for spelt, _ in declared),
            values=tuple(self._rule_number(one.goal) for _, one in declared),
            required=tuple(one.is_required for _, one in declared),
            additional=self._rule_number(shape.additional),
        )

    def _array_rule(self, shape: ArrayShape) -> ArrayRule:
        prefix = tuple(self._rule_number(goal) for goal in shape.prefix)
        items = self._rule_number(shape.items)
        max_items = shape.max_items
        possible = prefix.index(FORBIDDEN) if FORBIDDEN in prefix else len(prefix) if items == FORBIDDEN else None
        if possible is not None:
            max_items = possible if max_items is None else min(max_items, possible)
        return ArrayRule(prefix, items, shape.min_items, max_items)


def _shapes(values: ValueSet) -> tuple[Shape, ...]:
    return values.objects + values.arrays


def _children(shape: Shape) -> Iterable[Goal]:
    if isinstance(shape, ArrayShape):
        beyond = shape.max_items is None or shape.max_items > len(shape.prefix)
        return (*shape.prefix, shape.items) if beyond else shape.prefix
    children = [declared.goal for _, declared in shape.properties]
    return [goal for goal in (*children, shape.additional) if goal is not None]


def _needed(shape: Shape) -> list[Goal]:
    """The children that every value of the shape has."""
    if isinstance(shape, ArrayShape):
        needed = list(shape.prefix[: shape.min_items])
        return [*needed, shape.items] if shape.min_items > len(shape.prefix) else needed
    return [declared.goal for _, declared in shape.properties if declared.is_required and declared.goal is not None]


def _has_scalar(values: ValueSet) -> bool:
    return bool(values.null or values.booleans or not values.numbers.is_empty() or not values.strings.is_empty())


def _size(values: ValueSet) -> int:
    """Work that touching each part of the set once takes."""
    return (
        len(values.numbers.literals)
        + len(values.strings.literals)
        + sum(1 + len(shape.properties) for shape in values.objects)
        + sum(1 + len(shape.prefix) for shape in values.arrays)
    )
