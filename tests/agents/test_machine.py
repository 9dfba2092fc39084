"""Choices that are made from what the machine can do."""

from __future__ import annotations

import logging

import pytest
import torch
from doubles import tiny

from research_rl.agents import machine
from research_rl.agents.engines import CachedEngine
from research_rl.agents.machine import CPU_VARIABLE, chosen_dtype, fast_dtype, fused_decode

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _say_everything_again() -> None:
    machine._tell.cache_clear()
    machine._warn.cache_clear()


@pytest.mark.parametrize(
    ("abilities", "dtype", "fused"),
    [
        ("none", torch.float32, False),
        ("avx512_bf16", torch.bfloat16, False),
        ("avx512_bf16, amx_bf16", torch.bfloat16, True),
    ],
)
def test_auto_follows_from_the_cpus_abilities(
    abilities: str,
    dtype: torch.dtype,
    fused: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(CPU_VARIABLE, abilities)
    with caplog.at_level(logging.INFO):
        assert chosen_dtype("auto", CPU, "engine.dtype") == fast_dtype(CPU) == dtype
        chosen_dtype("auto", CPU, "engine.dtype")
    assert fused_decode(1) is fused
    assert not fused_decode(7)
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 1
    assert f"auto is {str(dtype).removeprefix('torch.')} on a CPU with" in told[0]


def test_a_dtype_that_is_slow_here_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CPU_VARIABLE, "none")
    rates = {torch.float32: 5e10, torch.bfloat16: 1e9, torch.float16: 4e10}
    monkeypatch.setattr(machine, "product_rate", rates.__getitem__)

    assert chosen_dtype("bfloat16", CPU, "updates.compute_dtype") == torch.bfloat16
    chosen_dtype("float16", CPU, "engine.dtype")
    chosen_dtype("float32", CPU, "engine.dtype")

    (warning,) = (r.getMessage() for r in caplog.records)
    assert warning.startswith("updates.compute_dtype: bfloat16 is about 50 times slower")
    assert warning.endswith("set it to auto, or leave it out")


def test_nothing_is_warned_of_where_the_cpu_is_fast(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CPU_VARIABLE, "avx512_bf16")
    chosen_dtype("bfloat16", CPU, "engine.dtype")
    assert not caplog.records


def test_the_rate_of_products_is_measured() -> None:
    threads = torch.get_num_threads()
    assert machine.product_rate(torch.float32) > 1e6
    assert torch.get_num_threads() == threads


def test_what_is_no_dtype_and_no_ability_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"dtype must be float32, .* auto or null, got 'int8'"):
        CachedEngine(tiny.policy(), dtype="int8")  # type: ignore[arg-type]
    monkeypatch.setenv(CPU_VARIABLE, "avx1024")
    with pytest.raises(ValueError, match=r"RESEARCH_CPU must name some of .* got 'avx1024'"):
        fast_dtype(CPU)


def test_auto_samples_as_the_dtype_that_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny.policy()
    monkeypatch.setenv(CPU_VARIABLE, "avx512_bf16")
    assert CachedEngine(policy, dtype="auto").dtype == torch.bfloat16
    monkeypatch.setenv(CPU_VARIABLE, "none")
    assert CachedEngine(policy, dtype="auto").dtype == torch.float32
