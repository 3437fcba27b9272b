"""The machine: the mesh, how fast and large devices are, processes, programs kept compiled.

Read `mesh.py` first.
"""
