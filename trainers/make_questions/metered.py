"""A model whose calls are counted, bounded and kept in the journal."""

from __future__ import annotations

import json
from collections.abc import Sequence

from research_rl.agents import ModelUnavailable, SamplingParams
from research_rl.agents.methods import Generation, Generator, ModelInput
from research_rl.trainers.make_questions.journal import Journal

SPENT = "the budget of model calls is spent"
"""Error of a generation that was not asked for."""


class Metered(Generator):
    """Asks a model, at most so often, and never the same twice.

    Only greedy sampling makes sense here, for what was written is kept.

    Args:
        generator: the model.
        journal: keeps what it wrote.
        budget: calls at most, those that the journal holds included.
    """

    def __init__(self, generator: Generator, journal: Journal, budget: int) -> None:
        self._generator, self._journal, self._budget = generator, journal, budget
        self.continues = generator.continues
        self.spent = False
        """Whether something was not asked because the budget is spent."""

    def generate(
        self,
        inputs: Sequence[ModelInput],
        params: SamplingParams | Sequence[SamplingParams],
        seeds: Sequence[int] | None = None,
    ) -> list[Generation]:
        """See ``Generator``; what is over the budget is a generation with the error ``SPENT``.

        What failed once is a generation with its error, also when it is asked for again.
        """
        keys = [json.dumps(one) for one in inputs]
        fresh = [n for n, key in enumerate(keys) if self._journal.call(key) is None]
        asked = fresh[: max(0, self._budget - self._journal.calls)]
        self.spent = self.spent or len(asked) < len(fresh)
        if asked:
            one_each = params if isinstance(params, SamplingParams) else [params[n] for n in asked]
            written = self._generator.generate([inputs[n] for n in asked], one_each)
            errors = [one.error for one in written if one.error]
            if len(errors) == len(written) and not self._fails_again(keys, asked):
                raise ModelUnavailable(f"the model answered nothing: {errors[0]}")
            for place, one in zip(asked, written, strict=True):
                # what failed counts, so that the budget is one, and is not asked again
                self._journal.add_call(keys[place], one.text, one.error)
        return [self._answer(key) for key in keys]

    def _fails_again(self, keys: Sequence[str], asked: Sequence[int]) -> bool:
        """Whether a single prompt is at fault rather than the server.

        A lone prompt that fails ends the run, as it would with a server that is gone. Where it
        ended an earlier one too, it counts as failed, so that the rest is made.
        """
        if len(asked) > 1:
            return False
        key = keys[asked[0]]
        if self._journal.was_tried(key):
            return True
        self._journal.add_try(key)
        return False

    def _answer(self, key: str) -> Generation:
        held = self._journal.call(key)
        if held is None:
            return Generation.failed(SPENT)
        if held.error is not None:
            return Generation.failed(held.error)
        return Generation(held.text, "eos")
