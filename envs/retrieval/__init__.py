"""Corpora, encoders and FAISS indexes: everything behind Retriever.search."""
