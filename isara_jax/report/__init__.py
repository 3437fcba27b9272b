"""What people look at when a run has ended: a table in text, a report in one file of HTML.

Both read `summary.json`. Read `table.py` first.
"""
