"""A run on devices that one does not have: what it would take, and whether it fits.

Its pieces are compiled for them, and what they compute, move and exchange is read.
Read `estimate.py` first.
"""
