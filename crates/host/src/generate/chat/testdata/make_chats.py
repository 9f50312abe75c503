#!/usr/bin/env python3
"""What transformers makes of conversations by templates written for this test.

The templates are our own. They use what the templates of the usual chat models use: ChatML, Llama's
and Gemma's headers, Mistral's brackets, Qwen's tools, Phi's and Zephyr's ends.

    pip install transformers==5.24.0 jinja2==3.1.6
    python make_chats.py > chats.json
"""

import json

from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

HEADERS = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|head|>system<|tail|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: tools\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|end|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|head|>' + message['role'] + '<|tail|>\\n\\n'+ message['content'] | trim + '<|end|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("Only one tool call at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|end|>" }}
    {%- elif message.role == "tool" %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|tail|>\\n\\n' }}
{%- endif %}
"""

BRACKETS = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("conversation roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {{- ", " if not loop.last else "]" }}
            {%- endfor %}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" and message.content is defined %}
        {%- generation %}
        {{- " " + message["content"]|trim + eos_token}}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""

TOOLS = """{%- macro render_content(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- else -%}
        {%- for item in content -%}
            {%- if 'text' in item -%}{{ item.text }}{%- else -%}?{%- endif -%}
            {{- ' ' * 2 if not loop.last else '' -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(render_content(message.content).startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = render_content(message.content) if message.content is defined else '' %}
    {%- if message.role == "system" %}{% continue %}{% endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function is defined %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {{- tool_call.arguments | tojson }}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

TURNS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

ENDS = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

PYTHON = """{{ true }} {{ none }} {{ 1.5 }} {{ 2 / 1 }} {{ 7 // 2 }} {{ 2 ** 3 }} {{ [1, 'a', none, 'it\\'s'] }} {{ {'a': {'b': false}} }}
{{ missing }}|{{ messages[0].missing }}|{{ (1, 'x') }}
   {% if true %}
   indented
   {% endif %}
{# a comment #}
{{ 'a,b,,c'.split(',') }} {{ 'Title case'.title() }} {{ 'x'.join(['1', '2']) }} {{ ' s '.strip() ~ '|' ~ 'abc'.upper() }}
{{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ [1, 2, 3][-1] }} {{ 'a-b'.replace('-', '+') }} {{ 'abc'.find('c') }} {{ 'b' in 'abc' }}
{{ {'z': 1, 'a': [1, {}], 'é': '<&\\'"\\n'} | tojson }}
{{ {'z': 1, 'a': [1, {}, []]} | tojson(indent=2) }}
{{ {'z': 1, 'é': 'é'} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}
{{ [0.1, 1e20, 1e-7, 100000000000000000, -0.0, 1.0] | tojson }}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | length }} {{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}
{% for key, value in {'a': 1, 'b': 2}.items() %}{{ key }}={{ value }}{{ ';' if not loop.last }}{% endfor %}
{{ messages[0].get('name', 'nobody') }} {{ messages[0]['content'] is string }} {{ messages is sequence }} {{ 'a' is iterable }} {{ {} is mapping }} {{ 3 is number }}
{% set ns = namespace(found=false, items=[]) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}{% set ns.items = ns.items + [loop.index] %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.items }}
{{ dict(a=1) }} {{ range(3) | list }} {{ 'x' | upper }} {{ '%s-%d' | format('a', 3) }} {{ [3, 1] | sort }} {{ messages[0].content | default('d') }} {{ undefined_thing | default('d', true) }}
{% macro tag(name, end='/') %}<{{ name }}{{ end }}>{% endmacro %}{{ tag('a') }}{{ tag('b', end='') }}
{%- for m in messages if m.role == 'user' -%}
  {{ loop.index }}{{ loop.revindex }}{{ loop.length }}{{ loop.previtem is defined }}
{%- else -%}
  nobody
{%- endfor %}
{% raw %}{{ raw }}{% endraw %}

{{ 'end' }}
"""

USER = {"role": "user", "content": " What is the capital of France? "}
TALK = [
    {"role": "system", "content": "You are kind.\n"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello, \"you\" \u00e9\u4f60!"},
    USER,
]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Today's weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "K\u00f6ln"]}, "n": {"type": "number"}},
            "required": ["city"],
        },
    },
}
CALLS = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "id": "c1", "function": {"name": "get_weather", "arguments": {"city": "K\u00f6ln", "n": 1.0}}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "{\"sun\": true}"},
]
THOUGHT = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d", "reasoning": "e\n"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "brackets": BRACKETS,
    "tools": TOOLS,
    "turns": TURNS,
    "ends": ENDS,
    "python": PYTHON,
}
CHATS = [
    {"messages": [USER], "opens": True},
    {"messages": TALK, "opens": True},
    {"messages": TALK, "opens": False},
    {"messages": TALK[1:], "opens": True, "tools": [TOOL, TOOL]},
    {"messages": CALLS, "opens": True, "tools": [TOOL]},
    {"messages": THOUGHT, "opens": True, "extra": {"enable_thinking": False}},
    {"messages": TALK[1:3], "opens": False, "continues": True},
    {"messages": [TALK[1], {"role": "assistant", "content": " Paris is "}], "opens": False, "continues": True},
    {"messages": [USER, USER], "opens": True, "extra": {"date_string": "1 Jan 2020"}},
]


def render(template, chat):
    try:
        rendered, _ = render_jinja_template(
            conversations=[_normalize_chat_messages(chat["messages"])],
            tools=chat.get("tools"),
            documents=None,
            chat_template=template,
            continue_final_message=chat.get("continues", False),
            add_generation_prompt=chat["opens"],
            **{**SPECIAL, **chat.get("extra", {})},
        )
        return {"text": rendered[0]}
    except Exception as error:  # noqa: BLE001
        return {"error": str(error)}


print(json.dumps({
    "special": SPECIAL,
    "chats": CHATS,
    "templates": [
        {"name": name, "template": template, "rendered": [render(template, chat) for chat in CHATS]}
        for name, template in TEMPLATES.items()
    ],
}, indent=1))
