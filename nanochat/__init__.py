"""NanoChat Appliance: train your own ChatGPT from nothing on the machine you have, then chat with it."""

# A package imports from the rows before its own, never from one in its own row; the first row keeps the order in which it is written.
# tests/test_layers.py holds the code to this table, docs/architecture.md shows it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("redaction", "errors", "config", "columns", "console", "paths", "untrusted", "hardware"),
    ("kernels",),
    ("model",),
    ("tokenizer", "distributed", "hub"),
    ("readers",),
    ("data",),
    ("generate",),
    ("runs",),
    ("evaluation",),
    ("train", "export"),
    ("planning",),
    ("doctor", "report", "cloud"),
    ("chat",),
    ("pipeline",),
    ("cli",),
)
