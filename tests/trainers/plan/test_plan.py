"""The plan counts what a configuration takes, and says what would make it fit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import tiny
from doubles.training import checkpoint, fit, weights

from research_rl.agents.kernels import packing
from research_rl.agents.policy.loading import PolicyConfig, empty_model, load_model
from research_rl.trainers.algorithms import PolicyGradient
from research_rl.trainers.plan import memory, sizes
from research_rl.trainers.plan.command import main, parsed
from research_rl.trainers.plan.memory import memory_of, portion
from research_rl.trainers.plan.report import as_json, as_table, make_plan
from research_rl.trainers.plan.seconds import DEVICES, Device, phase_seconds, this_cpu
from research_rl.trainers.plan.sizes import Sizes, counted, qwen25, shape_of, sizes_of, with_lora
from research_rl.trainers.settings.options import Updates
from research_rl.trainers.warmstart import TinyModelConfig, tiny_model, word_tokenizer


@pytest.fixture(scope="module")
def seven() -> Sizes:
    """Qwen2.5-7B, trained in full as the paper does."""
    sizes = counted(PolicyConfig("7B", gradient_checkpointing=True), qwen25("7B"))
    return replace(sizes, compute="bfloat16", sampling="bfloat16", response=2048, questions=64)


def test_the_known_shapes_have_the_published_number_of_weights(seven: Sizes) -> None:
    assert seven.weights == 7_615_616_512
    assert seven.trainable == seven.weights


def test_what_is_held_is_counted_by_the_byte(seven: Sizes) -> None:
    memory = memory_of(seven)
    assert memory.held["weights"] == 4 * seven.weights
    assert memory.held["optimizer states"] == 8 * seven.weights
    assert memory.held["reference"] == 2 * seven.weights
    assert memory.update["gradients"] == 4 * seven.weights
    # keys and values: (slots + 1) x tokens x layers x (4 heads x 128) x 2, in bf16
    assert memory.rollout["KV cache"] == 2 * 257 * 2448 * 28 * 512 * 2


def test_shards_divide_what_is_held_and_gather_what_samples(seven: Sizes) -> None:
    spread = memory_of(replace(seven, ranks=8, sharded=True))
    assert spread.held["weights"] == 4 * seven.weights // 8
    assert spread.held["optimizer states"] == seven.weights
    assert "working copies" not in spread.held
    assert spread.rollout["sampling copy (unsharded)"] == 2 * seven.weights


def test_parked_states_count_for_the_update_alone(seven: Sizes) -> None:
    parked = memory_of(replace(seven, parked=True))
    assert "optimizer states" not in parked.held
    assert parked.update["optimizer states"] == 8 * seven.weights


def test_adapters_have_no_reference_and_small_states(seven: Sizes) -> None:
    memory = memory_of(with_lora(seven))
    assert "reference" not in memory.held
    assert memory.held["optimizer states"] < 0.03 * memory.held["weights"]


def test_the_counted_adapter_is_the_real_one() -> None:
    from research_rl.agents.policy.loading import LoraConfig

    real = counted(PolicyConfig("0.5B", lora=LoraConfig(r=16)), qwen25("0.5B"))
    plain = counted(PolicyConfig("0.5B"), qwen25("0.5B"))
    assert with_lora(plain).trainable == real.trainable


def test_the_shape_of_a_model_with_images_is_that_of_its_text() -> None:
    shape = tiny.wrapper(num_hidden_layers=3).config
    sizes = counted(PolicyConfig("images"), shape)
    assert (sizes.layers, sizes.hidden, sizes.heads, sizes.kv_heads) == (3, 32, 4, 2)
    assert sizes.vocabulary == shape.text_config.vocab_size
    assert memory_of(sizes).rollout["KV cache"] > 0


@pytest.mark.parametrize("family", ["mamba", "gpt2"])
def test_a_family_without_the_usual_fields_is_planned_for(family: str) -> None:
    shape = tiny.model(family, **({"state_size": 4} if family == "mamba" else {})).config
    sizes = counted(PolicyConfig(family), shape)
    assert sizes.hidden == 32
    assert sum(memory_of(sizes).update.values()) > 0


def test_a_portion_holds_the_longest_rollout_at_least(seven: Sizes) -> None:
    assert portion(replace(seven, micro_tokens=10)) == seven.prompt + seven.response
    few = replace(seven, questions=1, group=2, response=16, micro_tokens=None)
    assert portion(few) == 2 * 16 + 400


def test_what_does_not_fit_is_told_what_would(seven: Sizes) -> None:
    plan = make_plan(seven, DEVICES["h100"])
    assert not plan.fits
    fitting = [remedy for remedy in plan.remedies if remedy.fits]
    assert any("fsdp2" in remedy.option for remedy in fitting)
    assert all(remedy.peak <= plan.room for remedy in fitting)
    assert "does not fit" in as_table(plan)
    assert json.loads(as_json(plan))["fits"] is False


def test_checkpointing_trades_memory_for_time(seven: Sizes) -> None:
    without = replace(seven, checkpointing=False)
    assert memory_of(without).update["activations"] > memory_of(seven).update["activations"]
    device = DEVICES["h200"]
    assert phase_seconds(without, device)["update"] < phase_seconds(seven, device)["update"]


def test_an_iteration_that_nobody_waits_for_is_called_so(seven: Sizes) -> None:
    laptop = replace(DEVICES["h100"], name="cpu", memory=10**12, flops=1e11, bandwidth=1e10)
    said = as_table(make_plan(seven, laptop)).splitlines()[-1]
    assert "days, too slow to be of use on this device; --device a100 or" in said
    usual = as_table(make_plan(seven, DEVICES["h200"])).splitlines()[-1]
    assert "searches not counted" in usual
    assert "too slow" not in usual


def small(**settings: Any) -> Sizes:
    """A Llama of 135 million weights with frozen embeddings, sampled and learned in bfloat16."""
    shape = {"hidden": 576, "intermediate": 1536, "layers": 30, "heads": 9, "kv_heads": 3}
    shape |= {
        "weights": 134_515_008,
        "trainable": 106_203_456,
        "head": 28_311_552,
        "tensor": 884_736,
    }
    run = {"dtype": "float32", "compute": "bfloat16", "sampling": "bfloat16", "prompt": 40}
    run |= {"head_dim": 64, "vocabulary": 49_152, "head_trains": False, "response": 420}
    run |= {"questions": 8, "group": 4, "mean_response": 280, "sampled": 1 / 3}
    return Sizes(**{**shape, **run, "has_reference": False, **settings})


SERVER = Device("cpu", 16 * 10**9, 190e9, 10e9, 60e9, said="measured")
"""One thread of a server's processor with avx512_bf16, products as measured there."""


def test_an_iteration_on_a_processor_takes_what_it_took() -> None:
    found = phase_seconds(small(), SERVER)
    rollouts, update = found["prefill"] + found["decode"], found["update"]
    assert 20 < rollouts < 80, "40 s were measured for 32 rollouts of 280 tokens, on one core"
    assert 32 < update < 130, "and 65 s for learning from them"
    again = phase_seconds(small(has_reference=True, checkpointing=True), SERVER)
    assert again["update"] > update
    assert again["reference"] == pytest.approx(update / 3, rel=0.2)


def test_rollouts_that_are_left_out_are_sampled_and_not_learned_from(seven: Sizes) -> None:
    for shape, device in ((small(), SERVER), (seven, DEVICES["h200"])):
        usual = phase_seconds(shape, device)
        found = phase_seconds(replace(shape, learned=0.25), device)
        assert found["decode"] == usual["decode"]
        assert usual["update"] / 4 < found["update"] < usual["update"] / 2, "prompts are read"


def test_a_processor_that_is_slow_at_gradients_learns_longer() -> None:
    slow = replace(SERVER, learn_flops=SERVER.flops / 4)
    usual, found = phase_seconds(small(), SERVER), phase_seconds(small(), slow)
    assert found == {**usual, "update": pytest.approx(4 * usual["update"])}


def test_the_processor_is_measured_in_the_dtypes_and_threads_of_the_run() -> None:
    before = torch.get_num_threads()
    device = this_cpu(10**9, small(hidden=64, intermediate=64), threads=1)
    assert torch.get_num_threads() == before
    assert device.decode_flops is not None
    assert min(device.flops, device.decode_flops, device.learn_flops or 0, device.bandwidth) > 0
    assert "with 1 thread: " in device.said
    assert "GFLOP/s in bfloat16 products of 256 tokens" in device.said
    assert "bfloat16 ones of 32" in device.said


def test_a_long_iteration_on_a_processor_is_told_what_shortens_it_first() -> None:
    plan = make_plan(small(), SERVER)
    (line,) = (x for x in as_table(plan).splitlines() if x.startswith("  shorter: "))
    options = ["model.sampling.max_response_tokens: 210", "data.batch_size: 4", "group_size: 2"]
    places = [line.index(option) for option in options]
    assert places == sorted(places)
    assert "shorter" not in as_table(make_plan(small(questions=1, group=2), SERVER))
    assert "shorter" not in as_table(make_plan(small(), DEVICES["h200"]))


def test_less_memory_is_sought_in_shorter_and_fewer_rollouts_first(seven: Sizes) -> None:
    many = replace(seven, checkpointing=False, micro_tokens=None, questions=8)
    remedies = make_plan(many, DEVICES["h100"]).remedies
    in_vain = [remedy.option for remedy in remedies if not remedy.fits]
    assert in_vain[0] == "model.sampling.max_response_tokens: 1024"
    assert in_vain[1] == "data.batch_size: 4"


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"Qwen/Qwen2.5-7B.*nobody/nothing"):
        shape_of({"model": "nobody/nothing"}, {})


def test_the_command_plans_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", "quickstart", "--device", "cpu", "--device-memory", "8GB", "--json"]
    before = list(sys.argv)
    main(arguments)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert sys.argv == before
    assert found["fits"]
    assert found["sizes"]["layers"] == 2
    assert not list(tmp_path.iterdir())


def test_a_model_without_weights_takes_no_memory(tmp_path: Path) -> None:
    model = empty_model(PolicyConfig(str(checkpoint(tmp_path / "policy"))))
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_parked_states_learn_the_same(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "policy")
    seen = []
    for park in (False, True):
        updates = Updates(group_size=4, micro_batch_size=3, park_optimizer=park)
        seen.append(weights(fit(tmp_path / str(park), folder, updates=updates)))
    assert torch.equal(*seen)


class Plain(PolicyGradient):
    """A user's rule, which compares with no reference and takes no kl_coef."""

    def __init__(self) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("chosen", "needs"),
    [
        (["GRPO"], True),
        (["GRPO", "--model.algorithm.kl_coef", "0"], False),
        (["RLOO", "--model.algorithm.kl_control.target", "0.1"], True),
        (["mine.Plain"], False),
    ],
)
def test_the_algorithm_says_whether_it_needs_a_reference(
    chosen: list[str], needs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    config = parsed(["--config", "quickstart", "--model.algorithm", *chosen])
    sizes = sizes_of(config, ranks=1)
    assert sizes.has_reference is needs
    assert ("reference" in memory_of(sizes).held) is needs
    assert ("reference" in phase_seconds(sizes, DEVICES["h100"])) is needs


@pytest.mark.parametrize(
    ("where", "name", "value", "part"),
    [
        (packing, "_QUERIES", (16, 16), "activations"),
        (memory, "CHUNK_BYTES", 1 << 20, "output head"),
        (memory, "GPU_BLOCKS", 1, "output head"),
    ],
)
def test_the_plan_counts_with_the_constants_of_what_it_predicts(
    where: Any, name: str, value: Any, part: str, seven: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = memory_of(seven).update[part]
    monkeypatch.setattr(where, name, value)
    assert memory_of(seven).update[part] != before


def test_constants_are_those_of_what_is_planned() -> None:
    from research_rl.agents.engines import CachedEngine, TurnwiseEngine, slot_run
    from research_rl.agents.kernels import lm_head

    assert memory.CHUNK_BYTES is lm_head.CHUNK_BYTES
    assert memory.GPU_BLOCKS is lm_head.GPU_BLOCKS
    for engine in (CachedEngine, TurnwiseEngine):
        assert signature(engine).parameters["max_slots"].default is sizes.MAX_SLOTS
    assert sizes.MAX_SLOTS is slot_run.MAX_SLOTS


def test_a_model_that_the_run_will_make_has_the_shape_that_is_planned() -> None:
    settings = {"folder": "nowhere", "config": {"model": {"hidden_size": 32, "num_layers": 1}}}
    callback = {"class_path": "WarmStart", "init_args": settings}
    shape = shape_of({"model": "nowhere"}, {"callbacks": [callback]})
    made = tiny_model(word_tokenizer([*map(str, range(20))]), TinyModelConfig(32, 1), 0).config
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(shape, name) == getattr(made, name)
    one, other = (counted(PolicyConfig("tiny"), s) for s in (shape, made))
    assert one.weights - one.head == other.weights - other.head


@pytest.mark.slow
def test_compiled_layers_compute_the_same(tmp_path: Path) -> None:
    folder = str(checkpoint(tmp_path / "policy"))
    ids, found = torch.arange(24).view(2, 12), []
    for backend in (None, "eager"):
        model = load_model(PolicyConfig(folder, compile=backend))
        found.append(model(input_ids=ids, use_cache=False).logits)
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.slow
def test_compiled_layers_learn_the_same(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "policy")
    seen = []
    for backend in (None, "aot_eager"):
        config = PolicyConfig(str(folder), compile=backend)
        seen.append(weights(fit(tmp_path / str(backend), config)))
    assert torch.allclose(*seen, atol=1e-6)


def test_an_unknown_compiler_is_refused(tmp_path: Path) -> None:
    config = PolicyConfig(str(checkpoint(tmp_path / "policy")), compile="fastest")
    with pytest.raises(ValueError, match=r"inductor.*'fastest'"):
        empty_model(config)


@pytest.mark.parametrize(
    ("abilities", "device", "dtype"),
    [("none", "cpu", "float32"), ("avx512_bf16", "cpu", "bfloat16"), ("none", "h200", "bfloat16")],
)
def test_auto_is_planned_as_it_runs(
    abilities: str, device: str, dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESEARCH_CPU", abilities)
    policy = checkpoint(tmp_path / "policy")
    config = parsed(["--config", "small_cpu", "--model.policy.model", str(policy)])

    found = sizes_of(config, 1, on_cpu=device == "cpu")

    assert found.sampling == dtype
    assert (found.compute or "float32") == dtype
