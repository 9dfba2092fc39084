"""A retriever over Milvus that a YAML names: the same for milvus-lite and for a cluster."""

from __future__ import annotations

from pathlib import Path

from research_rl.envs.retrieval.index import MILVUS, IndexFolderError, milvus_parts, read_manifest
from research_rl.envs.retrieval.search import CACHED_RESULTS, MilvusSearch, MilvusSearchBy


class MilvusRetriever(MilvusSearch):
    """Searches the collection that ``research index build --kind milvus`` filled.

    A token is read from the environment variable ``MILVUS_TOKEN``.

    Args:
        folder: what that command made.
        uri: url of the cluster, or a path that ends in ``.db`` for milvus-lite; None is where it
            was made.
        search: "dense", "bm25" or "hybrid"; None is what it was made for.
        timeout: seconds of a request.
        attempts: how often a request is tried, with pauses.
        cache_size: results that are kept for queries that come again; 0 keeps none.
    """

    def __init__(
        self,
        folder: str,
        uri: str | None = None,
        search: MilvusSearchBy | None = None,
        timeout: float = 30.0,
        attempts: int = 3,
        cache_size: int = CACHED_RESULTS,
    ) -> None:
        manifest = read_manifest(folder)
        if manifest["kind"] != MILVUS:
            raise IndexFolderError(
                f"index {folder} must be of kind milvus, got {manifest['kind']!r}; make it: "
                "research index build --kind milvus"
            )
        place = Path(folder).resolve()
        parts = milvus_parts(place, manifest, uri, search, timeout, attempts)
        again = (str(place), uri, search, timeout, attempts, cache_size)
        super().__init__(**parts, source=(MilvusRetriever, again), cache_size=cache_size)
