"""What can be done to LoRA files without drawing a picture: other names, sums, other ranks, plain LoRAs, differences of models, proof.

`opening` reads a file whole and writes one; each verb has a file. Nothing is written over its own source, and every loss is said.
"""
