"""Models and adapters on disk: Hugging Face folders, PEFT's, and what is converted to them.

Only safetensors is loaded. Read `pretrained.py` first.
"""
