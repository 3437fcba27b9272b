"""Results as folders that other programs load unchanged, with a model card.

Read `hub.py` first.
"""
