"""Chat templates in the style of well-known model families, and a tokenizer that knows their tokens."""

from __future__ import annotations

import json
from pathlib import Path

from ollama_tune.core.data.chat.render import ChatFormat

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + (m['content'] | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = """{%- set system = '' %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user and assistant') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {%- if loop.last and system %}
            {{- '[INST] ' + system + '\n\n' + m.content + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + m.content + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + m.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = """{% for m in messages %}
    {% if m.role == 'user' %}
{{ '<|user|>\n' + m.content + eos_token }}
    {% elif m.role == 'system' %}
{{ '<|system|>\n' + m.content + eos_token }}
    {% elif m.role == 'assistant' %}
{{ '<|assistant|>\n'  + m.content + eos_token }}
    {% endif %}
    {% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
    {% endif %}
{% endfor %}
"""
THINKING = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set text = m.content %}
    {%- set thought = '' %}
    {%- if m.role == 'assistant' and '</think>' in text %}
        {%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set text = text.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<think>\n' + thought + '\n</think>\n\n' }}
    {%- endif %}
    {{- text + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}
"""
FORGETFUL = """{{ bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '<|user|>' + m.content }}{% endif %}
    {%- if m.role == 'system' %}{{ m.content }}{% endif %}
    {%- if m.role == 'assistant' %}
        {{- '<|assistant|>' + m.content.split('</think>')[-1] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}
"""
NEXT_ROLE_ENDS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PLAIN_WORDS = (
    "{% for m in messages %}{{ m.role | capitalize + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
TAGGED = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{ m.content + '<|im_end|>' }}{% endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

FAMILIES = {
    "chatml": (CHATML, "<s>", "<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
    "gemma": (GEMMA, "<bos>", "<eos>"),
    "phi3": (PHI3, "<s>", "<|endoftext|>"),
    "zephyr": (ZEPHYR, "<s>", "</s>"),
    "thinking": (THINKING, "<s>", "<|im_end|>"),
    "forgetful": (FORGETFUL, "<s>", "</s>"),
    "next_role_ends": (NEXT_ROLE_ENDS, "<s>", "<|endoftext|>"),
    "plain_words": (PLAIN_WORDS, "<s>", "</s>"),
    "tagged": (TAGGED, "<s>", "<|im_end|>"),
}

SWITCHED = """{%- if tools %}{{- 'Tools: ' + tools | tojson + '\n' }}{% endif %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- elif enable_thinking %}
        {{- '<think>\n' }}
    {%- endif %}
{%- endif %}"""
DATED = """{{- bos_token }}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- macro head(role) %}<|start_header_id|>{{ role }}<|end_header_id|>{{ '\n\n' }}{% endmacro %}
{%- if messages[0]['role'] == 'system' %}
    {%- set words = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set words = "" %}
{%- endif %}
{{- head('system') }}
{{- "Today Date: " + date_string + " in " + strftime_now('%Y') + "\n\n" + words + "<|eot_id|>" }}
{%- for m in messages %}
    {{- head(m.role) + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- head('assistant') }}{% endif %}
"""
TYPED = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = (messages[0]['content'] if messages[0]['content'] is string
                     else messages[0]['content'][0]['text']) + '\n\n' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set first = "" %}
    {%- set rest = messages %}
{%- endif %}
{%- for m in rest %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {{- '<start_of_turn>' + ("model" if m['role'] == 'assistant' else m['role']) + "\n" }}
    {{- first if loop.first }}
    {%- if m['content'] is string %}
        {{- m['content'] | trim }}
    {%- else %}
        {%- for part in m['content'] %}{{ part['text'] | trim if part['type'] == 'text' }}{% endfor %}
    {%- endif %}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""
DEFAULT_SYSTEM = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>\n' + messages[0]['content'].strip() + '\n<</SYS>>\n\n' %}
    {%- set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}
    {%- else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}
"""

OPTIONED = {
    "switched": (SWITCHED, "<s>", "<|im_end|>"),
    "dated": (DATED, "<|begin_of_text|>", "<|eot_id|>"),
    "typed": (TYPED, "<bos>", "<eos>"),
    "default_system": (DEFAULT_SYSTEM, "<s>", "<|im_end|>"),
    "llama2": (LLAMA2, "<s>", "</s>"),
}
"""Families that ask for options, the date, or the form of a text."""

TOOLED = """{%- if tools %}
    {{- '<|im_start|>system\nTools:' }}
    {%- for tool in tools %}{{ '\n' ~ (tool | tojson) }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' }}
        {%- if m.reasoning_content and loop.index0 > ns.last %}
            {{- '<think>\n' + m.reasoning_content | trim + '\n</think>\n\n' }}
        {%- endif %}
        {{- m.content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments | tojson ~ '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}
"""
INTERLEAVED = """{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'tool' %}{% continue %}{% endif %}
    {%- if m.role == 'user' %}
        {{- '<start_of_turn>user\n' + m.content + '<end_of_turn>\n' }}{% continue %}
    {%- endif %}
    {%- if loop.first or loop.previtem.role != 'tool' %}{{ '<start_of_turn>model\n' }}{% endif %}
    {%- for call in m.tool_calls or [] %}
        {{- '<call>' ~ call.function.name }}
        {%- for key, value in call.function.arguments.items() %}{{ ' ' ~ key ~ '=' ~ value }}{% endfor %}
        {{- '</call>' }}
    {%- endfor %}
    {%- if loop.nextitem is defined and loop.nextitem.role == 'tool' %}
        {{- '<result>' + loop.nextitem.content + '</result>' }}
        {%- if m.content %}{{ m.content + '<end_of_turn>\n' }}{% endif %}
    {%- else %}
        {{- m.content + '<end_of_turn>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<start_of_turn>model\n' }}{% endif %}
"""
CHANNELS = """{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- if m.thinking and loop.last %}
            {{- '<|assistant|>analysis:' + m.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|assistant|>final:' + m.content + ('</s>' if loop.last else '<|end|>') }}
    {%- else %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""
OPENING = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' and loop.last %}
        {%- set thought = m.reasoning_content %}
        {{- '<think>\n' + thought + '\n</think>\n' if thought else '<think></think>' }}
    {%- endif %}
    {{- m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- set quiet = enable_thinking is defined and not enable_thinking %}
    {{- '<|im_start|>assistant\n' + ('<think></think>' if quiet else '<think>\n') }}
{%- endif %}
"""
ESCAPED = (
    "{% for m in messages %}<|im_start|>{{ {'role': m.role, 'text': m.content} | tojson(ensure_ascii=true) }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
SPOKEN = {
    "tooled": (TOOLED, "<s>", "<|im_end|>"),
    "interleaved": (INTERLEAVED, "<bos>", "<eos>"),
    "channels": (CHANNELS, "<s>", "</s>"),
    "opening": (OPENING, "<s>", "<|im_end|>"),
    "escaped": (ESCAPED, "<s>", "<|im_end|>"),
}
"""Families that show tools, thoughts, or texts in another form."""

SPECIAL = [
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
]


def build_folder(folder: Path, family: str, *, as_file: bool = False) -> Path:
    """A model folder without weights: byte-level tokenizer, special tokens, the family's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    template, bos, eos = (FAMILIES | OPTIONED | SPOKEN)[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "user assistant system\n\n the answer is yes and no    [INST] [/INST] <think>\n</think>\n\n"
    tokenizer.train_from_iterator([words] * 8, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": {"__type": "AddedToken", "content": eos, "special": True},
    }
    if as_file:
        (folder / "chat_template.jinja").write_text(template)
    else:
        config["chat_template"] = template
    if family == "next_role_ends":
        stop = [tokenizer.token_to_id(text) for text in ("<|endoftext|>", "<|user|>")]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def chat_format(folder: Path, family: str) -> ChatFormat:
    """The family's chat format, built in `folder`."""
    return ChatFormat.from_folder(build_folder(folder / family, family))
