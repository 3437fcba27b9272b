"""What is measured: held-out questions answered and scored, judges, choices, refusals.

The method never sees any of it. Read `answers.py` first, then `scores.py`.
"""
