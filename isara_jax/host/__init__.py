"""The host's side of the commands: reads what is given, compiles, calls, keeps and tells.

Read `run.py` first, then `setup.py`.
"""
