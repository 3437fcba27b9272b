"""Prompts to texts: prefill, decoding over a cache, drawing, stopping, and reading back.

Read `decode.py` first.
"""
