"""Domains: somebody's own seeds, or one of the procedural world, each with who judges it.

Read `base.py` first; `domains.py` loads them.
"""
