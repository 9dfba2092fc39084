"""Every dialect behind a server: one message or several, through text or through tool calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles import tiny
from doubles.served_model import Scripted, completion, flat, model_server
from doubles.toy_retriever import Ranked
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents import (
    Generation,
    LMPolicy,
    LocalGenerator,
    ModelUnavailable,
    OpenAIGenerator,
    Prediction,
    ReSearch,
    SamplingParams,
)
from research_rl.agents.methods.dialogue import SeparateMessages, rendered, turn_text
from research_rl.agents.methods.generators import ToolCall, tell_once
from research_rl.agents.policy import ChatTemplate
from research_rl.envs import Question
from research_rl.envs.protocols import PROTOCOLS, CallProtocol, Protocol, Search, get_protocol

QUESTIONS = [Question(f"q{i}", f"Who owns house {i}?", (f"Owner {i}",)) for i in range(2)]
CALLS = [name for name, one in PROTOCOLS.items() if isinstance(one, CallProtocol)]
TAGS = [name for name in PROTOCOLS if name not in CALLS]
Say = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def fresh() -> None:
    tell_once.cache_clear()


def play(generator: Any, protocol: str | Protocol, prompt: Any = "instruct") -> list[Prediction]:
    agent = ReSearch(
        generator, Ranked(), top_k=1, prompt=prompt, protocol=protocol, max_response_tokens=2000
    )
    try:
        return agent.answer(QUESTIONS)
    finally:
        agent.close()


def served(say: Say, protocol: str, prompt: Any = "instruct", **options: Any) -> Any:
    """The predictions, and the requests in earnest (probes are of one token)."""
    with model_server(say) as server:
        options = {"retry_window": 2.0, "timeout": 5.0, "api": "chat", **options}
        told = play(OpenAIGenerator(server.url, "tiny", **options), protocol, prompt)
        asked = [body for _, body in server.requests if body["max_tokens"] > 1]
        return told, asked, [body for _, body in server.requests if body["max_tokens"] == 1]


def number_in(body: dict[str, Any]) -> str:
    told = (m["content"] for m in body.get("messages", ()) if "Who owns" in str(m))
    text = body.get("prompt") or next(told)
    return str(text.split("Who owns house ")[1][0])


def turn(protocol: Protocol, number: str, again: bool) -> str:
    """What a good model writes: one search, then the answer."""
    opened = protocol.begins
    thought = f"I know {number}." if again else f"I need {number}."
    if again:
        return protocol.answer(f"Owner {number}", thought, opened)
    return protocol.search(number, thought=thought, opened=opened)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_dialect_is_played_as_text(name: str) -> None:
    """The generator goes on with messages; no server is in between."""
    protocol = PROTOCOLS[name]

    def say(one: Any) -> Generation:
        assert not isinstance(one, str)
        own = [m["content"] for m in one if m["role"] == "assistant"]
        again = sum(text.count("I need") for text in own) > 0
        number = flat(one).partition("Who owns house ")[2][0]
        return Generation(turn(protocol, number, again), "eos", 5, 10)

    model = Scripted(say)
    for number, told in enumerate(play(model, protocol)):
        assert (told.text, told.format_error) == (f"Owner {number}", None), told.steps
        assert told.queries == (str(number),)
        assert told.passages[0][0].contents == f"{number}\nrank 0"
        assert told.protocol == protocol
        assert told.steps[0].text.startswith(protocol.begins)
    first, second = model.calls[0][0], model.calls[1][0]
    assert model.params[0][0].stops == protocol.stops  # type: ignore[index]
    roles = [m["role"] for m in second[len(first) - bool(protocol.begins) :]]  # type: ignore[index]
    if not protocol.keeps_eos:
        assert roles == ["assistant"]
    else:
        kind = {"o2": "user", "recall": "user"}.get(name, "tool")
        assert roles == ["assistant", kind] + ["assistant"] * bool(protocol.begins)


def test_a_turn_cut_at_a_stop_string_is_made_whole() -> None:
    for name, cut, whole in [
        ("research", "<search> q", "<search> q</search>"),
        ("research", "<search> ", "<search> "),
        ("research", "<think> a <search> b </think>", "<think> a <search> b </think>"),
        ("research", r"<answer> \boxed{x}", r"<answer> \boxed{x}"),
        ("search_r1", "<answer> x ", "<answer> x </answer>"),
        ("search_r1", "<think> <answer> </think> <search> x", None),
        ("r1_searcher", "<think> I <|begin_of_query|> x ", None),
        ("o2", "<search>\n<query>a</query>\n", None),
        ("hermes", "<tool_call>\n{", "<tool_call>\n{"),
    ]:
        protocol = PROTOCOLS[name]
        made = turn_text(Generation(cut, "eos"), protocol)
        closing = "" if name not in TAGS else protocol.tags["search"][1]  # type: ignore[attr-defined]
        assert made == (cut + closing if whole is None else whole), (name, made)
        assert turn_text(Generation(cut, "length"), protocol) == cut


def test_a_thought_is_put_back_in_front() -> None:
    research, hermes = PROTOCOLS["research"], PROTOCOLS["hermes"]
    moved = Generation("<search> q", "eos", reasoning="I need q.")
    assert turn_text(moved, research) == "<think>I need q.</think><search> q</search>"
    assert turn_text(moved, research, "<think>\n") == "I need q.</think><search> q</search>"
    inside = Generation("", "stop", reasoning="I <|begin_of_query|> q <|end_of_query|>")
    assert turn_text(inside, PROTOCOLS["r1_searcher"]) == f"<think>{inside.reasoning}"
    late = Generation("hm </think> <search> q</search>", "stop")
    assert turn_text(late, research) == "<think>hm </think> <search> q</search>"
    assert turn_text(late, research, "<think>") == late.text
    assert turn_text(late, PROTOCOLS["r1_searcher"]) == late.text, "it began in an earlier turn"
    called = Generation("", "eos", reasoning="I need q.", calls=(ToolCall("", "search", "{}"),))
    assert turn_text(called, hermes).startswith("<think>I need q.</think>\n<tool_call>")
    assert isinstance(hermes.parse(turn_text(called, hermes)), Search)


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_the_server_reads(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert isinstance(protocol, CallProtocol)

    def say(body: dict[str, Any]) -> Any:
        if body["max_tokens"] == 1:
            return {**completion("."), "usage": {"prompt_tokens": 9 + 50 * ("tools" in body)}}
        number = number_in(body)
        if body["messages"][-1]["role"] == "tool":
            return completion(f"It is \\boxed{{Owner {number}}}")
        call = {"name": protocol.tool, "arguments": json.dumps({"query": number})}
        calls = [{"id": f"x{number}", "type": "function", "function": call}]
        return 200, {
            **completion(""),
            "choices": [
                {
                    "finish_reason": "tool_calls",
                    "message": {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": calls,
                        "reasoning_content": f"I need {number}.",
                    },
                }
            ],
        }

    told, asked, probes = served(say, name)
    assert [one.text for one in told] == ["Owner 0", "Owner 1"]
    assert [one.queries for one in told] == [("0",), ("1",)]
    first = told[0].steps[0].text
    assert first.startswith("<think>I need 0.</think>")
    assert [part.kind for part in protocol.parts(first)][::2] == ["think", "search"]
    assert len(probes) == 2, "once, not for each question"
    assert all(body["tools"][0]["function"]["name"] == protocol.tool for body in asked)
    assert protocol.written("a few words") not in json.dumps(asked[0]["messages"])
    again = next(body["messages"] for body in asked[2:] if number_in(body) == "0")
    called, answer = again[-2:]
    assert called["tool_calls"][0]["id"] == answer["tool_call_id"] == "x0"
    assert called["content"] == "<think>I need 0.</think>"
    assert "rank 0" in answer["content"]
    assert "<tool_response>" not in answer["content"]


def test_wrong_calls_get_an_error_that_the_model_can_read() -> None:
    wrong: list[Any] = [
        {"id": "a", "function": {"name": "find", "arguments": "{}"}},
        {"id": None, "function": {"name": "search", "arguments": {"query": "as an object"}}},
        {"function": {"name": "search", "arguments": '{"query": "no end'}},
        {"function": None},
        "no call",
        {"id": 7, "function": {"name": None, "arguments": None}},
    ]

    def say(body: dict[str, Any]) -> Any:
        if body["max_tokens"] == 1 or body["messages"][-1]["role"] == "tool":
            return "Owner 0"
        message = {"content": "", "tool_calls": wrong}
        return 200, {"choices": [{"message": message, "finish_reason": "tool_calls"}]}

    told, asked, _ = served(say, "hermes", tools="fields")
    assert told[0].queries == ("as an object",)
    called, *replies = asked[-1]["messages"][-7:]
    assert [one["tool_call_id"] for one in replies] == [c["id"] for c in called["tool_calls"]]
    for call in called["tool_calls"]:
        assert isinstance(json.loads(call["function"]["arguments"]), dict)
        assert call["function"]["name"]
    said = [reply["content"] for reply in replies]
    assert "there is no tool 'find'" in said[0]
    assert "rank 0" in said[1]
    assert "is no JSON" in said[2]
    assert "there is no tool" in said[3]
    assert "is no JSON" in said[4]
    assert "there is no tool" in said[5]


def test_a_second_call_in_one_message_is_answered_where_one_is_allowed() -> None:
    def say(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return "Owner 0"
        call = {"function": {"name": "search", "arguments": '{"query": "q"}'}}
        message = {"content": "Let me see.", "tool_calls": [call, call]}
        return 200, {"choices": [{"message": message, "finish_reason": "tool_calls"}]}

    told, asked, _ = served(say, "llama3", tools="fields")
    assert told[0].queries == ("q",)
    first, second = asked[-1]["messages"][-2:]
    assert "rank 0" in first["content"]
    assert second["content"] == "not run: a message may hold one call"
    assert first["tool_call_id"] != second["tool_call_id"]


@pytest.mark.parametrize("how", ["refused", "passed over", "text"])
def test_calls_as_text_where_the_server_does_not_read_them(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    hermes = PROTOCOLS["hermes"]

    def say(body: dict[str, Any]) -> Any:
        if how == "refused" and ("tools" in body or body["messages"][-1]["role"] == "tool"):
            return 400, {"error": "this server knows no tools"}
        again = "I need" in json.dumps(body["messages"])
        return turn(hermes, number_in(body), again) if body["max_tokens"] > 1 else "."

    with caplog.at_level(logging.WARNING):
        told, asked, probes = served(say, "hermes", tools="text" if how == "text" else "auto")
    assert [one.text for one in told] == ["Owner 0", "Owner 1"]
    assert not any("tools" in body for body in asked)
    assert hermes.written("a few words") in asked[0]["messages"][0]["content"]  # type: ignore[attr-defined]
    last = asked[-1]["messages"][-1]
    assert last["role"] == ("user" if how == "refused" else "tool")
    assert ("<tool_response>" in last["content"]) == (how == "refused")
    notices = [r.message for r in caplog.records if "is told of its tools in words" in r.message]
    assert len(notices) == (how != "text")
    assert bool(probes) == (how != "text")
    if how == "refused":
        assert "this server knows no tools" in notices[0]
        assert "refuses the role 'tool'" in caplog.text


def test_a_dead_server_is_told_once() -> None:
    gone = OpenAIGenerator("http://127.0.0.1:9", "tiny", retry_window=0.1, timeout=1.0)
    with pytest.raises(ModelUnavailable, match="none of the requests was served"):
        play(gone, "hermes")


@pytest.mark.parametrize("name", ["hermes", "o2", "recall", "search_r1"])
@pytest.mark.parametrize("thinks", [False, True])
def test_a_chat_rendered_here_is_what_training_reads(
    name: str, thinks: bool, tmp_path: Path
) -> None:
    """Completions with a tokenizer: the text is, token for token, that of a local rollout."""
    tokenizer = tiny.tokenizer(tags=False)
    if thinks:
        tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    tokenizer.save_pretrained(tmp_path / "tok")
    protocol = PROTOCOLS[name]

    def say(body: dict[str, Any]) -> str:
        again = f"I need {number_in(body)}" in body["prompt"]
        text = turn(protocol, number_in(body), again)
        opened = bool(protocol.begins) or (thinks and (protocol.keeps_eos or not again))
        return text.partition("<think>")[2] if opened and "<think>" in text else text

    options = {"api": "completions", "tokenizer": str(tmp_path / "tok")}
    told, asked, _ = served(say, name, **options)
    policy = tiny.policy(tags=False)
    policy.tokenizer.chat_template = tokenizer.chat_template
    policy = LMPolicy(policy.model, policy.tokenizer)
    scripts = [[step.text for step in one.steps if step.role == "model"] for one in told]
    opened = policy.opened(protocol.prompt(), protocol)
    cut = [
        [t.removeprefix(opened.before(n, protocol.keeps_eos)) for n, t in enumerate(script)]
        for script in scripts
    ]
    near = play(LocalGenerator(policy, tiny.ScriptedEngine(policy, cut)), protocol)
    for there, here in zip(told, near, strict=True):
        assert there.text == here.text
        assert there.steps == here.steps
        assert there.format_error == here.format_error is None
    ids = near[0].rollout.sequence  # type: ignore[union-attr]
    whole = [*ids.prompt_ids, *ids.response_ids]
    last = next(body["prompt"] for body in asked[2:] if number_in(body) == "0")
    read = policy.tokenizer.decode(whole)
    shown = read.replace("<eos>", "").replace("<|im_end|>", "")
    assert shown.startswith(last.replace("<|im_end|>", ""))


def test_messages_go_over_with_their_roles() -> None:
    hermes = get_protocol("hermes")
    said = SeparateMessages([{"role": "user", "content": "Q"}], hermes)
    said.take("a", Generation("a", "eos"))
    said.give("<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>")
    roles = [(m["role"], m["content"]) for m in said.shown]  # type: ignore[union-attr, index]
    assert roles == [("user", "Q"), ("assistant", "a"), ("tool", "1"), ("tool", "2")]
    template = ChatTemplate(tiny.tokenizer())
    text = rendered(template, said.shown)  # type: ignore[arg-type]
    assert text.endswith(
        "<|im_start|>assistant\na<|im_end|>\n<|im_start|>tool\n1<|im_end|>\n<|im_start|>tool\n2"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


@given(st.text(), st.text(), st.text(), st.lists(st.tuples(st.text(), st.text()), max_size=3))
def test_no_answer_of_a_server_is_too_strange(
    text: str, thought: str, opened: str, calls: list[tuple[str, str]]
) -> None:
    told = tuple(ToolCall("", name, given) for name, given in calls)
    for protocol in PROTOCOLS.values():
        for finish in ("eos", "stop", "length"):
            one = Generation(text, finish, reasoning=thought, calls=told)  # type: ignore[arg-type]
            made = turn_text(one, protocol, opened)
            protocol.parse(opened + made)
            dialogue = SeparateMessages([{"role": "user", "content": "Q"}], protocol)
            dialogue.take(made, one)
            dialogue.give(made)
            json.dumps(dialogue.shown).encode()


@given(st.text(), st.text())
def test_a_call_that_a_server_reads_is_a_call_in_every_dialect(name: str, given_: str) -> None:
    for dialect in CALLS:
        protocol = PROTOCOLS[dialect]
        assert isinstance(protocol, CallProtocol)
        made = protocol.message("", [(name, given_)])
        assert isinstance(protocol.parse(made), Search), (dialect, made)
        good = protocol.message("", [(protocol.tool, json.dumps({"query": given_}))])
        found = protocol.parse(good)
        assert isinstance(found, Search)
        assert len(found.queries) == 1, (dialect, good)


def test_tools_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="tools must be auto, fields or text, got 'xml'"):
        OpenAIGenerator("http://127.0.0.1:9", "tiny", tools="xml")  # type: ignore[arg-type]
    assert SamplingParams(stop=()).stops == ()
