from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles import tiny
from doubles.served_model import model_server

from research_rl.agents import Prediction
from research_rl.envs import Passage, Question, paint
from research_rl.envs.protocols import PROTOCOLS, RESEARCH, Found, get_prompt
from research_rl.envs.retrieval import build_index
from research_rl.trainers.agent import Asked, Asker, make_asker, resolve
from research_rl.trainers.cli import ask
from research_rl.trainers.settings import (
    POLICY_FILE,
    TRUST,
    EnvConfig,
    TrustError,
    UsageError,
    careful,
    write_policy_file,
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    corpus = folder / "corpus.jsonl"
    rows = ['{"id": "1", "contents": "Bakset\\nthe boss of Bakset is Domlor ."}']
    corpus.write_text("\n".join([*rows, '{"id": "2", "contents": "Rome\\na city"}']))
    build_index(corpus, folder / "index", kind="bm25")
    return folder / "index"


@pytest.fixture
def run(tmp_path: Path, index: Path) -> Path:
    """What a finished run leaves behind, as far as the command reads it."""
    folder = tmp_path / "run"
    tiny.checkpoint(folder / "policy")
    env = {"index": str(index), "top_k": 1, "max_searches": 4, "prompt": "{prompt}"}
    config = {"model": {"env": env, "sampling": {"max_response_tokens": 12}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def settings(*args: str) -> Asked:
    return resolve(ask._parser().parse_args(list(args)))


def env_of(asker: Asker) -> Any:
    return asker.agent.env.unwrapped


def test_a_run_says_how_it_wants_to_be_asked(run: Path, index: Path) -> None:
    told = settings("--run", str(run), "Who?")
    assert told == Asked(
        index=str(index),
        model=str(run / "policy"),
        prompt="{prompt}",
        top_k=1,
        max_searches=4,
        max_tokens=12,
        protocol=RESEARCH,
    )
    changed = settings("--run", str(run), "--top-k", "3", "--prompt", "base", "--temperature", "1")
    assert (changed.top_k, changed.prompt, changed.temperature) == (3, "base", 1.0)


def test_the_limit_of_a_result_is_that_of_the_training(run: Path, index: Path) -> None:
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["model"]["sampling"]["max_result_tokens"] = 7
    file.write_text(yaml.safe_dump(config))
    write_policy_file(run / "policy", config["model"]["env"], config["model"]["sampling"])
    exported = ("--model", str(run / "policy"), "--index", str(index))
    for args in (("--run", str(run)), exported):
        told = settings(*args)
        assert (told.max_tokens, told.max_result_tokens) == (12, 7)
        assert make_asker(told).agent.params.max_result_tokens == 7
        assert settings(*args, "--max-result-tokens", "9").max_result_tokens == 9


def test_what_ends_a_turn_and_the_longest_result_are_those_of_the_training(
    run: Path, index: Path
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["env"]["max_chars"] = 900
    config["model"]["sampling"]["stop"] = ["</search>", "#"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_policy_file(run / "policy", config["model"]["env"], config["model"]["sampling"])
    exported = ("--model", str(run / "policy"), "--index", str(index))
    for args in (("--run", str(run)), exported):
        asker = make_asker(settings(*args))
        assert asker.params.stop == ("</search>", "#")
        assert env_of(asker).task.rules.max_chars == 900


def test_a_run_is_asked_with_the_prompt_that_it_was_trained_with(run: Path) -> None:
    file = run / "prompt.txt"
    file.write_text("Q: {prompt}")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["env"]["prompt"] = str(file)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_policy_file(run / "policy", config["model"]["env"])
    file.write_text("Another text: {prompt}")
    assert settings("--run", str(run)).prompt == "Q: {prompt}"
    assert settings("--run", str(run), "--prompt", str(file)).prompt == str(file)


def test_a_run_with_a_chat_of_its_own_is_asked_in_it(run: Path) -> None:
    said = {"system": "Be brief.", "user": "{prompt}"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["env"]["prompt"] = said
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    told = settings("--run", str(run), "Who?")
    assert told.prompt == said
    asker = make_asker(told)
    assert env_of(asker).prompt.system == "Be brief."


def test_a_run_that_was_moved_finds_its_own_index(run: Path, index: Path) -> None:
    shutil.copytree(index, run / "world" / "index")
    text = (run / "config.yaml").read_text().replace(str(index), "/gone/index")
    (run / "config.yaml").write_text(text)
    assert settings("--run", str(run)).index == str(run / "world" / "index")


def test_a_run_that_was_moved_does_not_search_what_lies_at_its_former_place(
    run: Path, index: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"] = {"default_root_dir": str(run)}
    config["model"]["env"]["index"] = "${trainer.default_root_dir}/world/index"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(index, run / "world" / "index")
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    assert settings("--run", str(moved)).index == str(moved / "world" / "index")
    assert settings("--run", str(run)).index == str(run / "world" / "index")


def test_a_finished_quickstart_is_asked_by_default(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="research fit --config quickstart"):
        settings("Who?")
    (tmp_path / "runs").mkdir()
    shutil.copytree(run, tmp_path / "runs" / "quickstart")
    assert settings("Who?").model == str(Path("runs/quickstart/policy"))
    with pytest.raises(UsageError, match="an index must be named"):
        settings("--model", "m", "Who?")


def test_a_folder_that_is_no_finished_run_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold config\.yaml"):
        settings("--run", str(tmp_path))
    shutil.rmtree(run / "policy")
    with pytest.raises(FileNotFoundError, match="research export --ckpt"):
        settings("--run", str(run))


def test_one_question_is_answered_in_plain_text(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask.main(["--run", str(run), "Who", "is", "it?"])
    out = capsys.readouterr().out
    assert out.startswith("Question: Who is it?\n")
    assert "No answer: " in out or "Answer: " in out
    assert "0 searches, 12 tokens written" in out
    assert "\033[" not in out


def test_questions_are_read_until_the_input_ends(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\n\nTwo?\n"))
    ask.main(["--run", str(run)])
    out = capsys.readouterr().out
    assert out.count("Question: ") == 2
    assert "Question: Two?" in out


def test_ctrl_c_ends_quietly(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    ask.main(["--run", str(run)])
    monkeypatch.setattr("research_rl.agents.methods.research.ReSearchAgent.answer", interrupted)
    ask.main(["--run", str(run), "Who?"])
    assert capsys.readouterr().out.endswith("stopped\n")


def test_a_server_is_asked_turn_by_turn(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [
        "<think> t </think><search> boss of Bakset",
        r"<think> t </think><answer> It is \boxed{Domlor}. </answer>",
    ]
    asked: list[dict[str, Any]] = []

    def say(body: dict[str, Any]) -> str:
        asked.append(body)
        return turns[len(asked) - 1]

    with model_server(say) as server:
        options = ["--server", server.url, "--model", "tiny", "--index", str(index)]
        ask.main([*options, "--top-k", "1", "--prompt", "{prompt}", "Who is the boss of Bakset?"])
        with pytest.raises(UsageError, match="--server must come with --model"):
            ask.main(["--server", server.url, "--index", str(index), "Who?"])
    out = capsys.readouterr().out
    assert "<search> boss of Bakset</search>" in out
    assert "    │ Bakset\n    │ the boss of Bakset is Domlor ." in out
    assert "\nAnswer: Domlor\n1 search, " in out
    assert asked[1]["prompt"].endswith("Domlor .\n</result>")


def test_a_servers_tokenizer_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(config: Any) -> Any:
        loaded.append(config.model)

    monkeypatch.setattr("research_rl.agents.methods.openai_generator.load_tokenizer", load)
    monkeypatch.setattr(ask, "_ask", lambda asker, question, screen: None)
    given = ["--model", "tiny", "--index", str(index), "--tokenizer", "folder", "Who?"]
    ask.main(["--server", "http://127.0.0.1:9", *given])
    assert loaded == ["folder"]
    with pytest.raises(UsageError, match="--tokenizer must come with --server"):
        ask.main(given)


def test_colours_mark_the_answer_on_a_terminal() -> None:
    out = io.StringIO()
    screen = ask.Screen(out, colour=True)
    screen.write("model", "<think>")
    screen.write("environment", " <result>\nRome\n</result>")
    screen.end(Prediction(Question("1", "Q", ("a",)), "Paris", sampled_tokens=3))
    assert f"<think>\n{paint('result', '    │ Rome')}\n" in out.getvalue()
    assert paint("answer", "Answer: Paris") in out.getvalue()
    gone = Prediction(Question("1", "Q", ("a",)), "", finish_reason="error", error="status 500")
    screen.end(gone)
    assert "No answer: the server failed: status 500." in out.getvalue()


def test_nothing_that_is_shown_steers_the_terminal() -> None:
    out = io.StringIO()
    screen = ask.Screen(out, colour=False)
    screen.write("model", "a\x1b[2J")
    screen.write("environment", " <result>\n\x1b]0;owned\x07 \x9b2J \ud800\n</result>")
    screen.end(Prediction(Question("1", "Q", ("a",)), "\x1b[31mParis"))
    assert not set("\x1b\x07\x9b\ud800") & set(out.getvalue())
    assert "Answer: \u241b[31mParis" in out.getvalue()


def changed(run: Path, **env: Any) -> Path:
    """The run, its environment with other settings."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["env"] |= env
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_a_runs_protocol_is_spoken(run: Path) -> None:
    told = settings("--run", str(changed(run, protocol="hermes", prompt="instruct")), "Who?")
    assert told.protocol == PROTOCOLS["hermes"]
    asker = make_asker(told)
    assert env_of(asker).protocol == PROTOCOLS["hermes"]
    assert env_of(asker).prompt.tools
    other = settings("--run", str(run), "--protocol", "search_r1")
    assert other.language == PROTOCOLS["search_r1"]
    with pytest.raises(ValueError, match="did you mean 'hermes'"):
        settings("--run", str(run), "--protocol", "hermess")


def test_an_exported_folder_says_how_it_is_asked(run: Path, index: Path, tmp_path: Path) -> None:
    policy = shutil.copytree(run / "policy", tmp_path / "exported")
    prompt = tmp_path / "prompt.yaml"
    prompt.write_text("{system: Be brief., tools: false}")
    env = EnvConfig(protocol="o2", prompt=str(prompt), top_k=2)
    write_policy_file(policy, env)
    prompt.unlink()
    told = settings("--model", str(policy), "--index", str(index), "Who?")
    assert (told.protocol, told.top_k, told.max_searches) == (PROTOCOLS["o2"], 2, None)
    assert get_prompt(told.prompt, told.protocol).system == "Be brief."
    assert settings("--model", str(policy), "--index", str(index), "--top-k", "1").top_k == 1


def test_a_strangers_protocol_class_is_not_imported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from research_rl.envs.protocols.dialects import SearchR1\n\n"
    (tmp_path / "stranger.py").write_text(f"{code}class Own(SearchR1):\n    top_k = 9\n")
    monkeypatch.syspath_prepend(tmp_path)
    changed(run, protocol={"class_path": "stranger.Own"})
    file = run / "policy" / POLICY_FILE
    file.write_text('{"protocol": {"class_path": "stranger.Own"}}')
    asked = (["--run", str(run)], ["--model", str(run / "policy"), "--index", "i"])
    for args in asked:
        with careful(args), pytest.raises(TrustError, match=r"stranger\.Own.* add --trust"):
            settings(*args)
    assert "stranger" not in sys.modules
    monkeypatch.setenv(TRUST, "1")
    for args in asked:
        assert settings(*args).language.top_k == 9
    monkeypatch.delenv(TRUST)
    own = settings("--model", "m", "--index", "i", "--protocol", "stranger.Own")
    assert own.language.top_k == 9


def test_a_damaged_policy_file_is_named(run: Path) -> None:
    file = run / "policy" / POLICY_FILE
    for text, says in (
        ("[1]", "must hold an object"),
        ('{"top_k": "x"}', "must be a number"),
        ('{"prompt": [1]}', "must be a text or a mapping"),
        ('{"protocol": 5}', "a name or a class_path"),
        ('{"protocol": "hermess"}', "did you mean 'hermes'"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=says):
            settings("--model", str(run / "policy"), "--index", "i")


def test_a_result_is_shown_as_its_protocol_writes_it() -> None:
    for name, protocol in PROTOCOLS.items():
        out = io.StringIO()
        screen = ask.Screen(out, colour=False, protocol=protocol)
        screen.write(
            "environment", protocol.reply([Found("q", [Passage("1", "Rome\na city", 1.0)])])
        )
        shown = out.getvalue().strip()
        assert "Rome" in shown, name
        assert not any(tag in shown for tag in ("<", "result:")), (name, shown)


@pytest.mark.parametrize("name", ["hermes", "r1_searcher"])
def test_a_local_model_is_shown_without_the_templates_words(
    name: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = PROTOCOLS[name]
    first = protocol.search("boss of Bakset", thought="who", opened=protocol.begins)
    script = [[first, protocol.answer("Domlor", "it is", opened=protocol.begins)]]

    def scripted(policy: Any, on_text: Any) -> Any:
        class Telling(tiny.ScriptedEngine):
            def run(self, prompts: Any, params: Any, on_stop: Any, seeds: Any = None) -> Any:
                def told(stopped: Any) -> Any:
                    on_text("model", policy.decode(stopped[0][1].turn_ids))
                    given = on_stop(stopped)
                    if given[0] is not None:
                        on_text("environment", policy.decode(given[0]))
                    return given

                on_text("model", "")
                return super().run(prompts, params, told, seeds)

        return Telling(policy, script)

    monkeypatch.setattr("research_rl.trainers.agent.asker.StreamingEngine", scripted)
    changed(run, protocol=name, prompt="instruct")
    ask.main(["--run", str(run), "--max-tokens", "900", "Who is the boss of Bakset?"])
    out = capsys.readouterr().out
    assert out.count("<think>") == (2 if name == "hermes" else 1)
    assert "    │ the boss of Bakset is Domlor ." in out
    assert "<|im_start|>" not in out
    assert "\nAnswer: Domlor\n1 search, " in out


def test_a_server_is_asked_in_a_chat_dialect(
    index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hermes = PROTOCOLS["hermes"]

    def say(body: dict[str, Any]) -> str:
        if body["messages"][-1]["role"] == "tool":
            return "It is \\boxed{Domlor}"
        return hermes.search("boss of Bakset")

    with model_server(say) as server:
        options = ["--server", server.url, "--model", "tiny", "--index", str(index)]
        ask.main([*options, "--top-k", "1", "--protocol", "hermes", "Who is the boss of Bakset?"])
    out = capsys.readouterr().out
    assert "    │ Bakset\n    │ the boss of Bakset is Domlor ." in out
    assert "\nAnswer: Domlor\n1 search, " in out


def test_the_servers_options_need_the_page(run: Path) -> None:
    for option in ("--host", "--port", "--timeout", "--max-waiting"):
        with pytest.raises(UsageError, match=f"{option} must come with --web"):
            ask.main(["--run", str(run), option, "1", "Who?"])
    with pytest.raises(UsageError, match="leave the question out"):
        ask.main(["--run", str(run), "--web", "Who?"])
