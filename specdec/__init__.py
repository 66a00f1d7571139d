"""specdec: speculative and structured decoding as one engine.

Names are loaded on first use (PEP 562), so that `import specdec.grammars` and `specdec --help` import no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from specdec.allocator import bound_primitives
from specdec.threads import limit_spinning

limit_spinning()
bound_primitives()

__version__ = "0.1.0"

_HOME_OF = {
    "AfterMarker": "specdec.grammars.constraints",
    "AsyncEngine": "specdec.async_engine",
    "BudgetTooSmallError": "specdec.errors",
    "ChatTemplate": "specdec.chat_template",
    "Choice": "specdec.grammars.constraints",
    "CompletionOutput": "specdec.request",
    "ConfigError": "specdec.errors",
    "Constraint": "specdec.grammars.constraints",
    "ContextLengthError": "specdec.errors",
    "DEFAULT_MODEL": "specdec.config",
    "DeltaStream": "specdec.delta_stream",
    "EnforcementReport": "specdec.grammars.report",
    "Engine": "specdec.engine",
    "EngineBusyError": "specdec.errors",
    "EngineClosedError": "specdec.errors",
    "EngineConfig": "specdec.config",
    "EngineDeadError": "specdec.errors",
    "EngineDescription": "specdec.description",
    "EngineError": "specdec.errors",
    "EngineHandle": "specdec.engine_handle",
    "EngineProcess": "specdec.engine_process",
    "EngineStats": "specdec.stats",
    "FinishReason": "specdec.request",
    "Function": "specdec.grammars.constraints",
    "GenerationError": "specdec.errors",
    "HERMES": "specdec.grammars.constraints",
    "LLAMA_JSON": "specdec.grammars.constraints",
    "MISTRAL": "specdec.grammars.constraints",
    "MISTRAL_ARGS": "specdec.grammars.constraints",
    "JsonSchema": "specdec.grammars.constraints",
    "ModelError": "specdec.errors",
    "ParameterFormat": "specdec.grammars.constraints",
    "QWEN_XML": "specdec.grammars.constraints",
    "pull_model": "specdec.models.catalog",
    "Regex": "specdec.grammars.constraints",
    "Request": "specdec.request",
    "RequestError": "specdec.errors",
    "RequestFaultError": "specdec.errors",
    "RequestOutput": "specdec.request",
    "Restriction": "specdec.grammars.report",
    "SamplingParams": "specdec.request",
    "SchemaError": "specdec.errors",
    "SchemaOptions": "specdec.grammars.options",
    "SpecdecError": "specdec.errors",
    "SpeculationStats": "specdec.request",
    "SpeculativeConfig": "specdec.speculative",
    "SpeculativeParams": "specdec.speculative",
    "Verification": "specdec.speculative",
    "DraftTrace": "specdec.request",
    "ProposerStats": "specdec.request",
    "resolve_plan": "specdec.speculative",
    "TextOrToolCalls": "specdec.grammars.constraints",
    "TokenDelta": "specdec.request",
    "Tokenizer": "specdec.tokenizer",
    "TokenLogprob": "specdec.request",
    "ToolCallFormat": "specdec.grammars.constraints",
    "ToolCalls": "specdec.grammars.constraints",
}

__all__ = [*_HOME_OF, "__version__"]  # noqa: PLE0604, a list of str built from the table above

if TYPE_CHECKING:
    from specdec.async_engine import AsyncEngine as AsyncEngine
    from specdec.chat_template import ChatTemplate as ChatTemplate
    from specdec.config import DEFAULT_MODEL as DEFAULT_MODEL
    from specdec.config import EngineConfig as EngineConfig
    from specdec.delta_stream import DeltaStream as DeltaStream
    from specdec.description import EngineDescription as EngineDescription
    from specdec.engine import Engine as Engine
    from specdec.engine_handle import EngineHandle as EngineHandle
    from specdec.engine_process import EngineProcess as EngineProcess
    from specdec.errors import BudgetTooSmallError as BudgetTooSmallError
    from specdec.errors import ConfigError as ConfigError
    from specdec.errors import ContextLengthError as ContextLengthError
    from specdec.errors import EngineBusyError as EngineBusyError
    from specdec.errors import EngineClosedError as EngineClosedError
    from specdec.errors import EngineDeadError as EngineDeadError
    from specdec.errors import EngineError as EngineError
    from specdec.errors import GenerationError as GenerationError
    from specdec.errors import ModelError as ModelError
    from specdec.errors import RequestError as RequestError
    from specdec.errors import RequestFaultError as RequestFaultError
    from specdec.errors import SchemaError as SchemaError
    from specdec.errors import SpecdecError as SpecdecError
    from specdec.grammars.constraints import HERMES as HERMES
    from specdec.grammars.constraints import LLAMA_JSON as LLAMA_JSON
    from specdec.grammars.constraints import MISTRAL as MISTRAL
    from specdec.grammars.constraints import MISTRAL_ARGS as MISTRAL_ARGS
    from specdec.grammars.constraints import QWEN_XML as QWEN_XML
    from specdec.grammars.constraints import AfterMarker as AfterMarker
    from specdec.grammars.constraints import Choice as Choice
    from specdec.grammars.constraints import Constraint as Constraint
    from specdec.grammars.constraints import Function as Function
    from specdec.grammars.constraints import JsonSchema as JsonSchema
    from specdec.grammars.constraints import ParameterFormat as ParameterFormat
    from specdec.grammars.constraints import Regex as Regex
    from specdec.grammars.constraints import TextOrToolCalls as TextOrToolCalls
    from specdec.grammars.constraints import ToolCallFormat as ToolCallFormat
    from specdec.grammars.constraints import ToolCalls as ToolCalls
    from specdec.grammars.options import SchemaOptions as SchemaOptions
    from specdec.grammars.report import EnforcementReport as EnforcementReport
    from specdec.grammars.report import Restriction as Restriction
    from specdec.models.catalog import pull_model as pull_model
    from specdec.request import CompletionOutput as CompletionOutput
    from specdec.request import DraftTrace as DraftTrace
    from specdec.request import FinishReason as FinishReason
    from specdec.request import ProposerStats as ProposerStats
    from specdec.request import Request as Request
    from specdec.request import RequestOutput as RequestOutput
    from specdec.request import SamplingParams as SamplingParams
    from specdec.request import SpeculationStats as SpeculationStats
    from specdec.request import TokenDelta as TokenDelta
    from specdec.request import TokenLogprob as TokenLogprob
    from specdec.speculative import SpeculativeConfig as SpeculativeConfig
    from specdec.speculative import SpeculativeParams as SpeculativeParams
    from specdec.speculative import Verification as Verification
    from specdec.speculative import resolve_plan as resolve_plan
    from specdec.stats import EngineStats as EngineStats
    from specdec.tokenizer import Tokenizer as Tokenizer


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'specdec' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
