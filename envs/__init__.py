"""Text environments: they speak strings, and know neither tokens nor tensors."""
