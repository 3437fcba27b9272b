"""The host's side of a run: reads what is given, compiles, calls, keeps and tells.

Nothing here is traced. Read `run.py` first, then `setup.py`.
"""
