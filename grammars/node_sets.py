"""NodeSets: the values of a goal, its disjunctions multiplied out."""

from __future__ import annotations

from collections.abc import Sequence

from specdec.grammars.errors import LimitExceededError
from specdec.grammars.limits import Limits
from specdec.grammars.lowering import Alternative, Node
from specdec.grammars.stopwatch import Stopwatch
from specdec.grammars.values import ALL_VALUES, ArrayShape, Goal, ObjectShape, ValueSet

Shape = ObjectShape | ArrayShape

_MAX_COMPARED = 4
"""Object alternatives of either side that are compared pair by pair before they are intersected."""
_SHALLOW = 3
"""How deep a conjunction is looked into for a contradiction before its parts are kept apart."""


class NodeSets:
    """The value sets of nodes, each worked out once, after those it depends on; limits bound the work."""

    def __init__(self, nodes: Sequence[Node], limits: Limits, stopwatch: Stopwatch) -> None:
        self._nodes = nodes
        self._limits = limits
        self._stopwatch = stopwatch
        self._sets: dict[int, ValueSet] = {}
        self._contradictions: dict[tuple[Goal, int], bool] = {}
        self._num_steps = 0

    def value_set(self, goal: Goal) -> ValueSet:
        """The intersection of the goal's nodes, each worked out after those it depends on."""
        # Not a difference of sets: with the keys of a dict that would look at all of them every time.
        pending = sorted((node for node in goal if node not in self._sets), reverse=True)
        while pending:
            node = pending[-1]
            # Lowering has refused disjunctions that lead back to themselves, so this ends.
            needed = [other for other in self._nodes[node].alternatives if other not in self._sets]
            if needed:
                pending.extend(sorted(needed, reverse=True))
                continue
            pending.pop()
            if node not in self._sets:
                self._sets[node] = self._node_set(node)
        return self._conjunction(goal)

    def _node_set(self, number: int) -> ValueSet:
        node = self._nodes[number]
        values = node.local
        for branches in node.disjunctions:
            sets = [self._alternative(branch, node.pointer) for branch in branches]
            self._count_steps(sets, node.pointer)
            union = ValueSet.union(sets)
            self._check_alternatives(len(union.objects), len(union.arrays), node.pointer)
            values = self._intersect(values, union, node.pointer)
        return values

    def _alternative(self, branch: Alternative, pointer: str) -> ValueSet:
        """The branch without what its exclusions take away, where that overlaps at all."""
        values = self._conjunction(branch.goal)
        self._stopwatch.check(pointer)
        for negation, other in branch.exclusions:
            excluded = self._conjunction(other)
            if self._differ_by_keys(values, excluded):
                continue
            if not self._contradicts(self._intersect(values, excluded, pointer), _SHALLOW):
                values = self._intersect(values, self._conjunction(negation), pointer)
        return values

    def _differ_by_keys(self, a: ValueSet, b: ValueSet) -> bool:
        """Whether all of the objects have a key by which they differ, seen without intersecting them as a whole.

        It is how the branches of most large oneOf differ, and there are as many pairs as the square of them.
        """
        if any(one.has_scalar() or one.arrays or len(one.objects) > _MAX_COMPARED for one in (a, b)):
            return False
        return all(self._shapes_differ(mine, its) for mine in a.objects for its in b.objects)

    def _shapes_differ(self, a: ObjectShape, b: ObjectShape) -> bool:
        its_properties = dict(b.properties)
        self._num_steps += len(a.properties)
        for key, mine in a.properties:
            its = its_properties.get(key)
            if its is None or mine.goal is None or its.goal is None or not (mine.is_required or its.is_required):
                continue
            if self._goal_contradicts(mine.goal | its.goal, _SHALLOW - 1):
                return True
        return False

    def _contradicts(self, values: ValueSet, depth: int) -> bool:
        """Whether a set is seen to be empty without looking deeper than some properties down."""
        if values.has_scalar():
            return False
        return all(self._shape_contradicts(shape, depth) for shape in shapes(values))

    def _shape_contradicts(self, shape: Shape, depth: int) -> bool:
        return depth > 0 and any(self._goal_contradicts(child, depth - 1) for child in needed(shape))

    def _goal_contradicts(self, goal: Goal, depth: int) -> bool:
        known = self._contradictions.get((goal, depth))
        if known is None:
            for node in goal:
                if node not in self._sets:
                    if self._nodes[node].disjunctions:
                        # It is worked out later, or is being worked out: nothing is known yet.
                        return False
                    self._sets[node] = self._nodes[node].local
            known = self._contradictions[goal, depth] = self._contradicts(self._conjunction(goal), depth)
        return known

    def _conjunction(self, goal: Goal) -> ValueSet:
        values = ALL_VALUES
        for node in sorted(goal):
            values = self._intersect(values, self._sets[node], self._nodes[node].pointer)
        return values

    def _intersect(self, a: ValueSet, b: ValueSet, pointer: str) -> ValueSet:
        if a is ALL_VALUES or b is ALL_VALUES:
            return a.intersect(b)
        self._stopwatch.check(pointer)
        self._check_alternatives(len(a.objects) * len(b.objects), len(a.arrays) * len(b.arrays), pointer)
        check_key_classes(_most_classes(a) * _most_classes(b), self._limits, pointer)
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


def check_key_classes(num_classes: int, limits: Limits, pointer: str) -> None:
    """Raise LimitExceededError where the keys of one object fall into too many classes."""
    if num_classes > limits.max_key_classes:
        raise LimitExceededError(
            f"{num_classes} classes of keys once patternProperties that may match the same key are told apart; the "
            f"limit is {limits.max_key_classes} (max_key_classes)",
            keyword="patternProperties",
            pointer=pointer,
        )


def _most_classes(values: ValueSet) -> int:
    return max((len(shape.classes) + 1 for shape in values.objects), default=1)


def shapes(values: ValueSet) -> tuple[Shape, ...]:
    return values.objects + values.arrays


def needed(shape: Shape) -> list[Goal]:
    """The children that every value of the shape has."""
    if isinstance(shape, ArrayShape):
        needed = list(shape.prefix[: shape.min_items])
        return [] if shape.contained else [*needed, shape.items] if shape.min_items > len(shape.prefix) else needed
    if shape.witnesses:
        return []
    return [declared.goal for _, declared in shape.properties if declared.is_required and declared.goal is not None]


def _size(values: ValueSet) -> int:
    """Work that touching each part of the set once takes."""
    return (
        len(values.numbers.points)
        + len(values.strings.literals)
        + len(values.strings.terms)
        + sum(1 + len(shape.properties) for shape in values.objects)
        + sum(1 + len(shape.prefix) for shape in values.arrays)
    )
