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

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal

import msgspec

from specdec.grammars.any_order import AnyOrderRule
from specdec.grammars.decimals import numeral
from specdec.grammars.errors import LimitExceededError, UnsatisfiableSchemaError, UnsupportedSchemaError
from specdec.grammars.languages import Language
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.lowering import Lowering
from specdec.grammars.meetings import Meetings
from specdec.grammars.node_sets import NodeSets, Shape, needed, shapes
from specdec.grammars.numbers import NumberSet
from specdec.grammars.rule_graph import rules_below
from specdec.grammars.rules import ArrayRule, Choices, Count, FreeKeys, ObjectRule, Rule
from specdec.grammars.spelling import spell_string
from specdec.grammars.strings import StringSet, StringTerm
from specdec.grammars.unique import check_unique
from specdec.grammars.values import ANY_OBJECT, ANYTHING, ArrayShape, Goal, ObjectShape, Property, ValueSet

MAX_LISTED_NUMBERS = 64
"""Up to so many numbers are spelt one by one, more of them by an automaton."""
MAX_LISTED_KEYS = 2000
"""Up to so many keys of a finite language are declared one by one; more of them are as good as endless."""
MAX_CLAIMS = 5
"""Witnesses of one object shape, or contains of one array shape."""
MAX_MISSING = 64
"""Items that several contains of one shape may ask for together."""


def compile_rules(lowering: Lowering, lexicon: Lexicon) -> list[Rule]:
    """The rule of the root, then those of all goals below it; the lexicon says what the vocabulary can spell.

    UnsatisfiableSchemaError where the root has no instance.
    """
    goals = Goals(lowering, lexicon, is_closed=lowering.options.additional_properties == "closed")
    if 0 not in goals.satisfiable:
        raise UnsatisfiableSchemaError(_reason(goals, lowering, lexicon), pointer=goals.contradiction())
    return goals.rules()


def _reason(goals: Goals, lowering: Lowering, lexicon: Lexicon) -> str:
    """Why nothing satisfies the root."""
    if goals.is_closed and 0 in Goals(lowering, lexicon).satisfiable:
        return 'no value satisfies the schema without keys that it does not describe (additional_properties: "closed")'
    if not (lowering.is_exact and goals.is_exact):
        return "no value that can be generated satisfies the schema; values that cannot be may do"
    return "no value satisfies the schema"


class Goals:
    """Every goal reachable from the root; goal number i has value set `value_sets[i]`."""

    def __init__(self, lowering: Lowering, lexicon: Lexicon, *, is_closed: bool = False) -> None:
        """With `is_closed` objects that declare keys have no others whose values are not constrained."""
        self.is_closed = is_closed
        self._has_any_order = lowering.options.property_order == "any"
        self._nodes = lowering.nodes
        self._limits = lowering.limits
        self._stopwatch = lowering.stopwatch
        self._lexicon = lexicon
        self._canonical = lowering.has_canonical_numbers
        self._spellings: dict[str, bytes | None] = {}
        self._node_sets = NodeSets(lowering.nodes, lowering.limits, lowering.stopwatch)
        self._goals: list[Goal] = [lowering.root]
        self._numbers: dict[Goal, int] = {lowering.root: 0}
        self.value_sets: list[ValueSet] = []
        self.is_exact = True
        """Whether all that the sets hold can be spelt, but for other spellings of the same values."""
        # Exploring a goal appends its children.
        for goal in self._goals:
            lowering.stopwatch.check(self._pointer(goal))
            values = self._node_sets.value_set(goal)
            self.value_sets.append(self._spellable(_closed(values) if is_closed else values))
            for shape in shapes(self.value_sets[-1]):
                for child in _children(shape):
                    self._number(child)
        self.satisfiable = self._satisfiable()

    def rules(self) -> list[Rule]:
        """The rules of all goals, those that are not satisfiable left empty."""
        rules = self._all_rules()
        for number, rule in enumerate(rules):
            for array in rule.arrays:
                if array.is_unique:
                    check_unique(array, rules, self._pointer(self._goals[number]))
        meetings = Meetings(rules, self.value_sets, self._stopwatch, has_any_order=self._has_any_order)
        dropped = meetings.conflicting()
        if dropped:
            self._drop_unique_arrays(dropped)
            rules = self._all_rules()
        for rule in rules:
            if any(array.is_unique for array in rule.arrays):
                for below in itertools.chain.from_iterable(rules_below(array, rules) for array in rule.arrays):
                    if below.numbers is not None:
                        self._lexicon.numerals(below.numbers, canonical=True)
        return rules

    def _all_rules(self) -> list[Rule]:
        return [
            self._rule(value_set if number in self.satisfiable else ValueSet())
            for number, value_set in enumerate(self.value_sets)
        ]

    def _drop_unique_arrays(self, dropped: frozenset[int]) -> None:
        """Generate only the goals' arrays that may repeat items; what is not satisfiable without the others goes."""
        for number in dropped:
            values = self.value_sets[number]
            arrays = tuple(shape for shape in values.arrays if not shape.is_unique)
            self.value_sets[number] = msgspec.structs.replace(values, arrays=arrays)
        self.satisfiable = self._satisfiable()
        if 0 not in self.satisfiable:
            raise UnsupportedSchemaError(
                "uniqueItems beside alternatives whose items hold arrays of unique items or objects with counted "
                "undeclared keys cannot be enforced yet where nothing else is left",
                keyword="uniqueItems",
                pointer=self._pointer(self._goals[min(dropped)]),
            )

    def contradiction(self) -> str:
        """Pointer of a subschema that cannot be satisfied and makes the root so."""
        number = 0
        visited = {0}
        while found := shapes(self.value_sets[number]):
            wanted = (self._numbers[child] for shape in found for child in needed(shape))
            broken = [child for child in wanted if child not in self.satisfiable and child not in visited]
            if len(found) > 1 or not broken:
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

    def _spell(self, text: str) -> bytes | None:
        if text not in self._spellings:
            spelt = spell_string(text)
            self._spellings[text] = spelt if spelt is not None and self._lexicon.spells(spelt) else None
        return self._spellings[text]

    def _spellable(self, values: ValueSet) -> ValueSet:
        """Without strings, numbers and required keys that the vocabulary cannot spell."""
        literals = tuple(text for text in values.strings.literals if self._spell(text) is not None)
        terms = tuple(
            spelt for term in values.strings.terms if (spelt := self._lexicon.spellable_term(term)) is not None
        )
        objects = tuple(
            self._with_listed_keys(shape)
            for shape in values.objects
            if all(self._spell(key) is not None for key, declared in shape.properties if declared.is_required)
        )
        lost = len(literals) < len(values.strings.literals) or len(terms) < len(values.strings.terms)
        self.is_exact = self.is_exact and not lost and len(objects) == len(values.objects)
        numbers = values.numbers
        if self._listed(numbers) is None and self._lexicon.numerals(numbers, canonical=self._canonical).is_empty():
            self.is_exact = self.is_exact and numbers.is_empty()
            numbers = NumberSet.NOTHING
        return msgspec.structs.replace(values, numbers=numbers, strings=StringSet(terms, literals), objects=objects)

    @staticmethod
    def _listed(numbers: NumberSet) -> tuple[bytes, ...] | None:
        """The numerals of a set that is small, or a mere enumeration; None of any other."""
        if numbers in {NumberSet.EVERYTHING, NumberSet.INTEGERS}:
            return None
        values = numbers.finite_values(MAX_LISTED_NUMBERS)
        if values is None and not any(numbers.gaps):
            values = numbers.finite_values(len(numbers.points))
        if values is None:
            return None
        return tuple(_spelling(value).encode() for value in values)

    def _with_listed_keys(self, shape: ObjectShape) -> ObjectShape:
        """The shape with the keys of finite languages declared, and languages that the vocabulary can spell."""
        if not shape.classes and not shape.witnesses:
            return shape
        declared = dict(shape.properties)
        taken = Language.of(declared)
        classes = []
        for language, goal in _split(shape):
            spelt = (language & self._lexicon.texts) - taken
            if goal is None or spelt.is_empty:
                self.is_exact = self.is_exact and (goal is None or (language - taken).is_empty)
                continue
            words = spelt.words(MAX_LISTED_KEYS) if spelt.num_words is not None else None
            if spelt.num_words is not None and words is None and shape.min_properties > MAX_LISTED_KEYS:
                raise LimitExceededError(
                    f"minProperties is {shape.min_properties} where the keys are finitely many; the limit is "
                    f"{MAX_LISTED_KEYS} (max_listed_keys)",
                    keyword="minProperties",
                )
            if words is None:
                classes.append((spelt, goal))
            else:
                declared |= dict.fromkeys(words, Property(goal))
        return msgspec.structs.replace(
            shape, properties=tuple(declared.items()), classes=tuple(classes), additional=None
        )

    def _satisfiable(self) -> set[int]:
        """The numbers of the satisfiable goals: the least fixpoint, found by looking again at what waits for a goal.

        That every shape is asked again only when one of its children was found bounds the work.
        """
        found: set[int] = set()
        satisfiable: list[int] = []
        waiting: dict[int, list[tuple[int, Shape]]] = defaultdict(list)

        def look(number: int, shape: Shape) -> None:
            if number not in found and self._is_possible(shape, found):
                found.add(number)
                satisfiable.append(number)

        for number, values in enumerate(self.value_sets):
            if values.has_scalar():
                found.add(number)
                satisfiable.append(number)
        for number, values in enumerate(self.value_sets):
            for shape in shapes(values):
                for child in {self._numbers[child] for child in _children(shape)}:
                    waiting[child].append((number, shape))
                look(number, shape)
        for child in satisfiable:
            for number, shape in waiting[child]:
                look(number, shape)
        return found

    def _is_possible(self, shape: Shape, satisfiable: set[int]) -> bool:
        """Whether some value has the shape, given the goals known to be satisfiable."""
        if any(self._numbers[child] not in satisfiable for child in needed(shape)):
            return False
        if isinstance(shape, ObjectShape):
            if not (shape.witnesses or shape.min_properties or shape.max_properties is not None):
                return True
            rule = self._object_rule(shape, satisfiable)
            return rule.can_finish(0, 0, rule.all_witnesses)
        if not shape.contained:
            array = self._array_rule(shape, satisfiable)
            return array.max_items is None or array.max_items >= array.min_items
        array = self._array_rule(shape, satisfiable)
        return array.can_finish(0, array.none_counted)

    def _rule(self, values: ValueSet) -> Rule:
        self._stopwatch.check()
        listed = self._listed(values.numbers)
        # Built here, where it keeps nobody waiting and a limit that is exceeded is one request's error.
        for term in values.strings.terms:
            if not term.language.is_everything:
                self._lexicon.text_automaton((term,))
        if any(not term.language.is_everything for term in values.strings.terms):
            self._lexicon.largest_texts(values.strings.terms)
        literals = [b"null"] if values.null else []
        literals += [b"true" if value else b"false" for value in sorted(values.booleans)]
        literals += listed or ()
        objects = tuple(
            self._object_rule(shape, self.satisfiable)
            for shape in values.objects
            if self._is_possible(shape, self.satisfiable)
        )
        return Rule(
            literals=tuple(literals),
            numbers=values.numbers if listed is None else None,
            strings=tuple(self._required_spelling(text) for text in values.strings.literals),
            terms=values.strings.terms,
            objects=objects,
            arrays=tuple(
                self._array_rule(shape, self.satisfiable)
                for shape in values.arrays
                if self._is_possible(shape, self.satisfiable)
            ),
            any_order=tuple(AnyOrderRule(one) for one in objects) if self._has_any_order else (),
        )

    def _required_spelling(self, text: str) -> bytes:
        spelt = self._spell(text)
        assert spelt is not None, "unspellable texts are pruned before rules are made"
        return spelt

    def _choices(self, goals: Iterable[tuple[int, Goal]], satisfiable: set[int]) -> Choices:
        found = ((claims, self._numbers.get(goal)) for claims, goal in goals)
        return tuple((claims, number) for claims, number in found if number is not None and number in satisfiable)

    def _object_rule(self, shape: ObjectShape, satisfiable: set[int]) -> ObjectRule:
        # An optional key that cannot be spelt cannot be generated as a free key either.
        declared = [(key, spelt, one) for key, one in shape.properties if (spelt := self._spell(key)) is not None]
        # Keys that are only required come after those that are declared anywhere.
        declared.sort(key=lambda each: not each[2].is_declared)
        free = []
        for language, goal in shape.classes:
            choices = self._choices(_class_goals(shape, language, goal), satisfiable)
            if choices:
                self._lexicon.text_automaton((StringTerm(language),))
                free.append(FreeKeys(language, choices))
        if shape.additional is not None:
            choices = self._choices([(0, shape.additional)], satisfiable)
            if choices:
                free.append(FreeKeys(None, choices))
        return ObjectRule(
            keys=tuple(spelt for _, spelt, _ in declared),
            choices=tuple(self._choices(_key_goals(shape, key, one), satisfiable) for key, _, one in declared),
            required=tuple(one.is_required for _, _, one in declared),
            free=tuple(free),
            min_properties=shape.min_properties,
            max_properties=shape.max_properties,
            num_witnesses=len(shape.witnesses),
        )

    def _array_rule(self, shape: ArrayShape, satisfiable: set[int]) -> ArrayRule:
        length = max([len(shape.prefix), *(one.start for one in shape.contained)])
        prefix = tuple(self._choices(_item_goals(shape, index), satisfiable) for index in range(length))
        items = self._choices(_item_goals(shape, length), satisfiable)
        max_items = shape.max_items
        impossible = next((index for index, choices in enumerate((*prefix, items)) if not choices), None)
        if impossible is not None:
            max_items = impossible if max_items is None else min(max_items, impossible)
        counts = tuple(Count(one.minimum, one.maximum, one.start) for one in shape.contained)
        return ArrayRule(prefix, items, shape.min_items, max_items, counts, shape.is_unique)


def _spelling(value: int | Decimal) -> str:
    """The numeral that the automaton of canonical numerals has for the value, or else Python's."""
    return numeral(value) or json.dumps(float(value) if isinstance(value, Decimal) else value)


def _closed(values: ValueSet) -> ValueSet:
    """Without keys that nothing is said of, in objects of which some key is declared.

    Only for what is generated: a set that is closed may not be complemented any more.
    """
    if all(shape is ANY_OBJECT for shape in values.objects):
        return values
    return msgspec.structs.replace(values, objects=tuple(dict.fromkeys(map(_closed_shape, values.objects))))


def _closed_shape(shape: ObjectShape) -> ObjectShape:
    if not any(one.is_declared and one.goal is not None for _, one in shape.properties):
        return shape
    # Keys that no class has left are as good as keys of a class that must not occur.
    classes = tuple((language, None if goal == ANYTHING else goal) for language, goal in shape.classes)
    return msgspec.structs.replace(shape, classes=classes, additional=shape.additional or None)


def _split(shape: ObjectShape) -> list[tuple[Language, Goal | None]]:
    """The classes of undeclared keys, each within or without every witness's keys."""
    classes = [*shape.classes, (shape.rest(), shape.additional)]
    for witness in shape.witnesses:
        parts = [
            (part, goal) for language, goal in classes for part in (language & witness.keys, language - witness.keys)
        ]
        classes = [(part, goal) for part, goal in parts if not part.is_empty]
    return classes


def _claims(num: int) -> range:
    if num > MAX_CLAIMS:
        raise LimitExceededError(
            f"{num} things that some key or item must show meet in one place; the limit is {MAX_CLAIMS} (max_claims)"
        )
    return range(1 << num)


def _key_goals(shape: ObjectShape, key: str, declared: Property) -> list[tuple[int, Goal]]:
    """What a declared key's value satisfies, for each set of witnesses that it is."""
    if declared.goal is None:
        return []
    able = [i for i, witness in enumerate(shape.witnesses) if key in witness.keys]
    return _witness_goals(shape, declared.goal, able)


def _class_goals(shape: ObjectShape, language: Language, goal: Goal | None) -> list[tuple[int, Goal]]:
    """The same for the keys of a class, which lies within or without each witness's keys (`_split`)."""
    if goal is None:
        return []
    able = [i for i, witness in enumerate(shape.witnesses) if language <= witness.keys]
    return _witness_goals(shape, goal, able)


def _witness_goals(shape: ObjectShape, goal: Goal, able: list[int]) -> list[tuple[int, Goal]]:
    return [
        (
            sum(1 << able[i] for i in range(len(able)) if bits >> i & 1),
            goal.union(*(shape.witnesses[able[i]].goal for i in range(len(able)) if bits >> i & 1)),
        )
        for bits in _claims(len(able))
    ]


def _item_goals(shape: ArrayShape, index: int) -> list[tuple[int, Goal]]:
    """What an item satisfies, for each set of things that it is contained for."""
    base = shape.goal_at(index)
    if not shape.contained:
        return [(0, base)]
    found = []
    for claims in _claims(len(shape.contained)):
        goal = base
        for i, one in enumerate(shape.contained):
            if claims >> i & 1:
                if index < one.start:
                    break
                goal |= one.inside
            elif one.outside is not None and index >= one.start:
                goal |= one.outside
        else:
            found.append((claims, goal))
    return found


def _children(shape: Shape) -> Iterable[Goal]:
    """Every goal that a key or an item of the shape may have."""
    if isinstance(shape, ArrayShape):
        length = max([len(shape.prefix), *(one.start for one in shape.contained)])
        if len(shape.contained) > 1 and sum(one.minimum for one in shape.contained) > MAX_MISSING:
            raise LimitExceededError(
                f"several contains ask for more than {MAX_MISSING} items of one array (max_missing)", keyword="contains"
            )
        beyond = shape.max_items is None or shape.max_items > length
        for index in range(length + 1 if beyond else length):
            yield from (goal for _, goal in _item_goals(shape, index))
        return
    for key, declared in shape.properties:
        yield from (goal for _, goal in _key_goals(shape, key, declared))
    for language, goal in shape.classes:
        yield from (one for _, one in _class_goals(shape, language, goal))
    if shape.additional is not None:
        yield shape.additional
