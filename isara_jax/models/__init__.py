"""The networks in Flax, as Hugging Face defines them, and the adapters that follow their layers.

Read `network.py` and `decoder.py` first; `families/` has the tables of what there is.
"""
