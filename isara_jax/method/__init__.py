"""The paper: one file a stage, and the iteration that they make, as pure functions of arrays.

Read `iteration.py` first.
"""
