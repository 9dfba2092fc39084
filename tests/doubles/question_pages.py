"""A few pages with a chain of facts, indexed, and a question about it."""

from __future__ import annotations

from pathlib import Path

from research_rl.envs.documents import build_documents
from research_rl.envs.retrieval import build_index, load_retriever
from research_rl.envs.retrieval.index import open_corpus_of
from research_rl.trainers.make_questions.checks import IndexChecks, Limits
from research_rl.trainers.make_questions.drafts import Texts
from research_rl.trainers.make_questions.facts import Facts

PAGES = {
    "oslo": "# Oslo\n\nOslo is a city. The mayor of Oslo is Anne Berg.\n",
    "berg": "# Anne Berg\n\nAnne Berg likes boats. Anne Berg's brother is Kare Lund.\n",
    "lund": "# Kare Lund\n\nKare Lund was born in Bodo.\n",
    "other": "# Trondheim\n\nThe river of Trondheim is Nidelva.\n",
    **{
        f"filler{n}": f"# Place {n}\n\nThe brother of the mayor of Place {n} came.\n"
        for n in range(8)
    },
}
GOOD = "Who is the brother of the mayor of Oslo?"


def opened(folder: Path, more: dict[str, str] | None = None) -> tuple[Texts, Facts, IndexChecks]:
    for name, text in (PAGES | (more or {})).items():
        (folder / f"{name}.md").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    corpus, index = folder.with_name("corpus.jsonl"), folder.with_name("index")
    build_documents(folder, corpus)
    build_index(corpus, index, overwrite=True)
    texts = Texts(open_corpus_of(index))
    facts = Facts(texts)
    limits = Limits(top_k=2)
    return texts, facts, IndexChecks(texts, load_retriever(str(index)), limits, facts.objects)
