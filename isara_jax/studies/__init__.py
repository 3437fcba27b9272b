"""Many runs that answer one question: grids of configurations, and what their results say.

Read `grids` first.
"""
