"""Measurements of speed, memory and learning; `velatura bench` runs each in processes of their own."""
