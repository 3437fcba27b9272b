"""Text as tokens: the template, the vocabulary, what ends a text, and prompts made of rows.

Read `tokens.py` first, then `packing.py`.
"""
