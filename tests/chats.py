"""Chat templates of the usual shapes, and conversations."""

from typing import Any

from tokenizers import AddedToken

from transformer_zoo.data.tokenizer_library import Library
from transformer_zoo.data.tokenizers import Tokenizer

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" ~ (tool | tojson) }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(turns=0) %}
{%- for message in messages if message.role != 'system' %}
    {%- set ns.turns = ns.turns + 1 %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content %}
        {{- message.content }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n' + (call.function | tojson(indent=2)) + '\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set turns = messages[1:] %}
    {% set system = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}
{% else %}
    {% set turns = messages %}
    {% set system = '' %}
{% endif %}
{% for message in turns %}
    {% if (message['role'] == 'user') != (loop.index0 is even) %}
        {{ raise_exception('The roles must alternate: user, assistant, user, ...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {% set content = message['content'] if loop.index0 else system + message['content'] %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {% else %}
        {% generation %}{{- ' ' + message['content'].strip() + ' ' + eos_token -}}{% endgeneration %}
    {% endif %}
{% endfor %}
"""

LLAMA_3 = """\
{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' \
+ message['content'] | trim + '<|eot_id|>' %}\
{% if loop.first %}{% set content = bos_token ~ content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL = """\
{{- bos_token }}
{%- macro parts(content) %}
    {%- if content is string %}{{- content }}{%- else %}
        {%- for part in content %}{%- if part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- continue %}
    {%- elif message.role == 'user' %}
        {%- if tools is not none and message == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.function.items() if key != 'return' %}
                    {%- if value is string %}{{- '"' + key + '": "' + value + '"' }}
                    {%- else %}{{- '"' + key + '": ' + value | tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ', ' }}{%- endif %}
                {%- endfor %}
                {{- '}}' if loop.last else '}}, ' }}
            {%- endfor %}
            {{- '][/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (messages[0].content ~ '\\n\\n' if messages[0].role == 'system' and loop.last else '') }}
        {{- parts(message.content) + '[/INST]' }}
    {%- elif message.tool_calls is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {{- call.function | tojson }}{{- ', ' if not loop.last else '' }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' ~ message.content ~ '}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- ' ' + parts(message.content) | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}
{% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

TEMPLATES = {"chatml": CHATML, "llama-2": LLAMA_2, "llama-3": LLAMA_3, "mistral": MISTRAL, "gemma": GEMMA}
SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]",
    "[/INST]", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <now> & later, in °C",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": " Be brief. "}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
CHATS = {
    "one": [user("Hello <b>you</b>")],
    "turns": [user(" Hi "), assistant("Hello."), user("And you?\n")],
    "system": [SYSTEM, user("Hi"), assistant("Hello."), user("Bye")],
    "tools": [user("Warm?"), assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "21"}, assistant("Yes")],
}


def tokenizer(template: str | None = None, **files: bytes) -> Tokenizer:
    """A byte-level tokenizer with the special tokens of all templates."""
    trained = Tokenizer.train(["Hello you, and you? Be brief. The weather now and later."], 300)
    backend = trained._backend._special
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    given = {} if template is None else {"chat_template.jinja": template.encode()}
    return Tokenizer(Library(backend.to_str()), {"bos": "<s>", "eos": "</s>"}, given | files, source="folder")
