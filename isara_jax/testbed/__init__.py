"""The bundled models, and the commands that make and check them.

Read `pretrain.py` first; the world they are made of is in `tasks`.
"""
