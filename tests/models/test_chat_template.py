"""Rendering as transformers does, inside a sandbox."""

import json
import shutil

import pytest

from specdec.chat_template import MAX_RENDERED_CHARS, ChatTemplate, read_chat_templates
from specdec.errors import CheckpointError, RequestError
from specdec.tokenizer import Tokenizer

CHATML = (
    "{%- for message in messages %}\n"
    "    {%- if loop.first and message.role != 'system' %}\n"
    "        {{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}\n"
    "    {%- endif %}\n"
    "    {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content | trim ~ '<|im_end|>\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (system + '\n\n' if loop.first and system is defined else '') }}"
    "{{ m['content'] }}{{ ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
TOOLS = (
    "{% set ns = namespace(calls=0) %}"
    "{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
    "{{ m.role }}: {% if m.tool_calls %}{% for call in m.tool_calls %}{% set ns.calls = ns.calls + 1 %}"
    "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}{% else %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}\n{% endfor %}calls: {{ ns.calls }}"
)
CONTENT_PARTS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.reasoning_content is defined %}<think>{{ m.reasoning_content }}</think>{% endif %}\n{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    "{{ dict(a=1) | tojson }}{{ documents is none }}"
)
FAMILIES = {"chatml": CHATML, "instruct": INSTRUCT, "tools": TOOLS, "parts": CONTENT_PARTS}

CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello <b>there</b> & 'you' é 🙂"}],
    "system": [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "  Hi  "},
        {"role": "assistant", "content": "Salut"},
        {"role": "user", "content": "Ça va ?"},
    ],
}
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Orléans", "n": 1}}}],
    },
    {"role": "tool", "content": "sunny"},
]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "é": "<&>"}}}


@pytest.fixture
def with_template(tiny_model_folder, tmp_path):
    """A model folder with another template."""

    def write(source):
        folder = tmp_path / "model"
        shutil.copytree(tiny_model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
        return folder

    return write


def both(folder, messages, **arguments):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False, **arguments)
    return Tokenizer.from_folder(folder).render_chat(messages, **arguments), theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("prompted", [True, False])
def test_templates_of_common_families_render_as_with_transformers(with_template, family, conversation, prompted):
    ours, theirs = both(with_template(FAMILIES[family]), CONVERSATIONS[conversation], add_generation_prompt=prompted)
    assert ours == theirs


def test_tools_render_as_with_transformers(with_template):
    ours, theirs = both(with_template(TOOLS), CALLS, tools=[WEATHER], add_generation_prompt=True)
    assert ours == theirs
    assert '"é": "<&>"' in ours


@pytest.mark.parametrize("thinking", [True, False])
def test_options_parts_and_reasoning_render_as_with_transformers(with_template, thinking):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning": "because"},
    ]
    ours, theirs = both(with_template(CONTENT_PARTS), messages, add_generation_prompt=False, enable_thinking=thinking)
    assert ours == theirs
    assert "<think>because</think>" in ours


@pytest.mark.model
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_default_model_renders_as_with_transformers(default_model_folder, conversation):
    ours, theirs = both(default_model_folder, CONVERSATIONS[conversation], add_generation_prompt=True)
    assert ours == theirs
    tokenizer = Tokenizer.from_folder(default_model_folder)
    assert tokenizer.encode_chat(CONVERSATIONS[conversation])[0] == tokenizer.bos_token_id


def test_what_a_template_raises_is_the_request_s_fault(with_template):
    tokenizer = Tokenizer.from_folder(with_template(INSTRUCT))
    with pytest.raises(RequestError, match="Roles must alternate") as caught:
        tokenizer.render_chat([{"role": "assistant", "content": "Hi"}])
    assert caught.value.param == "messages"


def render(source, **options):
    template = ChatTemplate(source, {"bos_token": "<s>"})
    return template.render([{"role": "user", "content": "x"}], add_generation_prompt=True, tools=None, options=options)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ('x' * 2000000000) | length }}",
        "{{ 10 ** 1000000000 }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        f"{{% for i in range(1000) %}}{{{{ 'x' * {MAX_RENDERED_CHARS // 100} }}}}{{% endfor %}}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_cannot_reach_out_change_its_input_or_grow_without_bound(source):
    with pytest.raises(RequestError) as caught:
        render(source)
    assert caught.value.param == "messages"


def test_rendering_leaves_the_messages_as_they_were():
    messages = [{"role": "user", "content": "x", "reasoning": "y"}]
    before = json.dumps(messages)
    ChatTemplate("{{ messages }}", {}).render(messages, add_generation_prompt=True, tools=None, options={})
    assert json.dumps(messages) == before


def test_an_option_that_the_template_does_not_know_is_refused_with_those_it_knows():
    source = "{% if enable_thinking %}a{% else %}b{% endif %}{{ bos_token }}"
    assert render(source, enable_thinking=True) == "a<s>"
    for unknown in ("thinking", "messages", "bos_token", "raise_exception"):
        with pytest.raises(RequestError, match=rf"no option {unknown}; it has: enable_thinking") as caught:
            render(source, **{unknown: True})
        assert caught.value.param == "chat_template_kwargs"


def test_a_value_that_is_no_json_never_reaches_the_template():
    with pytest.raises(RequestError, match="object"):
        ChatTemplate("{{ messages }}", {}).render(
            [{"role": object()}], add_generation_prompt=True, tools=None, options={}
        )


def test_a_model_without_a_template_refuses_chat_and_nothing_else(tiny_model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer_config.json"))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.decode(tokenizer.encode("text")) == "text"
    with pytest.raises(RequestError, match="no chat template") as caught:
        tokenizer.render_chat([{"role": "user", "content": "Hi"}])
    assert caught.value.code == "no_chat_template"


def test_a_template_that_does_not_compile_is_refused_at_load(with_template):
    with pytest.raises(CheckpointError, match="does not compile"):
        Tokenizer.from_folder(with_template("{% if %}"))


def test_templates_are_found_where_every_generation_of_files_keeps_them(tmp_path):
    config = tmp_path / "tokenizer_config.json"
    assert read_chat_templates(tmp_path) == {}
    config.write_text(json.dumps({"chat_template": "config"}), encoding="utf-8")
    assert read_chat_templates(tmp_path) == {"default": "config"}
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    config.write_text(json.dumps({"chat_template": named}), encoding="utf-8")
    assert read_chat_templates(tmp_path) == {"default": "d", "tool_use": "t"}
    (tmp_path / "chat_template.jinja").write_text("jinja", encoding="utf-8")
    assert read_chat_templates(tmp_path) == {"default": "jinja"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools", encoding="utf-8")
    assert read_chat_templates(tmp_path) == {"default": "jinja", "tool_use": "tools"}
