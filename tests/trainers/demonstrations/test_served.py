"""A teacher behind OpenAI's protocol: the command collects its text, which can be learned from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from doubles import tiny
from doubles.served_model import model_server

from research_rl.agents.types import TextOnly
from research_rl.envs.protocols import get_prompt
from research_rl.envs.synthetic import builtin_world
from research_rl.trainers.demonstrations import command
from research_rl.trainers.demonstrations.collect import ROLLOUTS
from research_rl.trainers.demonstrations.data import read_rollouts
from research_rl.trainers.demonstrations.encode import as_sampled


def test_a_served_teacher_is_played_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, _ = builtin_world()
    rows = [
        {"id": f"q-{n}", "question": q.text, "golden_answers": list(q.answers)}
        for n, q in enumerate(questions[:6])
    ]
    asked = tmp_path / "questions.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    by_text = {row["question"]: n for n, row in enumerate(rows)}

    def says(body: dict[str, Any]) -> Any:
        said = body.get("prompt") or "".join(m["content"] for m in body["messages"])
        number = next(n for text, n in by_text.items() if text in said)
        if "<result>" not in said:
            return f"<think> t </think><search> {rows[number]['question']} </search>"
        answer = rows[number]["golden_answers"][0] if number % 2 == 0 else "nobody"
        return f"<think> t </think><answer> \\boxed{{{answer}}} </answer>"

    out = tmp_path / "demos"
    with model_server(says) as server:
        command.main(
            [
                *("--from", "served", "--url", f"{server.url}/v1", "--served_model", "tiny"),
                *("--questions", str(asked), "--out", str(out), "--right"),
                *("--config", "quickstart", "--model.env.index", "null"),
            ]
        )
    kept = list(read_rollouts(out / ROLLOUTS))
    assert [one.question.id for one in kept] == ["q-0", "q-2", "q-4"]
    assert all(isinstance(one.sequence, TextOnly) for one in kept)
    assert all(len(one.queries) == 1 and one.results for one in kept)
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    assert card["demonstrations"] == 3
    policy = tiny.policy()
    learned = [as_sampled(one, policy, get_prompt("{prompt}")) for one in kept]
    assert all(any(one.sequence.loss_mask) and not all(one.sequence.loss_mask) for one in learned)
    assert "3" in capsys.readouterr().out
    assert logging.getLogger("pytorch_lightning").level == logging.INFO, "as it was"
