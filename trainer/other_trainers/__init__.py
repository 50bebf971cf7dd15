"""Recipes of other trainers as presets of ours (`importing`), and ours in their words (`recipes_out`).

A tool is a file here with a `TOOL` (see `contract`), and its keys in `tables`.
"""
