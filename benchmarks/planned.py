"""A planned amount of work: random models that write so many tokens a turn and read so many back.

Whoever samples by the plan computes the same: engine.py compares ways to sample, steps.py trains.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from research_rl.agents import CachedEngine, LMPolicy, SamplingParams

SIZES = {
    "small": (2, 128, 2, 1, 512),
    "tiny": (4, 256, 4, 2, 1024),
    "m100": (12, 768, 12, 4, 3072),
}
"""Layers, hidden size, heads, key heads, width of the feed-forward."""
VOCAB = 8192


@dataclass(frozen=True)
class Work:
    """How much is sampled and read in one step."""

    groups: int
    group_size: int
    turns: int
    turn: int  # tokens
    result: int  # tokens
    prompt: int = 128  # tokens


WORKS = {"tiny": Work(4, 5, 3, 64, 128), "m100": Work(2, 4, 2, 160, 112)}


@dataclass(frozen=True)
class Plan:
    """What every way has to compute."""

    prompts: list[list[int]]  # by row; a group's are equal
    turns: list[list[int]]  # sampled tokens of each turn, by row
    result: list[int]  # what a search returns

    @property
    def sampled(self) -> int:
        """Tokens to sample."""
        return sum(map(sum, self.turns))

    @property
    def budget(self) -> int:
        """Tokens of the longest response, and one."""
        return max(sum(t) + (len(t) - 1) * len(self.result) for t in self.turns) + 1


def make_plan(work: Work, ragged: bool, policy: LMPolicy) -> Plan:
    """The work with random tokens; ragged turns are 0.4 to 1.6 times as long, 1 to 2n - 1 of n."""
    g = torch.Generator().manual_seed(1)
    plain = (~CachedEngine(policy).end.table).nonzero()[:, 0]

    def text(length: int) -> list[int]:
        ids: list[int] = plain[torch.randint(len(plain), (length,), generator=g)].tolist()
        return ids

    singles = [text(work.prompt) for _ in range(work.groups)]
    prompts = [p for p in singles for _ in range(work.group_size)]
    plans = [[work.turn] * work.turns for _ in prompts]
    if ragged:
        counts = torch.randint(1, 2 * work.turns, (len(prompts),), generator=g).tolist()
        shares = [0.4 + 1.2 * torch.rand(n, generator=g) for n in counts]
        plans = [(work.turn * share).int().tolist() for share in shares]
    return Plan(prompts, plans, text(work.result))


class PlannedEngine(CachedEngine):
    """Ends each turn where the plan says, with a stop or an end of sequence."""

    plan: Plan

    def follow(self, plan: Plan) -> PlannedEngine:
        """Set the plan."""
        stop, eos = self._policy.encode("</search>")[0], min(self._policy.eos_ids)
        self._forced = torch.full((len(plan.turns), plan.budget), -1)
        for row, turns in enumerate(plan.turns):
            at = -1
            for number, size in enumerate(turns):
                at += size + (len(plan.result) if number else 0)
                self._forced[row, at] = eos if number == len(turns) - 1 else stop
        self.plan = plan
        return self

    def shape_logits(
        self, logits: Tensor, rows: Tensor, positions: Tensor, params: SamplingParams
    ) -> Tensor:
        """See CachedEngine."""
        logits.masked_fill_(self.end.table.to(logits.device), -torch.inf)
        forced = self._forced[rows, positions]
        ends = (forced >= 0).nonzero()[:, 0]
        logits[ends] = -torch.inf
        logits[ends, forced[ends]] = 0.0
        return logits


class _Lengths(StoppingCriteria):
    """Each row is over after its own number of tokens."""

    def __init__(self, width: int, lengths: list[int]) -> None:
        self._ends = width + torch.tensor(lengths)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        return (input_ids.shape[1] >= self._ends).to(input_ids.device)


@torch.no_grad()
def generate_turns(model: Any, plan: Plan, counts: dict[str, int]) -> list[list[int]]:
    """Turn by turn, all rows that have one padded on the left; (prompt + response) ids."""
    device, history = model.device, [list(p) for p in plan.prompts]
    for turn in range(max(map(len, plan.turns))):
        rows = [i for i, t in enumerate(plan.turns) if len(t) > turn]
        width, lengths = max(len(history[i]) for i in rows), [plan.turns[i][turn] for i in rows]
        lacking = [width - len(history[i]) for i in rows]
        ids = torch.tensor([[0] * n + history[i] for n, i in zip(lacking, rows, strict=True)])
        mask = torch.arange(width) >= torch.tensor(lacking)[:, None]
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            generation_config=free_sampling(max(lengths)),
            stopping_criteria=StoppingCriteriaList([_Lengths(width, lengths)]),
        )
        for i, written, size in zip(rows, out[:, width:].tolist(), lengths, strict=True):
            counts["prefilled"] += len(history[i])
            counts["sampled"] += size
            last = turn == len(plan.turns[i]) - 1
            history[i] += written[:size] + ([] if last else plan.result)
    return history


def free_sampling(tokens: int) -> GenerationConfig:
    """So many tokens, whatever they are."""
    return GenerationConfig(
        max_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=None
    )


def make_policy(
    size: str, vocab: int = VOCAB, dtype: torch.dtype = torch.float32, tied: bool = True
) -> LMPolicy:
    """A random model of this size and a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    backend.add_tokens([AddedToken("</search>", special=False)])
    layers, hidden, heads, key_heads, width = SIZES[size]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=width,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=len(alphabet),
    )
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    return LMPolicy(
        model,
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"),
    )
