"""Template options: what a request may tell the chat template, which is whether and how hard the model thinks."""

from __future__ import annotations

from collections.abc import Mapping

from specdec import ChatTemplate
from specdec.server.errors import bad_request

ALLOWED = ("enable_thinking", "thinking", "reasoning_effort")
"""The variables of templates that requests may set, where the model's template has them."""
SWITCHES = ("enable_thinking", "thinking")
MAX_VALUE_CHARS = 32

TemplateOptions = Mapping[str, bool | str]


def template_options(
    given: TemplateOptions | None,
    effort: str | None,
    *,
    template: ChatTemplate | None,
    effort_param: str = "reasoning_effort",
) -> dict[str, bool | str]:
    """The variables that `chat_template_kwargs` and OpenAI's effort set; without a template, as without them, none.

    An effort goes to a template that has a variable for it. One that can only be told whether to think is told not to
    by `none`, and to do so by any other; with neither, the effort has no effect, as with a model that cannot think.
    Raises ApiError for a variable that is not allowed or that the template does not have, and for an odd value.
    """
    options: dict[str, bool | str] = {}
    known = frozenset[str]() if template is None else template.options & set(ALLOWED)
    for name, value in (given or {}).items():
        param = f"chat_template_kwargs.{name[:100]}"
        if name not in ALLOWED:
            raise bad_request(
                f"{param} cannot be set by a request; those that can are: {', '.join(ALLOWED)}",
                param=param,
                code="unsupported_field",
            )
        if name not in known:
            raise bad_request(
                f"{param} is no option of this model's chat template; it has: {', '.join(sorted(known)) or 'none'}",
                param=param,
                code="unsupported_field",
            )
        options[name] = _checked(value, param)
    if effort is None:
        return options
    _checked(effort, effort_param)
    implied: dict[str, bool | str] = {}
    if "reasoning_effort" in known:
        implied["reasoning_effort"] = effort
    else:
        implied = {name: effort != "none" for name in SWITCHES if name in known}
    for name, value in implied.items():
        if options.setdefault(name, value) != value:
            raise bad_request(
                f"chat_template_kwargs.{name} is {options[name]!r} where {effort_param} is {effort!r}; give one",
                param=effort_param,
                code="conflicting_fields",
            )
    return options


def _checked(value: bool | str, param: str) -> bool | str:
    # A value stands in the prompt, outside of any message: it must be a word.
    if isinstance(value, str) and not (
        0 < len(value) <= MAX_VALUE_CHARS and value.isascii() and value.replace("_", "").replace("-", "").isalnum()
    ):
        raise bad_request(
            f"{param} is {value[:100]!r}; it must be true, false, or a word of at most {MAX_VALUE_CHARS} letters, "
            "digits, dashes and underscores",
            param=param,
        )
    return value
