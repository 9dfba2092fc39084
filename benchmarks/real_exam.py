"""The exam of ``real_model.py``: what a policy answers greedily, its controls, and the report."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium as gym
import torch
from real_questions import Row, read_rows, write_rows

from research_rl.agents import (
    CachedEngine,
    LMPolicy,
    PolicyConfig,
    Rollout,
    SamplingParams,
    collect_rollouts,
    fast_dtype,
    seed_of,
)
from research_rl.agents.policy import WeightDtype
from research_rl.envs import Question
from research_rl.envs.protocols import get_prompt, render_result
from research_rl.envs.retrieval import load_retriever
from research_rl.envs.rewards import exact_match, f1_score
from research_rl.trainers.callbacks.plots import learning_curves
from research_rl.trainers.evaluate.measures import Paired, bootstrap_interval, paired_test

PROMPT = "Question: {prompt}\n"
TOKENS = 420  # of a response, results included, as in small_cpu
AT_ONCE = 64  # questions that an exam plays together
AFTER_GRPO = ("after GRPO", "after GRPO, sampled", "closed book", "naive RAG", "two searches")
"""Files of what a policy answers after GRPO."""
ANSWER_NOW = "<think> I know the answer. </think> <answer> The answer is \\boxed{"


@dataclass(frozen=True)
class Exam:
    """Asks the test questions, greedily, and keeps a row for each.

    Args:
        out: folder of the rows, one file a policy.
        index: what is searched.
        questions: that no training has seen.
        max_searches: of an episode.
        prompt: of all of them.
        search_now: before the question, where one search with it is given.
        answer_now: what makes a policy answer at once.
        tokens: of a response, results included.
        times: how often a question is asked where answers are sampled.
    """

    out: Path
    index: str
    questions: Sequence[Question]
    max_searches: int
    prompt: str = PROMPT
    search_now: str = "<think> I search for the question. </think>"
    answer_now: str = ANSWER_NOW
    tokens: int = TOKENS
    times: int = 4

    def search(self, name: str, folder: str | Path, limit: int | None = None) -> list[Row]:
        """Let a policy answer as it is trained to."""
        return self._kept(name, folder, self._searched, self.questions[:limit])

    def sampled(self, name: str, folder: str | Path) -> list[Row]:
        """The same at temperature 1, as in training; ``times`` rows a question."""
        ask = partial(self._searched, temperature=1.0, times=self.times)
        return self._kept(f"{name}, sampled", folder, ask, self.questions)

    def closed_book(self, name: str, folder: str | Path) -> list[Row]:
        """Make a policy answer at once."""
        return self._kept(name, folder, self._at_once, self.questions)

    def naive_rag(self, name: str, folder: str | Path) -> list[Row]:
        """Make a policy answer behind one search with the question itself."""
        return self._kept(name, folder, self._behind_one, self.questions)

    def _kept(
        self,
        name: str,
        folder: str | Path,
        ask: Callable[..., list[Row]],
        asked: Sequence[Question],
    ) -> list[Row]:
        file = self.out / f"{name}.jsonl"
        if not file.is_file():
            policy = LMPolicy.from_config(PolicyConfig(str(folder), dtype=_quickest()))
            policy.eval()
            rows: list[Row] = []
            for start in range(0, len(asked), AT_ONCE):
                rows += ask(policy, asked[start : start + AT_ONCE])
                done = min(start + AT_ONCE, len(asked))
                print(f"{name}: {done} of {len(asked)} questions", flush=True)
            write_rows(file, rows)
        return read_rows(file)

    def _searched(
        self,
        policy: LMPolicy,
        questions: Sequence[Question],
        temperature: float = 0.0,
        times: int = 1,
    ) -> list[Row]:
        env = gym.make_vec(
            "research_rl.envs:ReSearch-v0",
            num_envs=1,
            autoreset_mode="Disabled",
            index=self.index,
            top_k=1,
            max_searches=self.max_searches,
            prompt=self.prompt,
        )
        params = SamplingParams(self.tokens, temperature=temperature)
        engine, rows = CachedEngine(policy), list[Row]()
        for time in range(times):
            again = (time,) if time else ()
            seeds = [seed_of("exam", question.id, *again) for question in questions]
            played = collect_rollouts(questions, env, policy, engine, params, seeds)
            rows += [_row(rollout) for rollout in played]
        return rows

    def _at_once(self, policy: LMPolicy, questions: Sequence[Question]) -> list[Row]:
        return self._completed(policy, questions, [self.answer_now] * len(questions), 0)

    def _behind_one(self, policy: LMPolicy, questions: Sequence[Question]) -> list[Row]:
        found = load_retriever(self.index).search([q.text for q in questions], 1)
        begun = [
            f"{self.search_now} <search> {q.text} </search>"
            f"{render_result(passages)}\n{self.answer_now}"
            for q, passages in zip(questions, found, strict=True)
        ]
        return self._completed(policy, questions, begun, 1)

    def _completed(
        self,
        policy: LMPolicy,
        questions: Sequence[Question],
        begun: Sequence[str],
        searches: int,
    ) -> list[Row]:
        """Let the policy finish a response up to the closing brace of its answer."""
        prompt = get_prompt(self.prompt)
        prompts = [
            policy.encode_prompt(prompt, q.text) + policy.encode(text)
            for q, text in zip(questions, begun, strict=True)
        ]
        written = CachedEngine(policy).run(
            prompts, SamplingParams(24, temperature=0.0), lambda stopped: [None] * len(stopped)
        )
        guesses = [policy.decode(s.response_ids).partition("}")[0] for s in written]
        return [
            {
                "id": q.id,
                "hops": q.metadata.get("hops"),
                "f1": f1_score(guess, q.answers),
                "em": float(exact_match(guess, q.answers)),
                "searches": float(searches),
                "text": [guess],
            }
            for q, guess in zip(questions, guesses, strict=True)
        ]


def _quickest() -> WeightDtype:
    """The dtype in which this machine answers fastest."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bfloat16" if fast_dtype(device) == torch.bfloat16 else "float32"


def _row(rollout: Rollout) -> Row:
    """One answered question as a row.

    ``named`` is the share of queries with a gold title, ``found`` whether an answer stands in a
    result; None where that says nothing, for yes and no.
    """
    titles = [t.casefold() for t in rollout.question.metadata.get("supporting_titles", ())]
    queries = [query.casefold() for query in rollout.queries]
    named = [any(title.partition(" (")[0] in query for title in titles) for query in queries]
    return {
        "id": rollout.question.id,
        "hops": rollout.question.metadata.get("hops"),
        # the published measures, as of those who are made to answer
        "f1": f1_score(rollout.reward.prediction, rollout.question.answers),
        "em": float(exact_match(rollout.reward.prediction, rollout.question.answers)),
        "form": float(rollout.reward.format_error is None),
        "searches": float(rollout.num_searches),
        "found": None if _is_closed(rollout.question) else _is_found(rollout),
        "named": sum(named) / len(named) if titles and named else None,
        "text": [*rollout.turns],
    }


def _is_closed(question: Question) -> bool:
    return question.answers[0].casefold() in ("yes", "no")


def _is_found(rollout: Rollout) -> bool:
    shown = "\n".join(rollout.results).casefold()
    return any(answer.casefold() in shown for answer in rollout.question.answers)


def after_grpo(exam: Exam, policy: Path | None) -> list[tuple[str, list[Row]]]:
    """Return what the trained policy answers, and its controls."""
    if policy is None:
        return []
    return [
        ("after GRPO", exam.search("after GRPO", policy)),
        ("after GRPO, sampled", exam.sampled("after GRPO", policy)),
        ("after GRPO, closed book", exam.closed_book("closed book", policy)),
        ("after GRPO, naive RAG", exam.naive_rag("naive RAG", policy)),
    ]


def report(
    out: Path,
    policies: Sequence[tuple[str, list[Row]]],
    hops: Sequence[int],
    sought: Collection[str] = (),
) -> None:
    """Write the table, the paired test and the curve of a rung, and print the first two.

    Args:
        out: folder of the rung.
        policies: name and rows of each; ``after SFT`` and ``after GRPO`` are compared, greedy
            and sampled.
        hops: numbers of hops that get a column.
        sought: ids of questions that get a paired test of their own, those that nobody can guess.
    """
    names = ("f1", "em", "form", "searches", "named")
    columns = ["policy", "questions", *names, *(f"f1, {h} hops" for h in hops)]
    columns += [f"searches, {h} hops" for h in hops]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for policy, rows in policies:
        cells = [policy, str(len(_of_each(rows, "f1"))), *(_interval(rows, name) for name in names)]
        for name in ("f1", "searches"):
            cells += [_mean([r for r in rows if r["hops"] == h], name) for h in hops]
        lines.append(f"| {' | '.join(cells)} |")
    spent = json.loads((out / "seconds.json").read_text())
    lines += ["", "Minutes: " + ", ".join(f"{k} {v / 60:.1f}" for k, v in spent.items())]
    of = {policy: _of_each(rows, "f1") for policy, rows in policies}
    tests = {}
    for how in ("", ", sampled"):
        before, last = of.get(f"after SFT{how}", {}), of.get(f"after GRPO{how}", {})
        parts = [("", before), (", answer to be found", sought)]
        for name, ids in parts if sought else parts[:1]:
            old, new = ({i: f1 for i, f1 in side.items() if i in ids} for side in (before, last))
            test = tests[(how + name).strip(", ") or "greedy"] = paired_test(new, old)
            if test.p_value is not None:
                lines += ["", _compared(how + name, test)]
    lines += ["", *(line for policy, rows in policies for line in _reading(policy, rows))]
    text = "\n".join(lines)
    (out / "report.md").write_text(text + "\n")
    rows = {
        policy: [{k: v for k, v in r.items() if k != "text"} for r in rows]
        for policy, rows in policies
    }
    (out / "report.json").write_text(
        json.dumps({"rows": rows, "paired": {how: vars(test) for how, test in tests.items()}})
    )
    curve = out / "grpo" / "metrics.csv"
    if curve.is_file():
        learning_curves([curve], out / "curve.png")
    print(text, flush=True)


def _compared(how: str, test: Paired) -> str:
    """Say what GRPO has changed, for the same questions."""
    return (
        f"F1 after GRPO less F1 after SFT{how}, on the same {test.n} questions: "
        f"{test.mean_a:.3f} - {test.mean_b:.3f} = {test.difference:+.3f} ({test.low:+.3f} to "
        f"{test.high:+.3f}, paired permutation test p = {test.p_value:.4f})"
    )


def _reading(policy: str, rows: Sequence[Row]) -> list[str]:
    """How often an answer stands in a result, and what F1 is where it does and where not."""
    told = [row for row in rows if row.get("found") is not None]
    if not told:
        return []
    found = [row for row in told if row["found"]]
    rest = [row for row in told if not row["found"]]
    return [
        f"{policy}: an answer stands in a result of {len(found)} of {len(told)} rollouts; F1 "
        f"there {_mean(found, 'f1') or '-'}, elsewhere {_mean(rest, 'f1') or '-'}"
    ]


def _of_each(rows: Sequence[Row], name: str) -> dict[str, float]:
    """The mean over the answers to each question, of those that have a value."""
    values = defaultdict[str, list[float]](list)
    for row in rows:
        if (value := row.get(name)) is not None:
            values[row["id"]].append(value)
    return {question: sum(those) / len(those) for question, those in values.items()}


def _interval(rows: Sequence[Row], name: str) -> str:
    found = bootstrap_interval(list(_of_each(rows, name).values()))
    if found.mean is None:
        return ""
    return f"{found.mean:.2f} ({found.low:.2f}-{found.high:.2f})"


def _mean(rows: Sequence[Row], name: str) -> str:
    return f"{sum(r[name] for r in rows) / len(rows):.2f}" if rows else ""
