"""The paper: one file a stage, and the iteration that they make, as pure functions of arrays.

All of it is traced. Read `iteration.py` first.
"""
