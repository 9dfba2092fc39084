"""Language-model agents: strings in, token ids inside, strings out."""
