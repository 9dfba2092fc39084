from __future__ import annotations

import pytest
from doubles import tiny

from research_rl.agents import ReferenceEngine, SamplingParams, Sequence
from research_rl.agents.engines.streaming import StreamingEngine


def replies(policy: object, texts: list[str]) -> object:
    def on_stop(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
        return [
            policy.encode(texts[0]) if s.finish == "stop" else None  # type: ignore[attr-defined]
            for _, s in stopped
        ]

    return on_stop


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_samples_what_the_reference_samples(temperature: float) -> None:
    policy = tiny.policy(bias={"</search>": 4.0, "<eos>": 2.0})
    params = SamplingParams(50, temperature=temperature)
    prompts = [policy.encode("Who is it?"), policy.encode("And then?")]
    on_stop = replies(policy, [" <result>\né\n</result>"])
    heard: list[str] = []
    engine = StreamingEngine(policy, lambda role, text: heard.append(text))
    ours = engine.run(prompts, params, on_stop, [3, 4])  # type: ignore[arg-type]
    theirs = ReferenceEngine(policy).run(prompts, params, on_stop, [3, 4])  # type: ignore[arg-type]
    for one, other in zip(ours, theirs, strict=True):
        assert one.response_ids == other.response_ids
        assert (one.loss_mask, one.finish) == (other.loss_mask, other.finish)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert "".join(heard) == "".join(policy.decode(one.response_ids) for one in ours)


def test_the_pieces_are_whole_characters_and_say_who_wrote_them() -> None:
    policy = tiny.policy()
    told: list[tuple[str, str]] = []
    engine = StreamingEngine(policy, lambda role, text: told.append((role, text)))
    sequence = Sequence([1])
    seen = 0
    for token in policy.encode("aé"):
        sequence.append_sampled(token, 0.0)
        seen = engine._tell(sequence, seen, last=False)
    assert told == [("model", "a"), ("model", "é")]
