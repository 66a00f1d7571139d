"""Admission: a request checked against the model, the pool and the grammar before it may queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specdec.errors import (
    BudgetTooSmallError,
    ContextLengthError,
    EngineBusyError,
    EngineError,
    RequestError,
    SchemaError,
)
from specdec.grammars import (
    BudgetedGrammar,
    BudgetError,
    CompileBusyError,
    CompilePoolError,
    CompilerKilledError,
    Grammar,
    GrammarCompiler,
    GrammarError,
    Interest,
    LimitExceededError,
    UnsupportedSchemaError,
)
from specdec.grammars.constraints import Choice, Constraint, JsonSchema, Regex, TextOrToolCalls
from specdec.prediction_index import PredictionIndex
from specdec.request import Request
from specdec.speculative import SpeculationPlan, SpeculativeConfig, resolve_plan


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that can be served, with what was resolved for it."""

    request: Request
    max_tokens: int
    seed: int
    grammar: BudgetedGrammar | None
    plan: SpeculationPlan
    prediction: PredictionIndex | None


def admit(
    request: Request,
    *,
    compiler: GrammarCompiler,
    speculative: SpeculativeConfig | None,
    encode: Callable[[str], list[int]],
    vocab_size: int,
    max_model_len: int,
    pool_tokens: int,
    next_seed: Callable[[], int],
    interest: Interest,
) -> PreparedRequest:
    """Check every limit, compile the constraint and index the prediction.

    Raises RequestError naming the field and the limit, LeftError once `interest` is left, and EngineError where nothing
    can be compiled now.
    """
    params = request.sampling_params
    _check_token_ids("prompt", request.prompt_token_ids, vocab_size)
    _check_token_ids("logit_bias", params.logit_bias, vocab_size)
    _check_token_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    max_tokens = _max_tokens(request, max_model_len, pool_tokens)
    plan = resolve_plan(speculative, request.speculative, has_prediction=bool(request.prediction))
    prediction = None
    if "prediction" in plan.methods and request.prediction:
        prediction = _prediction(encode(request.prediction), max_model_len)
    grammar = None
    if request.constraint is not None:
        has_free_end = isinstance(request.constraint, TextOrToolCalls) and request.constraint.text is None
        for name in ("stop", "stop_token_ids", "ignore_eos", "min_tokens"):
            # Free text that may end in calls may end at a stop string as well.
            if getattr(params, name) and not (has_free_end and name == "stop"):
                raise RequestError(
                    f"{name} cannot be combined with a constraint, which alone says where the answer ends; drop it",
                    param=name,
                )
        grammar = _within_budget(_compile(request.constraint, compiler, interest), max_tokens)
    seed = params.seed if params.seed is not None else next_seed()
    return PreparedRequest(request, max_tokens, seed, grammar, plan, prediction)


def _check_token_ids(param: str, token_ids: tuple[int, ...] | dict[int, float], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise RequestError(f"{param} names token {wrong}; this model's tokens are 0 to {vocab_size - 1}", param=param)


def _prediction(token_ids: list[int], max_model_len: int) -> PredictionIndex:
    if len(token_ids) > max_model_len:
        raise ContextLengthError(
            f"the prediction has {len(token_ids)} tokens; with its prompt no answer has more than the {max_model_len} "
            "of this model's context. Predict the part that the answer may repeat",
            param="prediction",
        )
    return PredictionIndex(token_ids)


def _max_tokens(request: Request, max_model_len: int, pool_tokens: int) -> int:
    num_prompt_tokens = len(request.prompt_token_ids)
    if num_prompt_tokens == 0:
        raise RequestError("the prompt has no tokens; it needs at least one", param="prompt")
    limit = min(max_model_len, pool_tokens)
    what = "this model's context" if max_model_len <= pool_tokens else "the whole KV pool"
    if num_prompt_tokens >= limit:
        raise ContextLengthError(
            f"the prompt has {num_prompt_tokens} tokens; {what} holds {limit}, and at least one must be left for the "
            "answer. Shorten the prompt",
            param="prompt",
        )
    max_tokens = request.sampling_params.max_tokens
    if max_tokens is None:
        return limit - num_prompt_tokens
    if num_prompt_tokens + max_tokens > limit:
        raise ContextLengthError(
            f"max_tokens is {max_tokens} and the prompt has {num_prompt_tokens} tokens; together they exceed the "
            f"{limit} tokens that {what} holds. Ask for at most {limit - num_prompt_tokens}",
            param="max_tokens",
        )
    return max_tokens


def _within_budget(grammar: Grammar, max_tokens: int) -> BudgetedGrammar:
    try:
        return BudgetedGrammar(grammar, max_tokens)
    except BudgetError as error:
        raise BudgetTooSmallError(error.message, minimum_tokens=error.minimum_tokens, param="max_tokens") from error


def _compile(constraint: Constraint, compiler: GrammarCompiler, interest: Interest) -> Grammar:
    try:
        return compiler.compile(constraint, interest)
    except (CompileBusyError, CompilerKilledError) as error:
        raise EngineBusyError(str(error)) from error
    except CompilePoolError as error:
        raise EngineError(str(error)) from error
    except GrammarError as error:
        is_unsupported = isinstance(error, UnsupportedSchemaError | LimitExceededError)
        match constraint:
            case Regex():
                param, code = "regex", "unsupported_regex_feature" if is_unsupported else "invalid_regex"
            case Choice():
                param, code = "choice", "unsupported_choice" if is_unsupported else "invalid_choice"
            case JsonSchema():
                param, code = "schema", "unsupported_schema_feature" if is_unsupported else "invalid_json_schema"
            case _:
                param, code = "constraint", "unsupported_constraint" if is_unsupported else "invalid_constraint"
        raise SchemaError(
            error.message, keyword=error.keyword, pointer=error.pointer, param=param, code=code
        ) from error
