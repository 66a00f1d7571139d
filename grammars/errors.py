"""Why a schema cannot become a grammar: one tree, each error with the keyword and the JSON pointer at fault.

GrammarError
├── UnsupportedSchemaError     a constraint that cannot be enforced yet, so it is refused, never weakened
├── InvalidSchemaError         not a JSON Schema: a malformed keyword, an unresolvable $ref
├── UnsatisfiableSchemaError   no JSON value is an instance
├── LimitExceededError         larger than the compiler's limits allow
│   └── CompileResourceError   it took too much time or memory; another time, or elsewhere, it may not
└── BudgetError                no answer is guaranteed to fit the tokens given

What is no fault of the constraint is none of these: compile_pool.py has errors of its own.
"""

from __future__ import annotations


class GrammarError(Exception):
    """A constraint that cannot be compiled; `pointer` is RFC 6901, "" for the whole schema."""

    def __init__(self, message: str, *, keyword: str | None = None, pointer: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.keyword = keyword
        self.pointer = pointer

    def __str__(self) -> str:
        place = f" at {self.pointer}" if self.pointer else ""
        return f"{self.message}{place}"


class UnsupportedSchemaError(GrammarError):
    """The schema uses a constraint that this compiler does not enforce."""


class InvalidSchemaError(GrammarError):
    """The schema is not well formed."""


class UnsatisfiableSchemaError(GrammarError):
    """No JSON value that the vocabulary can spell is an instance of the schema."""


class LimitExceededError(GrammarError):
    """The schema exceeds a limit of the compiler; the message gives the value and the limit."""


class CompileResourceError(LimitExceededError):
    """Compiling took more time or memory than it may, as far as it got."""


class BudgetError(GrammarError):
    """No answer is guaranteed to fit the budget; `minimum_tokens` is the smallest that would do, None if unknown."""

    def __init__(self, message: str, *, minimum_tokens: int | None) -> None:
        super().__init__(message)
        self.minimum_tokens = minimum_tokens
