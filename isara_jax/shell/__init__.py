"""How a command starts and ends: flags, the environment, signals, errors in one line.

Read `command.py` first.
"""
