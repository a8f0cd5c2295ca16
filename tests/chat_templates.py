"""Chat templates in the manners of well-known model families, written for these tests: each with the tokens it needs and its end token."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    text: str
    end: str
    """The token that ends an answer."""
    control: list[str] = field(default_factory=list)
    special: dict[str, str] = field(default_factory=dict)
    takes_system: bool = True


FAMILIES: dict[str, Family] = {
    "chatml": Family(
        "{%- for message in messages %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
        "<|im_end|>",
    ),
    "a default system message": Family(
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\\n' ~ m['content'] ~ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "header tokens and trimmed content": Family(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|head|>' + m['role'] + '<|/head|>\\n\\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}",
        "<|eot|>",
        ["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"],
        {"bos_token": "<|begin|>"},
    ),
    "instructions in brackets": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = none %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + (system + '\\n\\n' if system and loop.first else '') + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        ["<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "an end token at the very end": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
        ["<|end|>"],
        {"eos_token": "<|endoftext|>"},
    ),
    "no system role, model instead of assistant": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}",
        "<end_of_turn>",
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        {"bos_token": "<bos>"},
        takes_system=False,
    ),
    "reasoning kept in the last turn only": Family(
        "{%- set ns = namespace(last=0) %}"
        "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for m in messages %}"
        "{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
        "{{- '<|im_start|>assistant\\n<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' + m.content + '<|im_end|>\\n' }}"
        "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
        "<|im_end|>",
    ),
    "generation marks, loop controls, tools as JSON": Family(
        "{%- if tools %}{{- '<|im_start|>system\\n' + (tools | tojson(indent=2)) + '<|im_end|>\\n' }}{%- endif %}\n"
        "{%- for m in messages %}\n"
        "    {%- if m.role == 'tool' %}{%- continue %}{%- endif %}\n"
        "    {%- if m.role == 'assistant' %}\n"
        "        {{- '<|im_start|>assistant\\n' }}{% generation %}{{- m.content + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}\n"
        "    {%- else %}{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
        "<|im_end|>",
    ),
}
