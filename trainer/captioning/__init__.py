"""Captions by a model that lies in a folder: which kinds there are, what they say, and what becomes of it.

A kind is one file with a `KIND` (`contract`), chosen by what the folder's config.json says (`kinds`). Nothing is
downloaded, and nothing but safetensors is read.
"""
