"""What can be done to LoRA files without drawing: other names, sums, other ranks, plain LoRAs, extraction, proof.

`opening` reads a file whole and writes one; each verb has a file. Nothing is written over its own source, and what a
result leaves out is always reported.
"""
