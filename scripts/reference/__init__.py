"""Generated reference pages in docs/reference/, in English and Traditional Chinese: `python -m scripts.reference` writes them."""
