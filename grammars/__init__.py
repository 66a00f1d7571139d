"""Constraints to token masks: an immutable automaton over a tokenizer's vocabulary.

vocabulary = Vocabulary(token_bytes, eos_token_ids)
grammar = GrammarCompiler(vocabulary).compile(Regex(pattern="[0-9]+"))
state = grammar.initial_state
row = grammar.mask_row(state)              # a row of GrammarCompiler.mask_table.rows
state = grammar.advance(state, token_id)   # None where the token is not allowed
"""

from __future__ import annotations

from specdec.grammars.budget import BudgetedGrammar, BudgetedState
from specdec.grammars.compile_pool import CompileBusyError, CompilePoolError, CompilerKilledError
from specdec.grammars.compiler import GrammarCompiler
from specdec.grammars.constraints import (
    HERMES,
    LLAMA_JSON,
    MISTRAL,
    MISTRAL_ARGS,
    QWEN_XML,
    AfterMarker,
    Choice,
    Constraint,
    Function,
    JsonSchema,
    ParameterFormat,
    Regex,
    TextOrToolCalls,
    ToolCallFormat,
    ToolCalls,
)
from specdec.grammars.draft_rows import DraftWalk, draft_rows
from specdec.grammars.errors import (
    BudgetError,
    GrammarError,
    InvalidSchemaError,
    LimitExceededError,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
)
from specdec.grammars.flights import Interest, LeftError
from specdec.grammars.forced import Retokenizer
from specdec.grammars.grammar import Grammar, GrammarState
from specdec.grammars.limits import Limits
from specdec.grammars.mask_table import MaskTable
from specdec.grammars.options import SchemaOptions
from specdec.grammars.parameter_kinds import ParameterKind, parameter_kinds
from specdec.grammars.report import EnforcementReport, Restriction
from specdec.grammars.vocabulary import Vocabulary

__all__ = [
    "HERMES",
    "LLAMA_JSON",
    "MISTRAL",
    "MISTRAL_ARGS",
    "QWEN_XML",
    "AfterMarker",
    "BudgetError",
    "BudgetedGrammar",
    "BudgetedState",
    "Choice",
    "CompileBusyError",
    "CompilePoolError",
    "CompilerKilledError",
    "Constraint",
    "DraftWalk",
    "EnforcementReport",
    "Function",
    "Grammar",
    "GrammarCompiler",
    "GrammarError",
    "GrammarState",
    "Interest",
    "InvalidSchemaError",
    "JsonSchema",
    "LeftError",
    "LimitExceededError",
    "Limits",
    "MaskTable",
    "ParameterFormat",
    "ParameterKind",
    "Regex",
    "Restriction",
    "Retokenizer",
    "SchemaOptions",
    "TextOrToolCalls",
    "ToolCallFormat",
    "ToolCalls",
    "UnsatisfiableSchemaError",
    "UnsupportedSchemaError",
    "Vocabulary",
    "draft_rows",
    "parameter_kinds",
]
