"""Question files of the field: the published layouts, their counts, and how to get them."""
