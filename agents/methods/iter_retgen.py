"""Iter-RetGen: each answer is the query of the next search (https://arxiv.org/abs/2305.15294)."""

from __future__ import annotations

from research_rl.agents.methods.answers import extract_answer
from research_rl.agents.methods.baselines import Baseline, Work
from research_rl.agents.methods.generators import Generator
from research_rl.agents.methods.naive import sampling
from research_rl.agents.methods.templates import OPEN_BOOK, REASONED, TemplateChoice, get_template
from research_rl.envs import Retriever


class IterRetGen(Baseline):
    """Searches for the question, writes; searches for question and text together, writes anew.

    Every iteration shows the passages of its own search only, and the last text gives the answer.

    Args:
        generator: writes.
        retriever: searches.
        top_k: passages of a search.
        iterations: searches and texts.
        prompt: ``chat``, ``base``, a text with ``{question}`` and ``{passages}``, or a Template.
        faithful: as the paper's evaluation ran it: the prompt of naive RAG, without thoughts, and
            the whole last text as the answer.
        max_tokens: most tokens of one text.
        temperature: 0 is greedy.
        seed: of sampled texts.
    """

    def __init__(
        self,
        generator: Generator,
        retriever: Retriever,
        top_k: int = 5,
        iterations: int = 3,
        prompt: TemplateChoice = "chat",
        faithful: bool = False,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        super().__init__(generator, retriever, top_k, sampling(max_tokens, temperature), seed)
        self.template = get_template(prompt, OPEN_BOOK if faithful else REASONED, "\nAnswer:")
        self.iterations, self.faithful = iterations, faithful

    def _run(self, work: list[Work]) -> None:
        for iteration in range(self.iterations):
            work = [one for one in work if not one.done]
            self._search(work, [self._query(one) for one in work])
            inputs = [
                self.template.fill(one.question.text, self._show(one, one.passages[-1]))
                for one in work
            ]
            for one, text in self._write(work, inputs, f"iteration {iteration}"):
                one.texts.append(text.text.strip())
                if iteration == self.iterations - 1:
                    last = one.texts[-1]
                    one.end(last if self.faithful else extract_answer(last), text)

    @staticmethod
    def _query(one: Work) -> str:
        """The question, behind it what was written last in one line."""
        said = " ".join(one.texts[-1].split()) if one.texts else ""
        return f"{one.question.text} {said}".strip()
