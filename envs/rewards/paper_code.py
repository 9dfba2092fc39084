r"""The reward of the paper's own code on a whole text, rewritten for parity, quirks included.

What it does was read from, and is held by tests to recorded verdicts of,
src/verl/utils/reward_score/re_search.py of Agent-RL/ReCall, branch re-search (MIT License).
"""

from __future__ import annotations

import re

_CHAT_MARKER = "<|im_start|>assistant\n"
_BASE_MARKER = "Assistant:"
_SPACED_BOX = "\\boxed "


def extract_prediction(text: str, eos: str) -> tuple[str, str | None]:
    """Return the prediction of a whole text, or what is wrong with the text.

    The response is what stands between the first and the second assistant marker, wherever they
    come from. It must be well formed and end in ``eos``, else it counts as overlong.
    """
    marker = _CHAT_MARKER if _CHAT_MARKER in text else _BASE_MARKER
    parts = text.split(marker)
    if len(parts) < 2:
        return "", "no assistant marker"
    response = parts[1]
    error = validate_format(response)
    if error is not None:
        return "", error
    if not response.endswith(eos):
        return "", "over length"
    prediction = final_answer(response.removesuffix(eos))
    return ("", "no box found") if prediction is None else (prediction, None)


def validate_format(text: str) -> str | None:
    """Return what the original's check finds wrong in a response with its results; None if nothing.

    It counts tags and compares positions: it knows neither who wrote a tag nor what encloses it.
    """
    if text.count("<think>") != text.count("</think>"):
        return "<think> </think> not paired"
    if text.count("<think>") == 0:
        return "<think> or </think> not found"
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return "<answer> or </answer> not found"
    error = _search_error(text)
    if error is not None:
        return error
    begin, end = text.find("<answer>"), text.find("</answer>")
    if begin > end:
        return "<answer> must be before </answer>"
    answer = text[begin:end]
    if "\\boxed{" not in answer or "}" not in answer:
        return "answer is missing \\boxed{} format"
    return None


def _search_error(text: str) -> str | None:
    position = text.find("<search>")
    while position != -1:
        result = text.find("<result>", position)
        search_end = text.find("</search>", position)
        result_end = text.find("</result>", result)
        if -1 in (result, search_end, result_end):
            return "search/result tags are incomplete"
        if not position < search_end < result < result_end:
            return "search/result tags are nested in the wrong order"
        position = text.find("<search>", result_end)
    return None


def final_answer(response: str) -> str | None:
    r"""Return what the original takes for the prediction; None where it finds no box.

    A ``\boxed`` with a space behind it swallows the rest of the answer; otherwise the last box
    counts up to its balancing brace, and an ``\fbox`` gives nothing.
    """
    answer = re.search(r"<answer>(.*?)</answer>", response.strip(), re.DOTALL)
    if answer is None:
        return None
    if _SPACED_BOX in answer[1]:
        return answer[1].split(_SPACED_BOX)[-1].split("$")[0]
    box = answer[1].rfind("\\boxed")
    if box < 0:
        return None
    end = _balanced_end(answer[1], box)
    boxed = answer[1][box:end] if end is not None else ""
    return boxed[len("\\boxed{") : -1] if boxed.startswith("\\boxed{") else None


def _balanced_end(text: str, start: int) -> int | None:
    """Return the position behind the brace that balances the first one from ``start`` on."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if text[position] == "}" and depth == 0:
            return position + 1
    return None
