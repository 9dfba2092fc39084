"""Test doubles: chat templates of our own with the habits of those in use."""

from __future__ import annotations

_BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n"
_MESSAGES = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
)
MERGES = (
    _MESSAGES + "{% if m.role == 'tool' %}"
    "{% if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    + _BEGIN
    + "{% endif %}"
)
"""Several messages of a tool become one of the user, as in Qwen's templates."""
THINKS = MERGES.removesuffix("{% endif %}") + "<think>\n{% endif %}"
"""Opens a thought, as templates of reasoning models do."""
DROPS_THOUGHTS = MERGES.replace(
    "\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}",
    "\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endif %}{% endfor %}",
)
"""Writes an empty thought into the last message, and drops the thoughts of the others."""
AS_JSON = (
    _MESSAGES + "<|im_start|>{{ 'ipython' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content | trim }}{% endif %}"
    "<|im_end|>{% endfor %}" + _BEGIN + "{% endif %}"
)
"""Writes what a tool says as JSON, as in Llama's templates; no newline ends a message."""
ENDS_WITH_EOS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<eos>{% endif %}"
)
"""Ends a conversation in an end of sequence, as in Phi's templates; takes no tools."""
NAMES_CALLS = (
    "{% for m in messages %}{% if m.role == 'tool' and m.tool_call_id | length != 9 %}"
    "{{ raise_exception('a call needs 9 characters') }}{% endif %}"
    "<|im_start|>{{ m.role }}{{ m.tool_call_id }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    + _BEGIN
    + "{% endif %}"
)
"""Wants the name of a call, as in Mistral's templates."""
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    + _BEGIN
    + "{% endif %}"
)
"""Knows user and assistant alone, as in Gemma's templates."""
NEEDS_TOOLS = "{% for tool in tools %}{{ tool.function.name }} {% endfor %}" + MERGES
"""Takes tools for granted, as Hermes' template for tools does."""
PASSES_OVER_TOOLS = ENDS_WITH_EOS.replace(
    "{% for m in messages %}", "{% for m in messages if m.role in ('user', 'assistant') %}"
)
"""Does not show what a tool says."""

WITH_TOOL_MESSAGES = {
    "merges": MERGES,
    "thinks": THINKS,
    "drops_thoughts": DROPS_THOUGHTS,
    "as_json": AS_JSON,
    "ends_with_eos": ENDS_WITH_EOS,
    "names_calls": NAMES_CALLS,
    "needs_tools": NEEDS_TOOLS,
}
"""Those that can show what a tool says."""
