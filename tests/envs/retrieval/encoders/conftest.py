"""What the tests of encoders share: a tiny BERT."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles.tiny_bert import save_bert


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with its own WordPiece tokenizer, saved as people save them."""
    from transformers import BertModel

    return save_bert(tmp_path_factory.mktemp("models") / "tiny-e5", BertModel)
