"""What a user says about speculation: SpeculativeConfig for the engine, SpeculativeParams for one request.

A plan (SpeculationPlan) is what both come to for one request: who drafts, how many tokens, and who verifies.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from specdec.errors import ConfigError, RequestError

SYNTHETIC: Final = "synthetic"
PROPOSERS: Final = ("grammar", "prediction", "suffix", "ngram", "draft_model", SYNTHETIC)
"""By name, in the order in which a chain asks them: the first of those whose guesses are as likely is believed."""
CHAIN: Final = "chain"
"""The method that is every proposer but `synthetic`, and the draft model where there is one."""
NONE: Final = "none"
MAX_DRAFT_TOKENS: Final = 64
ADAPTIVE_DRAFT_TOKENS: Final = 32
"""Longest draft where its length is not fixed. With 64, predicted edits came at 133 and 142 tokens/s, with 32 at 145
and 164 (SmolLM2-135M, two cores)."""


class Verification(enum.StrEnum):
    """How drafts are held against the target (verifier.py); all of them keep the target's law."""

    COUPLED = "coupled"
    """The target draws its own tokens with the draft's noise: the same tokens as without speculation."""
    REJECTION = "rejection"
    """Token by token (Leviathan et al. 2023)."""
    BLOCK = "block"
    """The draft as a whole (Sun et al. 2024)."""


class SpeculativeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who drafts, how many tokens, and how they are verified; the keys are vLLM's where it has one.

    Raises ConfigError.
    """

    method: str = CHAIN
    """`chain`, `none`, a name of PROPOSERS, or several of these joined by `+`."""
    model: str | None = None
    """The draft model: anything EngineConfig.model accepts, with the target's vocabulary."""
    num_speculative_tokens: int | None = None
    """Tokens of every draft; None lets each draft be as long as pays (proposers/length.py)."""
    prompt_lookup_min: int = 2
    """Shortest n-gram, in tokens, that `ngram` looks up."""
    prompt_lookup_max: int = 4
    """Longest n-gram, in tokens, that `ngram` looks up."""
    suffix_decoding_max_tree_depth: int = 24
    """Longest path of a suffix tree, in tokens: what is matched and what follows, together."""
    suffix_decoding_max_cached_requests: int = 1000
    """Finished answers that the suffix trees remember; 0 remembers none."""
    suffix_decoding_max_spec_factor: float = 2.0
    """A suffix of n tokens is continued by this many times n at most."""
    suffix_decoding_min_token_prob: float = 0.1
    """A suffix is continued while its continuation was seen at least this often among all that were seen."""
    synthetic_acceptance_rates: tuple[float, ...] = ()
    """Of `synthetic`: the share of drafts whose tokens up to and with each position are accepted."""
    verification: Verification = Verification.COUPLED
    rejection_sample_method: Literal["standard", "block"] | None = None
    """vLLM's key: `standard` is verification `rejection`."""
    mask_drafts: bool = True
    """Whether the draft model is held to the grammar; False is for comparison, and never better."""

    def __post_init__(self) -> None:
        methods = methods_of(self.method, has_draft_model=self.model is not None)
        if self.num_speculative_tokens is not None and not 1 <= self.num_speculative_tokens <= MAX_DRAFT_TOKENS:
            raise ConfigError(
                f"num_speculative_tokens is {self.num_speculative_tokens}; it must be between 1 and {MAX_DRAFT_TOKENS}",
                flag="--speculative-config",
            )
        if not 1 <= self.prompt_lookup_min <= self.prompt_lookup_max <= 64:
            raise ConfigError(
                f"prompt_lookup_min is {self.prompt_lookup_min} and prompt_lookup_max {self.prompt_lookup_max}; "
                "they must satisfy 1 <= min <= max <= 64",
                flag="--speculative-config",
            )
        for name, low, high in (
            ("suffix_decoding_max_tree_depth", 2, 256),
            ("suffix_decoding_max_cached_requests", 0, 10**6),
            ("suffix_decoding_max_spec_factor", 0.0, 64.0),
            ("suffix_decoding_min_token_prob", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"{name} is {value:g}; it must be between {low:g} and {high:g}", flag="--speculative-config"
                )
        rates = self.synthetic_acceptance_rates
        if any(not 0.0 <= rate <= 1.0 for rate in rates) or list(rates) != sorted(rates, reverse=True):
            raise ConfigError(
                f"synthetic_acceptance_rates are {list(rates)}; they must lie between 0 and 1, none above the one "
                "before it",
                flag="--speculative-config",
            )
        if (SYNTHETIC in methods) != bool(rates):
            raise ConfigError(
                "method synthetic and synthetic_acceptance_rates go together; give both or neither",
                flag="--speculative-config",
            )
        if "draft_model" in methods and not self.model:
            raise ConfigError("method draft_model needs `model`", flag="--draft")
        if self.model and "draft_model" not in methods:
            raise ConfigError(f"method {self.method} takes no `model`", flag="--speculative-config")
        if self.rejection_sample_method is not None and self.verification is not Verification.COUPLED:
            raise ConfigError(
                "rejection_sample_method and verification say the same; keep one of them", flag="--speculative-config"
            )

    @property
    def methods(self) -> frozenset[str]:
        """The proposers that draft where a request does not say."""
        return methods_of(self.method, has_draft_model=self.model is not None)

    @property
    def plan(self) -> SpeculationPlan:
        """Of a request that says nothing."""
        verification = {
            None: self.verification,
            "standard": Verification.REJECTION,
            "block": Verification.BLOCK,
        }[self.rejection_sample_method]
        return SpeculationPlan(self.methods, self.num_speculative_tokens, verification, self.mask_drafts)


class SpeculativeParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request's own wishes; what is None is as the engine has it. Raises RequestError."""

    enabled: bool | None = None
    """False is plain decoding."""
    method: str | None = None
    """As SpeculativeConfig.method; a draft model must have been loaded with the engine."""
    num_speculative_tokens: int | None = None
    """Tokens of every draft; 0 is plain decoding."""
    verification: Verification | None = None
    mask_drafts: bool | None = None
    """As SpeculativeConfig.mask_drafts."""

    def __post_init__(self) -> None:
        count = self.num_speculative_tokens
        if count is not None and not 0 <= count <= MAX_DRAFT_TOKENS:
            raise RequestError(
                f"speculative.num_speculative_tokens is {count}; it must be between 0 and {MAX_DRAFT_TOKENS}",
                param="speculative.num_speculative_tokens",
            )
        if self.method is not None:
            try:
                methods_of(self.method, has_draft_model=True)
            except ConfigError as error:
                raise RequestError(str(error), param="speculative.method") from error


@dataclass(frozen=True, slots=True)
class SpeculationPlan:
    """How one request is speculated on."""

    methods: frozenset[str] = frozenset()
    """Names of PROPOSERS; none is plain decoding."""
    num_tokens: int | None = None
    """Tokens of every draft; None where its length is chosen step by step."""
    verification: Verification = Verification.COUPLED
    mask_drafts: bool = True
    """Whether the draft model is held to the grammar."""

    @property
    def has_draft_model(self) -> bool:
        return "draft_model" in self.methods

    @property
    def max_tokens(self) -> int:
        """The longest draft."""
        if not self.methods:
            return 0
        return ADAPTIVE_DRAFT_TOKENS if self.num_tokens is None else self.num_tokens


PLAIN: Final = SpeculationPlan()


def methods_of(method: str, *, has_draft_model: bool) -> frozenset[str]:
    """The proposers that a method names. Raises ConfigError for a name that is none."""
    if method == NONE:
        return frozenset()
    chain = frozenset(PROPOSERS) - {SYNTHETIC} - (set() if has_draft_model else {"draft_model"})
    methods: frozenset[str] = frozenset()
    for name in method.split("+"):
        methods |= chain if name == CHAIN else {name}
        if name != CHAIN and name not in PROPOSERS:
            raise ConfigError(
                f"speculative method {name!r} is unknown; it is {CHAIN}, {NONE}, one of {', '.join(PROPOSERS)}, or "
                "several of these joined by +",
                flag="--speculative-config",
            )
    return methods


def resolve_plan(
    config: SpeculativeConfig | None, params: SpeculativeParams | None, *, has_prediction: bool
) -> SpeculationPlan:
    """What an engine's configuration and a request's wishes come to.

    A request that predicts its answer wants that to be used, whatever else drafts. Raises RequestError for a proposer
    that the engine does not have.
    """
    plan = PLAIN if config is None else config.plan
    params = params or SpeculativeParams()
    if params.enabled is False or params.num_speculative_tokens == 0:
        return PLAIN
    has_draft_model = config is not None and config.model is not None
    methods = plan.methods
    if params.method is not None:
        methods = methods_of(params.method, has_draft_model=has_draft_model)
        if "draft_model" in methods and not has_draft_model:
            raise RequestError(
                "this engine has no draft model; start it with --draft MODEL, or ask for another method",
                param="speculative.method",
            )
        if SYNTHETIC in methods and SYNTHETIC not in plan.methods:
            raise RequestError(
                "this engine was not given synthetic_acceptance_rates; ask for another method",
                param="speculative.method",
            )
    elif params.enabled and not methods:
        methods = methods_of(CHAIN, has_draft_model=has_draft_model)
    if has_prediction:
        methods |= {"prediction"}
    return SpeculationPlan(
        methods,
        plan.num_tokens if params.num_speculative_tokens is None else params.num_speculative_tokens,
        plan.verification if params.verification is None else params.verification,
        plan.mask_drafts if params.mask_drafts is None else params.mask_drafts,
    )
