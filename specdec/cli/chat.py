"""`specdec run`: one answer, or a chat in the terminal, straight from the engine."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator, Mapping
from typing import Any, Final

from specdec import Constraint, Engine, EngineConfig, FinishReason, JsonSchema, Request, SamplingParams, TokenDelta
from specdec.cli.console import complain, say
from specdec.cli.draft_colours import DraftColours, say_legend, write_parts
from specdec.cli.schema_file import read_schema_file
from specdec.errors import ConfigError, RequestError
from specdec.models.progress import progress_bars

HELP: Final = """\
/schema FILE   every answer satisfies this JSON Schema; /schema off for free text
/reset         forget the conversation
/exit          leave, as does Ctrl-D; Ctrl-C ends an answer
/help          this"""

# A model's answer must not move the cursor or ring the bell; newline and tab stay.
_CONTROL_CHARACTERS: Final = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


class Chat:
    """A conversation with one engine."""

    def __init__(
        self, engine: Engine, params: SamplingParams, *, system: str | None, shows_drafts: bool = False
    ) -> None:
        self.shows_drafts = shows_drafts
        self._engine = engine
        self._params = params
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._opening)
        self._num_requests = 0
        self.constraint: Constraint | None = None

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._messages = list(self._opening)

    def colours(self) -> DraftColours:
        """Of the answer to come."""
        return DraftColours(self._engine.tokenizer, skip_special_tokens=self.constraint is None)

    def answer(self, prompt: str) -> Generator[TokenDelta]:
        """Stream the answer; it joins the conversation once it ended. Closing the iterator aborts it.

        Raises RequestError, and then the conversation is as it was.
        """
        messages = [*self._messages, {"role": "user", "content": prompt}]
        self._num_requests += 1
        request_id = f"chat-{self._num_requests}"
        request = Request(
            request_id=request_id,
            prompt_token_ids=tuple(self._engine.tokenizer.encode_chat(messages)),
            sampling_params=self._params,
            constraint=self.constraint,
            trace=self.shows_drafts,
        )
        self._engine.add_request(request)
        text = ""
        try:
            while self._engine.has_unfinished_requests():
                for delta in self._engine.step():
                    text += delta.text
                    yield delta
            self._messages = [*messages, {"role": "assistant", "content": text}]
        finally:
            self._engine.abort_request(request_id)


def chat(
    config: EngineConfig,
    *,
    prompt: str | None,
    schema_file: str | None,
    system: str | None,
    sampling: Mapping[str, Any],  # Any: SamplingParams checks each of them
    notes: Mapping[str, str],
    shows_drafts: bool = False,
) -> int:
    """Answer `prompt`, or what is piped in, or chat until the user leaves; the exit code.

    With `shows_drafts` each token has the colour of who drafted it.
    """
    proposers = frozenset() if config.speculative is None else config.speculative.methods
    if shows_drafts and not proposers:
        raise ConfigError("nothing is drafted that could be shown; drop it, or --spec none", flag="--show-drafts")
    try:
        params = SamplingParams(**sampling)
    except RequestError as error:
        flag = "--" + error.param.replace("_", "-") if error.param else None
        raise ConfigError(str(error), flag=flag) from error
    constraint = None if schema_file is None else _read_schema(schema_file)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise ConfigError("the prompt is empty; give one, or start a chat from a terminal", flag="--prompt")
    with progress_bars() as progress:
        engine = Engine(config, progress=progress)
    if note := notes.get(engine.describe().device.partition(":")[0]):
        say(f"note: {note}", style="yellow")
    if shows_drafts:
        say_legend(proposers)
    conversation = Chat(engine, params, system=system, shows_drafts=shows_drafts)
    conversation.constraint = constraint
    if prompt is not None:
        last = _print_answer(conversation, prompt)
        return 0 if constraint is None or last.finish_reason is FinishReason.STOP else 1
    _converse(conversation)
    return 0


def _converse(conversation: Chat) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, it gives input() its editing and history
    say("/help lists the commands; Ctrl-D leaves", style="dim")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("(Ctrl-D leaves)", style="dim")
            continue
        command, _, argument = line.partition(" ")
        try:
            match command:
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/help":
                    say(HELP, style="dim")
                case "/reset":
                    conversation.reset()
                    say("the conversation starts anew", style="dim")
                case "/schema":
                    _switch_schema(conversation, argument.strip())
                case _ if command.startswith("/"):
                    complain(f"there is no {command}; /help lists the commands")
                case _:
                    _print_answer(conversation, line)
        except KeyboardInterrupt:
            say("\n(stopped)", style="dim")
        except ConfigError as error:
            complain(str(error))
        except RequestError as error:
            complain(f"{error}; /reset starts anew" if error.code == "context_length_exceeded" else str(error))


def _switch_schema(conversation: Chat, argument: str) -> None:
    if not argument:
        complain("/schema takes a file, or off")
    elif argument == "off":
        conversation.constraint = None
        say("answers are free text", style="dim")
    else:
        conversation.constraint = _read_schema(argument)
        say(f"answers satisfy {argument}", style="dim")


def _print_answer(conversation: Chat, prompt: str) -> TokenDelta:
    """Print the answer as it comes, then a line about it; its last delta."""
    to_terminal = sys.stdout.isatty()
    colours = conversation.colours() if conversation.shows_drafts else None
    num_tokens, last, start = 0, TokenDelta(request_id="", choice_index=0), time.monotonic()
    with contextlib.closing(conversation.answer(prompt)) as deltas:
        for last in deltas:
            num_tokens += len(last.token_ids)
            if colours is not None and to_terminal:
                write_parts((text.translate(_CONTROL_CHARACTERS), proposer) for text, proposer in colours.parts(last))
            else:
                sys.stdout.write(last.text.translate(_CONTROL_CHARACTERS) if to_terminal else last.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    say(_summary(last, num_tokens, time.monotonic() - start), style="dim")
    if last.finish_reason is FinishReason.LENGTH:
        say("the answer was cut: max_tokens or the context was reached", style="yellow")
    if last.finish_reason is FinishReason.ERROR:
        complain(last.error or "the engine failed on this answer, by a fault of its own; its log says why")
    return last


def _summary(last: TokenDelta, num_tokens: int, seconds: float) -> str:
    rate = f"{num_tokens} tokens, {num_tokens / max(seconds, 1e-9):.1f} tok/s"
    speculation = last.speculation
    if speculation is None or speculation.num_draft_tokens == 0:
        return rate
    accepted = f"{speculation.num_accepted_tokens} of {speculation.num_draft_tokens} draft tokens accepted"
    by_proposer = ", ".join(
        f"{proposer} {counts.num_accepted_tokens} of {counts.num_draft_tokens}"
        for proposer, counts in speculation.by_proposer.items()
    )
    return f"{rate}, {accepted} ({by_proposer})"


def _read_schema(file: str) -> Constraint:
    return JsonSchema(schema=read_schema_file(file, flag="--schema"))
