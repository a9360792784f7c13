"""The stages of the bench: one module each, with `measure(scope) -> Measured`. Nothing is imported until it runs."""

STAGES = (
    "ingest", "encode", "kmeans", "similarity", "classify", "generate", "judge", "greedy", "vectors", "end_to_end",
    "scaling",
)  # fmt: skip
