"""Files, here and in buckets: written whole or not at all.

Read `storage.py` first.
"""
