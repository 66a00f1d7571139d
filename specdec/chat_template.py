"""Chat templates: the Jinja program that comes with a model and spells a conversation as one prompt.

Rendered as transformers' `apply_chat_template` does, in a sandbox: no attribute that begins with an
underscore, no method that changes its object, a bounded output. The sandbox does not bound time: a template
comes with the weights, from whoever is trusted for those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import msgspec
from jinja2.exceptions import SecurityError

from specdec.errors import CheckpointError, RequestError

MAX_RENDERED_CHARS = 16 * 2**20

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that tokenizer_config.json names and a template may spell."""

_RESERVED = {"messages", "tools", "add_generation_prompt", *NAMED_TOKENS}
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
# What an expression over a conversation of an unexpected shape can raise, beside Jinja's own errors.
_TEMPLATE_FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class ChatTemplate:
    """One compiled template; `variables` are the special tokens it may spell, as `bos_token` or `eos_token`.

    Raises CheckpointError for a template that does not compile.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = _Environment()
        try:
            self._template = environment.from_string(source)
            undeclared = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except (jinja2.TemplateSyntaxError, RecursionError) as error:
            raise CheckpointError(f"the model's chat template does not compile: {error}") from error
        self._variables = dict(variables)
        self.source = source
        self.takes_tools = "tools" in undeclared
        """Whether it spells the tools that it is given."""
        self.options = frozenset(undeclared) - _RESERVED - set(environment.globals)
        """The variables of its own that a request may set, as `enable_thinking`."""

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, object]] | None,
        options: Mapping[str, object],
    ) -> str:
        """The prompt; raises RequestError if the template refuses the messages or does not know an option."""
        unknown = sorted(set(options) - self.options)
        if unknown:
            known = ", ".join(sorted(self.options)) or "none"
            raise RequestError(
                f"this model's chat template has no option {', '.join(unknown)}; it has: {known}",
                param="chat_template_kwargs",
            )
        context = {
            "documents": None,
            **self._variables,
            **options,
            "messages": [_with_reasoning(message) for message in messages],
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        chunks: list[str] = []
        num_chars = 0
        try:
            for chunk in self._template.generate(_plain(context)):
                chunks.append(chunk)
                num_chars += len(chunk)
                if num_chars > MAX_RENDERED_CHARS:
                    raise RequestError(
                        f"the chat template wrote more than {MAX_RENDERED_CHARS} characters", param="messages"
                    )
        except _TEMPLATE_FAULTS as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except (RecursionError, MemoryError) as error:
            raise RequestError("the model's chat template ran out of stack or memory", param="messages") from error
        return "".join(chunks)


def read_chat_templates(folder: Path) -> dict[str, str]:
    """The templates of a model folder by name, `default` first of all; empty where it has none.

    chat_template.jinja goes before chat_template.json, and both before tokenizer_config.json.
    """
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        named = {"default": jinja.read_text(encoding="utf-8")}
        extra = folder / "additional_chat_templates"
        if extra.is_dir():
            named.update((path.stem, path.read_text(encoding="utf-8")) for path in sorted(extra.glob("*.jinja")))
        return named
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            template = msgspec.json.decode(path.read_bytes(), type=_TemplateHolder).chat_template
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if isinstance(template, str):
            return {"default": template}
        if template:
            return {entry.name: entry.template for entry in template}
    return {}


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TemplateHolder(msgspec.Struct):
    chat_template: str | list[_NamedTemplate] | None = None


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}`: marks what the assistant wrote, for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012, Jinja declares it as an instance variable

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, without names that reach into the interpreter."""

    def __init__(*args: object, **kwargs: object) -> None:
        # `self` is taken from args, as Jinja does, so that `namespace(self=...)` stays possible.
        self, rest = args[0], args[1:]
        assert isinstance(self, _Namespace)
        fields = _dict(*rest, **kwargs)
        for name in fields:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, fields)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment that chat templates are written for."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _Namespace
        # The function, not the type: the type's attributes are no business of a template.
        self.globals["dict"] = _dict

    def unsafe_undefined(self, obj: object, attribute: str) -> NoReturn:
        # Jinja's own answer is an undefined value, which prints as nothing: a prompt with a hole in it.
        raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__} is not allowed")

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: object, right: object) -> object:
        """`*` and `**` with bounded results."""
        if operator == "**" and isinstance(right, int) and abs(right) > 64:
            raise SecurityError(f"the exponent {right} is above 64")
        for sequence, times in ((left, right), (right, left)):
            if (
                isinstance(sequence, (str, list, tuple))
                and isinstance(times, int)
                and len(sequence) * times > MAX_RENDERED_CHARS
            ):
                raise SecurityError(f"a repetition {times} times is too long")
        result: object = super().call_binop(context, operator, left, right)
        return result


def _refuse_underscore(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace field cannot be called {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)  # noqa: DTZ005, templates show the local date, as with transformers


def _dict(*args: Any, **kwargs: Any) -> dict[str, Any]:  # whatever dict takes, which checks it
    return dict(*args, **kwargs)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _with_reasoning(message: Mapping[str, object]) -> dict[str, object]:
    """The message with its reasoning under both names that templates read it by."""
    found = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    if found is None:
        return dict(message)
    return {"thinking": found, **message, "reasoning_content": found}


def _plain(value: object) -> object:
    """A copy of JSON types only: nothing with methods that the sandbox does not know."""
    if value is None or type(value) in {str, int, float, bool}:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise RequestError(f"messages hold a {type(value).__name__}; they must be plain JSON values", param="messages")
