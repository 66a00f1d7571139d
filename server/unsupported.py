"""Fields that clients send and this server does not act on: those it must refuse, those that change nothing."""

from __future__ import annotations

from specdec.server.body import Refused

_SHARED_REFUSED = {
    "prompt_logprobs": Refused((0, False), "only generated tokens have log-probabilities"),
    "bad_words": Refused(([],), "use logit_bias"),
    "allowed_token_ids": Refused((), "use structured_outputs, or logit_bias"),
    "audio": Refused((), "this model writes text only"),
    "modalities": Refused((["text"], []), 'this model writes text only; send ["text"] or nothing'),
    "web_search_options": Refused((), "this server reaches no network"),
}

CHAT_REFUSED = {
    **_SHARED_REFUSED,
    "functions": Refused(([],), "send tools"),
    "function_call": Refused(("none", "auto"), "send tool_choice"),
    "chat_template": Refused((), "the model's own template is used"),
    "continue_final_message": Refused((False,), "every answer is a message of its own"),
    "echo": Refused((False,), "use /v1/completions"),
}

COMPLETION_REFUSED = {
    **_SHARED_REFUSED,
    "suffix": Refused(("",), "text is only generated after the prompt"),
    "prompt_embeds": Refused((), "send text or token ids"),
    "tools": Refused(([],), "use /v1/chat/completions"),
    "messages": Refused((), "use /v1/chat/completions"),
    "max_completion_tokens": Refused((), "use max_tokens"),
    "top_logprobs": Refused((), "use logprobs, which is a number here"),
}

RESPONSES_REFUSED = {
    **_SHARED_REFUSED,
    "background": Refused((False,), "an answer is given to the request that asks for it; use stream"),
    "conversation": Refused((), "this server keeps no conversations; send the items as input"),
    "prompt": Refused((), "this server keeps no prompts; send instructions and input"),
    "n": Refused((1,), "a response is one answer; use /v1/chat/completions"),
    "response_format": Refused((), "use text.format"),
    "structured_outputs": Refused((), "use text.format, or /v1/chat/completions"),
    "chat_template": Refused((), "the model's own template is used"),
    "messages": Refused((), "use input"),
    "max_tokens": Refused((), "use max_output_tokens"),
    "max_completion_tokens": Refused((), "use max_output_tokens"),
    "logprobs": Refused((False,), "use top_logprobs, or include"),
    "functions": Refused(([],), "send tools"),
    "function_call": Refused(("none", "auto"), "send tool_choice"),
}

WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""OpenAI's fields that concern its own service, not the answer."""

RESPONSES_WITHOUT_EFFECT = WITHOUT_EFFECT | {"reasoning_effort"}
"""As above; nothing is ever stored, whatever `store` says, and the response says so."""
