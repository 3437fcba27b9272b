"""GGUF in: llama.cpp's single file as the Hugging Face folder of the same model.

Read `conversion.py` first.
"""
