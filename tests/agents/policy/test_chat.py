"""Chat templates: system messages, the token that ends a turn, arguments, files and dates."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from doubles import tiny
from transformers import AutoTokenizer

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.policy import LMPolicy, Reference, chat
from research_rl.agents.policy.chat import ChatTemplateConfig
from research_rl.agents.policy.loading import PolicyConfig, load_tokenizer
from research_rl.agents.policy.notice import notice
from research_rl.agents.types import SamplingParams
from research_rl.envs.protocols import INSTRUCT, get_prompt

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
)
DROPS = TURNS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
THINKS = TURNS[: -len("{% endif %}")] + (
    "{% if not (enable_thinking | default(true)) %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
DATED = (
    "{%- if date_string is not defined and strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}'
    "Today is {{ date_string }}, {{ strftime_now( '%A' ) }}.\n" + TURNS
)


@pytest.fixture(autouse=True)
def _every_notice_is_new() -> None:
    notice.cache_clear()


def policy_with(template: str, eos: list[str] | None = None) -> LMPolicy:
    """A policy with this template; ``eos`` are the tokens that its generation config names."""
    tok = tiny.tokenizer()
    tok.chat_template = template
    model = tiny.model(tok=tok)
    model.generation_config.eos_token_id = tok.convert_tokens_to_ids(eos or ["<eos>"])
    return LMPolicy(model, tok)


def saved(folder: Path, template: str) -> str:
    tiny.checkpoint(folder)
    tok = tiny.tokenizer()
    tok.chat_template = template
    tok.save_pretrained(folder)
    return str(folder)


def asked(policy: LMPolicy, prompt: Any = INSTRUCT) -> str:
    return str(policy.tokenizer.decode(policy.encode_prompt(get_prompt(prompt), "Who?")))


@pytest.mark.parametrize("template", [REFUSES, DROPS])
def test_a_system_text_begins_the_users_message_where_there_is_no_role_for_it(
    template: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = policy_with(template)
    caplog.clear()
    said = {"system": "Be brief <|im_end|>.", "user": "Q: {prompt}"}
    text = asked(policy, said)
    assert text == (
        "<|im_start|>user\nBe brief <|im_end|>.\n\nQ: Who?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = policy.encode_prompt(get_prompt(said), "Who?")
    assert ids.count(policy.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    asked(policy)
    (told,) = caplog.records
    assert "has no role for a system message" in told.getMessage()


def test_a_system_message_stays_one_where_the_template_has_the_role(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = policy_with(TURNS)
    caplog.clear()
    assert asked(policy).startswith("<|im_start|>system\nYou are")
    assert asked(policy, {"user": "{prompt}"}) == (
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not caplog.records


def test_what_a_template_refuses_otherwise_is_said_in_one_line() -> None:
    policy = policy_with("{{ raise_exception('only parrots') }}")
    with pytest.raises(ValueError, match="must render messages of user, got only parrots; change"):
        asked(policy)


def test_the_control_token_behind_a_message_ends_a_sequence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = policy_with(TURNS)
    Reference(policy)
    (told,) = caplog.records
    assert "'<|im_end|>' ends a sequence too" in told.getMessage()
    end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert policy.eos_ids == {end, policy.tokenizer.eos_token_id}
    forced = tiny.policy(bias={"<|im_end|>": 1000.0})
    forced.model.generation_config.eos_token_id = None
    sampled = LMPolicy(forced.model, policy.tokenizer)
    (s,) = CachedEngine(sampled).run([[5, 6]], SamplingParams(8), lambda rows: [None for _ in rows])
    assert (s.response_ids, s.finish) == ([end], "eos")


@pytest.mark.parametrize(
    ("behind", "eos", "told"),
    [
        ("<|im_end|>\n", ["<eos>", "<|im_end|>"], ""),
        (" <eos>", ["<eos>"], ""),
        ("\n", ["<eos>"], ""),
        ("</answer>", ["<eos>"], "'</answer>', which is no control token"),
        ("\n### User", ["<eos>"], "'### User', which is no control token"),
    ],
)
def test_what_is_no_control_token_ends_nothing(
    behind: str, eos: list[str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}BEHIND{% endfor %}"
    policy = policy_with(template.replace("BEHIND", behind), eos)
    assert policy.eos_ids == set(policy.tokenizer.convert_tokens_to_ids(eos))
    assert [told in r.getMessage() for r in caplog.records] == [True] * bool(told)


def test_arguments_of_the_template_go_with_the_policy(tmp_path: Path) -> None:
    name = saved(tmp_path / "model", THINKS)
    usual = LMPolicy.from_config(PolicyConfig(name))
    config = PolicyConfig(name, chat_template=ChatTemplateConfig(kwargs={"enable_thinking": False}))
    policy = LMPolicy.from_config(config)
    closed = asked(usual) + "<think>\n\n</think>\n"
    assert asked(policy) == closed
    policy.save_pretrained(tmp_path / "exported")
    again = LMPolicy.from_config(PolicyConfig(str(tmp_path / "exported")))
    assert asked(again) == closed
    others: Any = AutoTokenizer.from_pretrained(tmp_path / "exported")  # as a server reads it
    messages = INSTRUCT.messages("Who?")
    given = {"tokenize": False, "add_generation_prompt": True}
    assert others.apply_chat_template(messages, **given) == closed
    asks = others.apply_chat_template(messages, enable_thinking=True, **given)
    assert asks == asked(usual), "who asks may still say otherwise"


@pytest.mark.parametrize("value", [None, "a 'b'\n", 3, {"a": [1, True]}])
def test_an_argument_arrives_as_it_was_given(value: Any, tmp_path: Path) -> None:
    template = "\n  {% if true %}{{ x is none }} {{ x }}{% endif %}"
    name = saved(tmp_path, template)
    config = PolicyConfig(name, chat_template=ChatTemplateConfig(kwargs={"x": value}))
    plain: Any = AutoTokenizer.from_pretrained(name)
    messages = [{"role": "user", "content": "?"}]
    wanted = plain.apply_chat_template(messages, tokenize=False, x=value)
    assert load_tokenizer(config).apply_chat_template(messages, tokenize=False) == wanted


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    name = saved(tmp_path / "model", TURNS)
    file = tmp_path / "own.jinja"
    file.write_text("Own: {{ messages[-1].content }}<eos>", encoding="utf-8")
    config = PolicyConfig(name, chat_template=ChatTemplateConfig(file=str(file)))
    assert asked(LMPolicy.from_config(config), {"user": "{prompt}"}) == "Own: Who?<eos>"
    config.chat_template.file = str(tmp_path / "none.jinja")
    with pytest.raises(FileNotFoundError, match=r"must be a Jinja file, got .*none\.jinja"):
        load_tokenizer(config)


def test_the_date_is_that_of_the_run(tmp_path: Path) -> None:
    name = saved(tmp_path / "model", DATED)
    policy = LMPolicy.from_config(
        PolicyConfig(name, chat_template=ChatTemplateConfig(date="2020-02-03"))
    )
    assert asked(policy).startswith("Today is 03 Feb 2020, Monday.\n<|im_start|>system")
    policy.save_pretrained(tmp_path / "exported")
    again = LMPolicy.from_config(PolicyConfig(str(tmp_path / "exported")))
    assert asked(again) == asked(policy)


def test_without_a_date_it_is_that_of_loading_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leap(datetime.date):
        @classmethod
        def today(cls) -> Leap:
            return cls(2024, 2, 29)

    monkeypatch.setattr(chat, "date", Leap)
    policy = LMPolicy.from_config(PolicyConfig(saved(tmp_path, DATED)))
    assert "taken to be 2024-02-29 from here on" in caplog.text
    monkeypatch.undo()
    assert asked(policy).startswith("Today is 29 Feb 2024, Thursday.")


def test_a_date_that_cannot_be_fixed_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = "{% set form = '%Y' %}{{ strftime_now(form) }}" + TURNS
    policy = LMPolicy.from_config(PolicyConfig(saved(tmp_path, template)))
    assert "which cannot be fixed" in caplog.text
    assert asked(policy).startswith(str(datetime.date.today().year))


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"date": "yesterday"}, "must be a day such as"), ({"kwargs": {"x": 1}}, "must meet a chat")],
)
def test_wrong_settings_are_refused(settings: Any, why: str, tmp_path: Path) -> None:
    tok = tiny.tokenizer()
    tok.chat_template = DATED if "date" in settings else None
    tok.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=why):
        load_tokenizer(PolicyConfig(str(tmp_path), chat_template=ChatTemplateConfig(**settings)))
