"""What the learner computes equals one unpadded forward pass for each rollout, and costs less."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from doubles import tiny
from torch import Tensor

from research_rl.agents.kernels.packing import _pieces, _Segment, pack
from research_rl.agents.policy import LMPolicy, PolicyOutput, Reference
from research_rl.agents.types import Rollout, Sequence
from research_rl.envs.types import Question, Reward
from research_rl.trainers import algorithms
from research_rl.trainers.algorithms import GRPO, GSPO, PPO, Algorithm
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.learner import MISMATCH, Learner, packed_forward
from research_rl.trainers.settings.options import Updates

RULES = sorted(
    name
    for name in algorithms.__all__
    if isinstance(rule := getattr(algorithms, name), type) and issubclass(rule, Algorithm)
    if rule.advantages is not Algorithm.advantages
)
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 6},
    "gemma2": {
        "sliding_window": 6,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "hyperclovax": {"logits_scaling": 0.5},  # multiplies where Granite divides
}
SIZES = ((5, [(4, 3, 2), (7, 0, 0), (1, 2, 6)]), (9, [(3, 4, 5), (2, 0, 0), (6, 1, 1)]))
"""Of two groups: prompt, and sampled, given, sampled tokens of each rollout."""
SEPARABLE = GRPO(kl_coef=0.1, entropy_coef=0.05)


def rollouts() -> list[Rollout]:
    """Rollouts of two questions with random tokens; the prompts are the question's."""
    draw = torch.Generator().manual_seed(3)
    ids: Callable[[int], list[int]] = lambda n: torch.randint(8, 200, (n,), generator=draw).tolist()  # noqa: E731
    made = []
    for number, (prompt, sizes) in enumerate(SIZES):
        question, start = Question(f"q{number}", f"Question {number}?", ("a",)), ids(prompt)
        for place, (first, given, second) in enumerate(sizes):
            sequence = Sequence(list(start))
            for token in ids(first):
                sequence.append_sampled(token, -5.0)
            sequence.append_given(ids(given))
            for token in ids(second):
                sequence.append_sampled(token, -5.5)
            made.append(Rollout(question, sequence, Reward(place / 2), ["turn"], []))
    return made


def batch() -> Batch:
    made = Batch.from_rollouts(rollouts(), pad_id=0)
    turns = int(made.turns.max()) + 1
    made.set_turn_rewards([[0.3 * t + 0.1 * i for t in range(turns)] for i in range(len(made))])
    return made


def alone(policy: LMPolicy, rows: Batch, temperature: float, gradient: bool) -> PolicyOutput:
    """Score each row by itself, without padding, from all of its logits."""
    width = rows.loss_mask.shape[1]
    found: list[list[Tensor]] = [[], [], []]
    for ids, length in zip(rows.input_ids, rows.lengths.tolist(), strict=True):
        out = policy.model(input_ids=ids[None, :length], output_hidden_states=True)
        logp = (out.logits[0, :-1] / temperature).log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        parts = (
            logp.gather(-1, ids[1:length, None])[:, 0],
            entropy if gradient else entropy.detach(),
            out.hidden_states[-1][0, :-1],
        )
        for kept, part in zip(found, parts, strict=True):
            blank = part.new_zeros(width - len(part), *part.shape[1:])
            kept.append(torch.cat((part, blank)))
    return PolicyOutput(*(torch.stack(kept) for kept in found))


def gradients(policy: LMPolicy, rule: Algorithm) -> Tensor:
    """All gradients in one vector; they are reset."""
    grads = []
    for parameter in (*policy.parameters(), *rule.parameters()):
        grads.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return torch.cat([g.flatten() for g in grads])


def prepared(learner: Learner) -> Batch:
    """A batch ready for an update."""
    rows = batch()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        learner.score(rows)
        if rows.old_logprobs is not None:  # the policy has moved since
            rows.old_logprobs = rows.old_logprobs + 0.3 * torch.randn(rows.old_logprobs.shape)
    rows.weights = learner.algorithm.weights(rows)
    return rows


def learn(learner: Learner, rows: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Sums and gradients of one update."""
    sums: dict[str, Tensor] = {}
    for index in learner.portions(rows):
        for name, value in learner.backward(rows[index], Tensor.backward, compare=True).items():
            sums[name] = sums.get(name, torch.zeros(())) + value
    return sums, gradients(learner.policy, learner.algorithm)


def make(
    rule: Algorithm, family: str = "qwen2", updates: Updates | None = None, **settings: Any
) -> Learner:
    policy = tiny.policy(family, **{**FAMILIES[family], **settings})
    torch.manual_seed(0)
    rule.bind(policy)
    for parameter in rule.parameters():  # a value head that begins at 0 would show nothing
        torch.nn.init.normal_(parameter, std=0.1)
    reference = None
    if rule.needs_reference:
        reference = Reference(tiny.policy(family, seed=1, **{**FAMILIES[family], **settings}))
    return Learner(policy, rule, updates or Updates(4), 0.8, reference)


def assert_exact(learner: Learner) -> None:
    rows = prepared(learner)
    rule = learner.algorithm
    out = alone(learner.policy, rows, 0.8, rule.entropy_gradient)
    loss, metrics = rule.loss(out, rows)
    loss.backward()
    expected = gradients(learner.policy, rule)
    sums, found = learn(learner, rows)
    torch.testing.assert_close(sums["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    for name, value in metrics.items():
        torch.testing.assert_close(sums[name], value.detach().float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", RULES)
def test_loss_and_gradient_are_those_of_single_rollouts(name: str, steps: int) -> None:
    rule: Any = getattr(algorithms, name)
    needed = {"fixed_length": 10} if name == "DrGRPO" else {}
    assert_exact(make(rule(**needed), updates=Updates(4, num_epochs=steps)))


@pytest.mark.parametrize("rule", [SEPARABLE, GSPO(kl_coef=0.1, entropy_coef=0.05)])
@pytest.mark.parametrize("family", FAMILIES)
def test_so_they_are_for_every_family(family: str, rule: Algorithm) -> None:
    learner = make(rule, family)
    assert learner.packed is not None
    assert_exact(learner)


@pytest.mark.parametrize("waste", [(16, 0), (1, 1000)])
@pytest.mark.parametrize("family", ["qwen2", "mistral", "gemma2"])
def test_so_they_are_where_responses_are_cut(
    family: str, waste: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("research_rl.agents.kernels.packing._QUERIES", (2, 3))
    monkeypatch.setattr("research_rl.agents.kernels.packing._WASTE", waste)
    assert_exact(make(SEPARABLE, family))


def test_pieces_are_even_and_longer_where_there_would_be_many() -> None:
    sizes = [[p.size for p in _pieces(0, _Segment(0, size, range(9)))] for size in (448, 129, 7)]
    assert sizes == [[112] * 4, [64, 65], [7]]
    long = list(_pieces(0, _Segment(0, 16384, range(9))))
    assert [p.size for p in long] == [256] * 64
    assert long[-1].seen == 9 + 16384


def test_a_critic_may_change_the_trunk() -> None:
    assert_exact(
        make(PPO(train_trunk=True, kl_in="loss", kl_estimator="k3"), updates=Updates(4, 2))
    )


def test_a_critic_that_sees_whole_rollouts() -> None:
    class Whole(PPO):
        """Not separable, for all that the trainer knows."""

        def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            """Return the same."""
            return super().loss(out, batch)

    assert PPO.separable
    assert not Whole.separable
    assert_exact(make(Whole(train_trunk=True)))


@pytest.mark.parametrize(
    "updates",
    [
        Updates(4, micro_batch_size=1),
        Updates(4, micro_batch_size=2),
        Updates(4, micro_batch_tokens=20),
        Updates(4, micro_batch_tokens=1),
    ],
)
def test_portions_do_not_change_the_gradient(updates: Updates) -> None:
    assert_exact(make(GSPO(), updates=updates))
    assert_exact(make(GRPO(), updates=updates))


def test_checkpointed_activations_do_not_change_the_gradient() -> None:
    learner = make(GRPO())
    learner.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    learner.policy.train()
    assert all(layer.gradient_checkpointing for layer in learner.policy.model.model.layers)
    assert_exact(learner)


def test_frozen_embeddings_get_no_gradient() -> None:
    learner = make(GRPO())
    head = learner.policy.model.get_output_embeddings().weight.requires_grad_(False)
    learn(learner, prepared(learner))
    learner.backward(prepared(learner), Tensor.backward)
    assert head.grad is None
    assert next(learner.policy.model.model.layers.parameters()).grad is not None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_copies_compute_and_float32_weights_learn(checkpointing: bool) -> None:
    exact, half = (
        make(GRPO(), updates=Updates(4, compute_dtype=dtype), tie_word_embeddings=True)
        for dtype in (None, "bfloat16")
    )
    if checkpointing:
        half.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        half.policy.train()
    seen: list[torch.dtype] = []
    layer = half.policy.model.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    rows = prepared(exact)
    before = [p.detach().clone() for p in half.policy.parameters()]
    sums, found = learn(half, rows)
    expected_sums, expected = learn(exact, rows)
    assert len(seen) == 1 + checkpointing
    assert set(seen) == {torch.bfloat16}
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.1
    assert float(sums["loss"]) == pytest.approx(float(expected_sums["loss"]), abs=0.02)
    parameters = list(half.policy.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    with torch.no_grad():
        parameters[0].add_(1.0)
    half.moved()
    assert float(learn(half, rows)[0]["loss"]) != float(sums["loss"])


# -- cost


def test_a_prompt_is_read_once_and_nothing_is_padded() -> None:
    learner = make(GRPO(kl_coef=0.0))
    rows = prepared(learner)
    learn(learner, rows)
    # a response's last token is scored, but nothing behind it is
    wanted = sum(p + sum(max(sum(size) - 1, 0) for size in sizes) for p, sizes in SIZES)
    assert learner.forward_tokens == wanted
    assert wanted < int(rows.lengths.sum()) < rows.input_ids.numel()


def test_what_stands_behind_the_last_turn_is_not_read() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 7, 8, 9, 0]])
    wanted = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 0, 1, 0]]).bool()
    packed = pack(ids, wanted)
    assert packed.ids.tolist() == [1, 2, 3, 7, 8]
    assert packed.positions.tolist() == [0, 1, 2, 2, 3]
    assert packed.targets.tolist() == [3, 4, 7, 9]
    assert packed.sources.tolist() == [1, 2, 1, 4]
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert packed.padded(values).tolist() == [[0, 1, 2, 0, 0], [0, 3, 0, 4, 0]]


def test_rows_without_targets_are_left_out() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert pack(ids, torch.tensor([[False, False], [False, True]])).ids.tolist() == [4, 5]
    nothing = pack(ids, torch.zeros(2, 2, dtype=torch.bool))
    assert nothing.ids.tolist() == [1]  # the ranks of a run must stay in step
    assert nothing.targets.tolist() == []


def test_an_update_without_targets_has_a_gradient_of_zero() -> None:
    for rule in (GRPO(), GSPO()):
        learner = make(rule)
        rows = prepared(learner)
        rows.loss_mask = torch.zeros_like(rows.loss_mask)
        rows.weights = rule.weights(rows)
        learner.backward(rows, Tensor.backward)
        assert float(gradients(learner.policy, rule).abs().max()) == 0.0


# -- what else is measured, and who is refused


@pytest.mark.parametrize("rule", [GRPO(), GSPO()])
def test_the_distance_to_the_sampler_is_measured(rule: Algorithm) -> None:
    learner = make(rule)
    rows = prepared(learner)
    with torch.no_grad():
        exact = alone(learner.policy, rows, 0.8, False).logprobs
    rows.sampled_logprobs = exact.clone()
    sums, _ = learn(learner, rows)
    assert float(sums["tokens"]) == float(rows.loss_mask.sum())
    assert all(float(sums[name]) < 1e-3 for name in MISMATCH)
    rows.sampled_logprobs[0] -= 0.1
    sums, _ = learn(learner, rows)
    moved = float(rows.loss_mask[0].sum())
    assert float(sums["mismatch_mean"]) == pytest.approx(0.1 * moved, rel=1e-3)
    assert float(sums["mismatch_5pct"]) == moved
    assert float(sums["mismatch_k3"]) == pytest.approx(moved * (0.1**2 / 2 + 0.1**3 / 6), rel=0.02)


def test_a_model_that_cannot_be_packed_learns_from_padded_rows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with caplog.at_level(logging.WARNING):
        learner = make(SEPARABLE, "llama", Updates(4, micro_batch_size=3), rope_parameters=rope)
    assert learner.packed is None
    assert "learning from padded rollouts" in caplog.text
    assert "rope_type 'dynamic'" in caplog.text
    assert_exact(learner)


def test_a_model_that_computes_something_else_is_refused() -> None:
    policy = tiny.policy()
    assert packed_forward(policy) is not None
    policy.model.get_output_embeddings().register_forward_hook(lambda *args: args[-1] * 3)
    assert packed_forward(policy) is None


def test_the_reference_is_in_evaluation_mode_whatever_the_policy_is() -> None:
    peft = pytest.importorskip("peft")
    policy = tiny.policy(attention_dropout=0.5)
    before = Learner(policy, GRPO(), Updates(4), reference=Reference(policy))
    rows = batch()
    before.score(rows)
    expected = rows.ref_logprobs
    adapter = peft.LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear")
    model = peft.get_peft_model(policy.model, adapter)
    adapted = LMPolicy(model, policy.tokenizer)
    with torch.no_grad():
        for parameter in adapted.trainable_parameters():
            parameter.add_(0.1)
    adapted.train()
    reference = Reference(adapted)
    again = Learner(adapted, GRPO(), Updates(4), reference=reference)
    again.score(rows)
    assert adapted.model.training
    torch.testing.assert_close(rows.ref_logprobs, expected)
    padded = reference.logprobs(rows.input_ids, rows.attention_mask)
    assert expected is not None
    torch.testing.assert_close(padded * rows.loss_mask, expected, rtol=1e-4, atol=1e-5)
