"""Vectors: files of them, FAISS index types, and exact scores.

Read first: faiss_types.py
May import: envs.retrieval.encoders, envs.system
"""

from __future__ import annotations

from research_rl.envs.retrieval.vectors.faiss_types import (
    TYPES,
    Metric,
    blas_for,
    bytes_per_vector,
    clustering_on_gpus,
    factory_string,
    import_faiss,
    is_exact,
    is_inner,
    least_rows,
    new_index,
    product_quantizer,
    sample_rows,
    search_everywhere,
    search_one_by_one,
    search_width_of,
    search_width_set,
    set_search_width,
    training_rows,
    widest,
)
from research_rl.envs.retrieval.vectors.files import (
    BLOCK,
    VectorFile,
    VectorParts,
    codes_behind_header,
    encode_codes,
    streamed_header,
)
from research_rl.envs.retrieval.vectors.ids import (
    hides_id_map,
    keeps_numbers,
    list_ids,
    without_id_map,
)
from research_rl.envs.retrieval.vectors.rescore import NOBODY, Places, as_faiss, best, exact_scores
from research_rl.envs.retrieval.vectors.torch_products import (
    ProductDtype,
    check_room,
    input_rounding,
    merge,
    output_rounding,
    pick_devices,
    pick_dtype,
    product,
    widened,
)

__all__ = [
    "BLOCK",
    "NOBODY",
    "TYPES",
    "Metric",
    "Places",
    "ProductDtype",
    "VectorFile",
    "VectorParts",
    "as_faiss",
    "best",
    "blas_for",
    "bytes_per_vector",
    "check_room",
    "clustering_on_gpus",
    "codes_behind_header",
    "encode_codes",
    "exact_scores",
    "factory_string",
    "hides_id_map",
    "import_faiss",
    "input_rounding",
    "is_exact",
    "is_inner",
    "keeps_numbers",
    "least_rows",
    "list_ids",
    "merge",
    "new_index",
    "output_rounding",
    "pick_devices",
    "pick_dtype",
    "product",
    "product_quantizer",
    "sample_rows",
    "search_everywhere",
    "search_one_by_one",
    "search_width_of",
    "search_width_set",
    "set_search_width",
    "streamed_header",
    "training_rows",
    "widened",
    "widest",
    "without_id_map",
]
