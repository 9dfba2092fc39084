"""What tests of a served agent share: a tiny world that a tiny policy knows, and ways to ask."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from doubles import taught

from research_rl.envs.retrieval import build_index
from research_rl.envs.system import CommandLine
from research_rl.trainers.agent import Asker
from research_rl.trainers.agent.asked import add_agent_options, make_asker, resolve


def make_world(folder: Path) -> Path:
    """Make an index and a policy that knows what to do with it; return the folder."""
    rows = [{"id": name, "contents": contents} for name, contents in taught.PASSAGES.items()]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(folder / "corpus.jsonl", folder / "index", kind="bm25")
    policy = taught.taught(folder / "index")
    policy.model.save_pretrained(folder / "policy")  # type: ignore[operator]
    policy.tokenizer.save_pretrained(folder / "policy")
    return folder


def asker_of(world: Path, *options: str, max_slots: int = 16) -> Asker:
    """The asker that the command line would make."""
    parser = CommandLine()
    add_agent_options(parser)
    given = parser.parse_args([*taught.options(world), *options])
    return make_asker(resolve(given), max_slots)


def ask_page(url: str, question: str, **headers: str) -> list[dict[str, Any]]:
    """The events that the page is told."""
    body = json.dumps({"question": question}).encode()
    told = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{url}/ask", body, told)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [json.loads(line) for line in answer]


async def chat(client: Any, question: str) -> Any:
    """The reply to a chat of one question."""
    asked = [{"role": "user", "content": question}]
    return await client.chat.completions.create(model="research", messages=asked)
