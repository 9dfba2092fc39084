"""Sampling draws from the distribution it reports, from random numbers that belong to the row."""

from __future__ import annotations

import pytest
import torch

from research_rl.agents.engines.sampling import (
    check_params,
    check_trainable,
    sample,
    seed_of,
    suppress_ends,
    uniforms,
)
from research_rl.agents.types import SamplingParams


def draws(logits: torch.Tensor, params: SamplingParams, count: int) -> tuple[torch.Tensor, ...]:
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return sample(logits.expand(count, -1), params, uniform)


@pytest.mark.parametrize("vocab", [1, 7, 33, 650])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_probabilities(vocab: int, temperature: float) -> None:
    torch.manual_seed(vocab)
    logits = 2 * torch.randn(vocab)
    count = 20_000
    tokens, logprobs = draws(logits, SamplingParams(temperature=temperature), count)
    expected = (logits / temperature).log_softmax(-1)
    frequency = tokens.bincount(minlength=vocab) / count
    assert (frequency - expected.exp()).abs().max() < 2 / count  # evenly spaced uniforms
    torch.testing.assert_close(logprobs, expected[tokens], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.6),
        SamplingParams(top_p=0.999, temperature=1.5),
        SamplingParams(top_k=40, top_p=0.8),
        SamplingParams(top_k=10_000),
    ],
)
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_truncated_distributions_are_the_textbook_ones(
    params: SamplingParams, scale: float
) -> None:
    torch.manual_seed(0)
    logits = scale * torch.randn(700)
    p = (logits / params.temperature).softmax(-1)
    kept, order = p.sort(descending=True)
    if params.top_k:
        kept[params.top_k :] = 0
    kept = kept / kept.sum()
    kept[kept.cumsum(-1) - kept >= params.top_p] = 0
    expected = torch.zeros(700).scatter(0, order, kept / kept.sum())
    count = 20_000
    tokens, logprobs = draws(logits, params, count)
    frequency = tokens.bincount(minlength=700) / count
    assert (frequency - expected).abs().max() < 5e-4
    torch.testing.assert_close(logprobs.exp(), expected[tokens], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("edge", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_tokens_without_probability_are_never_drawn(edge: float, top_p: float) -> None:
    logits = torch.full((2, 650), -torch.inf)
    logits[:, 300:303] = 1.0
    tokens, logprobs = sample(
        logits, SamplingParams(top_p=top_p), torch.full((2,), edge, dtype=torch.float64)
    )
    assert bool(((tokens >= 300) & (tokens < 303)).all())
    assert bool(logprobs.isfinite().all())


def test_greedy_reports_the_log_prob_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, logprobs = sample(logits, SamplingParams(temperature=0), torch.zeros(1).double())
    assert tokens.tolist() == [1]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[:, 1])


def test_a_row_samples_the_same_alone_and_in_company() -> None:
    torch.manual_seed(0)
    logits = torch.randn(16, 650)
    seeds, positions = torch.arange(16), torch.arange(16) * 3
    all_tokens, _ = sample(logits, SamplingParams(), uniforms(seeds, positions))
    for i in (0, 7, 15):
        alone = uniforms(seeds[i : i + 1], positions[i : i + 1])
        assert sample(logits[i : i + 1], SamplingParams(), alone)[0].item() == all_tokens[i]


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    seeds = torch.arange(200).repeat_interleave(200)
    positions = torch.arange(200).repeat(200)
    u = uniforms(seeds, positions)
    assert u.min() >= 0
    assert u.max() < 1
    assert u.unique().numel() == u.numel()
    grid = u.view(200, 200)
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.002
    for shifted in (grid.roll(1, 0), grid.roll(1, 1)):
        assert abs(torch.corrcoef(torch.stack((u, shifted.reshape(-1))))[0, 1]) < 0.02


def test_seed_of_tells_its_keys_apart() -> None:
    keys = [(0,), (1,), (0, 1), (1, 0), ("0",), ("0", 1), (1, 0, 0)]
    assert len({seed_of(*k) for k in keys}) == len(keys)
    assert seed_of(1, "train", 2) == seed_of(1, "train", 2)
    assert all(0 <= seed_of(*k) < 1 << 63 for k in keys)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("max_response_tokens", 0),
        ("max_result_tokens", 0),
        ("min_new_tokens", -1),
        ("min_new_tokens", 513),
    ],
)
def test_bad_settings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        check_params(SamplingParams(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.0), ("top_p", 0.9), ("top_k", 5), ("min_new_tokens", 2)]
)
def test_what_training_cannot_recompute_is_refused_by_name(field: str, value: float) -> None:
    check_trainable(SamplingParams(temperature=0.7))
    check_params(SamplingParams(**{field: value}))
    with pytest.raises(ValueError, match=f"{field} must be .* in training, got {value}"):
        check_trainable(SamplingParams(**{field: value}))


def test_ends_are_suppressed_in_rows_that_are_short() -> None:
    logits, ends = torch.zeros(2, 3), torch.tensor([False, True, False])
    params = SamplingParams(min_new_tokens=4)
    shaped = suppress_ends(logits, ends, torch.tensor([3, 4]), params)
    assert shaped.tolist() == [[0.0, -torch.inf, 0.0], [0.0, 0.0, 0.0]]
    assert suppress_ends(logits, ends, torch.tensor([3, 4]), SamplingParams()) is logits
