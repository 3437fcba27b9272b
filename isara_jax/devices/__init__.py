"""The machine's devices: the mesh, how fast and large they are, and the processes of a run.

Read `mesh.py` first.
"""
