"""IRCoT: a search behind every sentence of a chain of thought (https://arxiv.org/abs/2212.10509)."""

from __future__ import annotations

from research_rl.agents.methods.answers import extract_answer, says_answer
from research_rl.agents.methods.baselines import Baseline, Work
from research_rl.agents.methods.generators import Generation, Generator
from research_rl.agents.methods.naive import sampling
from research_rl.agents.methods.sentences import first_sentence
from research_rl.agents.methods.templates import INTERLEAVED, TemplateChoice, get_template
from research_rl.envs import Passage, Retriever

SO = "So the answer is:"
_ITERATIONS = {True: 5, False: 8}  # of the paper's evaluation, and of IRCoT's own paper
_FAITHFUL_STOP = (".", "\n")


class IRCoT(Baseline):
    """Writes one sentence, searches for it, shows all passages found so far, writes the next.

    The chain ends at a sentence with "answer is". One that does not get there within
    ``iterations`` sentences is asked for its answer outright.

    Args:
        generator: writes.
        retriever: searches.
        top_k: passages of a search.
        iterations: sentences at most; None is 8, as in the paper.
        max_passages: passages shown at most, the best by score; the paper's 15. None for no limit.
        reader: answer anew at the end, from all passages found and with a chain of thought of its
            own, as the paper's reader does, instead of taking the chain's answer.
        prompt: ``chat``, ``base``, a text with ``{question}``, ``{passages}`` and ``{thoughts}``,
            or a Template.
        faithful: as ReSearch's evaluation ran it: 5 iterations, a sentence ends at the first full
            stop (so "St. Louis" is cut), all passages are kept and shown worst first, and a chain
            without an answer is the answer.
        max_tokens: most tokens of one sentence; what follows its end is dropped.
        temperature: 0 is greedy.
        seed: of sampled texts.
    """

    def __init__(
        self,
        generator: Generator,
        retriever: Retriever,
        top_k: int = 5,
        iterations: int | None = None,
        max_passages: int | None = 15,
        reader: bool = False,
        prompt: TemplateChoice = "chat",
        faithful: bool = False,
        max_tokens: int = 96,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value in (("iterations", iterations), ("max_passages", max_passages)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 or null, got {value}")
        stop = _FAITHFUL_STOP if faithful else ()
        super().__init__(generator, retriever, top_k, sampling(max_tokens, temperature, stop), seed)
        self.template = get_template(prompt, INTERLEAVED, "\nThoughts: ")
        self.iterations = iterations or _ITERATIONS[faithful]
        self.max_passages = None if faithful else max_passages
        self.reader, self.faithful = reader, faithful

    def _run(self, work: list[Work]) -> None:
        self._search(work, [one.question.text for one in work])
        for iteration in range(self.iterations):
            thinking = [one for one in work if not one.done]
            for one, text in self._think(thinking, f"thought {iteration}"):
                thought = self._sentence(text)
                one.texts.append(thought)
                if not thought or says_answer(thought):
                    self._conclude(one, text)
            thinking = [one for one in thinking if not one.done]
            if iteration < self.iterations - 1:
                self._search(thinking, [one.texts[-1] for one in thinking])
        self._close([one for one in work if not one.answer and one.error is None])
        if self.reader:
            self._read([one for one in work if one.error is None])

    def _think(self, work: list[Work], salt: str, add: str = "") -> list[tuple[Work, Generation]]:
        inputs = []
        for one in work:
            shown = self._show(one, self._collected(one))
            thoughts = " ".join([*one.texts, add]).strip()
            inputs.append(self.template.fill(one.question.text, shown, thoughts))
        return self._write(work, inputs, salt)

    def _sentence(self, text: Generation) -> str:
        """The first sentence of what was written."""
        if not self.faithful:
            return first_sentence(text.text)
        return text.text.split("\n")[0].split(".")[0].strip()

    def _conclude(self, one: Work, text: Generation) -> None:
        """End a chain with the answer it gives; "" where it gives none."""
        chain = " ".join(one.texts).strip()
        if self.faithful:
            _, said, answer = chain.partition(SO)
            one.end(answer.strip() if said else chain, text)
        else:
            one.end(extract_answer(chain) if says_answer(chain) else "", text)

    def _close(self, work: list[Work]) -> None:
        """Have the chains that reached no answer give one."""
        if self.faithful:
            for one in work:
                self._conclude(one, Generation("", "eos"))
            return
        for one in work:
            one.finish_reason = ""
        for one, text in self._think(work, "close", SO):
            one.texts.append(f"{SO} {text.text.strip()}")
            one.end(extract_answer(one.texts[-1]), text)

    def _read(self, work: list[Work]) -> None:
        """Answer anew from everything that was found, in one go."""
        for one in work:
            one.texts = []
        for one, text in self._think(work, "reader"):
            one.end(extract_answer(text.text), text)

    def _collected(self, one: Work) -> list[Passage]:
        """All passages found so far, each once with its best score: best first, or worst first."""
        best: dict[str, Passage] = {}
        for passage in (p for found in one.passages for p in found):
            known = best.get(passage.id)
            if known is None or passage.score > known.score:
                best[passage.id] = passage
        ordered = sorted(best.values(), key=lambda p: p.score, reverse=not self.faithful)
        return ordered[: self.max_passages]
