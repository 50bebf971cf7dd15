"""A run as a folder for others: the LoRA, a model card for the Hugging Face hub, samples, and what Civitai's form asks.

Nothing leaves the machine until `hub.push` is called. No place of this machine, no picture or caption of the dataset
and no name of either is written; what the LoRA file's own header tells of the dataset is said before it leaves.
"""

from __future__ import annotations
