"""FrameKeys: the keys that may come next in an object, worked out once for each frame."""

from __future__ import annotations

import json

from specdec.grammars.any_order import KeyRule
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import KeyClass, ObjectFrame
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.rules import ObjectRule
from specdec.grammars.texts import TextSet
from specdec.grammars.value_rules import KeyClasses

FRESH = b'""'
"""A key unlike any other: no key is spelt with two bare quotes."""


class FrameKeys:
    """Caches that change no result."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        self._special: BoundedCache[ObjectFrame, TextSet] = BoundedCache(256)
        self._special_beside_free: BoundedCache[tuple[tuple[KeyRule, ...], frozenset[bytes]], TextSet] = BoundedCache(
            256
        )
        self._of_rules: BoundedCache[tuple[tuple[KeyRule, ...], frozenset[KeyClass]], KeyClasses] = BoundedCache(256)
        self._classes: BoundedCache[ObjectFrame, tuple[KeyClasses | None]] = BoundedCache(1024)
        self._candidates: BoundedCache[ObjectFrame, TextSet] = BoundedCache(256)
        self._fresh: BoundedCache[ObjectFrame, ObjectFrame] = BoundedCache(1024)
        self._dead: BoundedCache[ObjectFrame, list[bytes]] = BoundedCache(256)

    def special(self, frame: ObjectFrame) -> TextSet:
        """The keys of `ObjectFrame.special_keys`."""
        keys = self._special.get(frame)
        if keys is None:
            # Where free keys may come, all declared keys are special, and they are the same all along an object.
            is_free = frame.takes_free_keys() and all(run.rule.takes_free_keys(*run.progress) for run in frame.runs)
            free = (frame.rules(), frame.seen) if is_free else None
            keys = None if free is None else self._special_beside_free.get(free)
            if keys is None:
                keys = TextSet((key, 0) for key in frame.special_keys())
            if free is not None:
                self._special_beside_free.put(free, keys)
            self._special.put(frame, keys)
        return keys

    def candidates(self, frame: ObjectFrame) -> TextSet:
        """The declared keys that may come next."""
        keys = self._candidates.get(frame)
        if keys is None:
            keys = TextSet((key, 0) for run in frame.runs for key in run.rule.candidates(*run.progress))
            self._candidates.put(frame, keys)
        return keys

    def fresh(self, frame: ObjectFrame) -> ObjectFrame:
        """The frame of which all that differ from it by what no key that is in no way special tells share a mask.

        Where keys come in order, such a key ends the declared ones, whichever have come.
        """
        fresh = self._fresh.get(frame)
        if fresh is None:
            runs = [
                run._replace(declared=len(run.rule.keys))
                if isinstance(run.rule, ObjectRule) and run.rule.takes_free_keys(*run.progress)
                else run
                for run in frame.runs
            ]
            fresh = ObjectFrame(tuple(dict.fromkeys(runs)), has_one_free_key=frame.has_one_free_key)
            self._fresh.put(frame, fresh)
        return fresh

    def classes(self, frame: ObjectFrame) -> KeyClasses | None:
        """The classes that a free key of the frame may have; None where all free keys are alike."""
        known = self._classes.get(frame)
        if known is None:
            known = (self._find_classes(frame),)
            self._classes.put(frame, known)
        return known[0]

    def prepare(self, frame: ObjectFrame) -> None:
        """Build the automata of the free keys that may come first, and of all that may come once others have."""
        self.classes(frame)
        rules = frame.rules()
        free = {(index, number): one for index, rule in enumerate(rules) for number, one in enumerate(rule.free)}
        if any(one.language is not None for one in free.values()):
            self._of_classes(rules, frozenset(free))

    def _find_classes(self, frame: ObjectFrame) -> KeyClasses | None:
        classes = frame.open_classes()
        if classes is None:
            return None
        return self._of_classes(frame.rules(), classes)

    def _of_classes(self, rules: tuple[KeyRule, ...], classes: frozenset[KeyClass]) -> KeyClasses:
        found = self._of_rules.get((rules, classes))
        if found is None:
            found = KeyClasses(rules, classes, self._lexicon)
            self._of_rules.put((rules, classes), found)
        return found

    def dead(self, frame: ObjectFrame, classes: KeyClasses) -> list[bytes]:
        """The shortest beginnings of keys, spelt, that only keys that have occurred begin with."""
        if classes.is_endless:
            return []
        known = self._dead.get(frame)
        if known is not None:
            return known
        dead: dict[bytes, None] = {}
        seen = [key[:-1] for key in frame.seen]
        texts = [json.loads(b'"' + key + b'"') for key in seen]
        for text in texts:
            for length in range(len(text) + 1):
                if classes.is_used_up(text[:length], texts):
                    dead[json.dumps(text[:length], ensure_ascii=False)[1:-1].encode()] = None
                    break
        self._dead.put(frame, list(dead))
        return list(dead)
