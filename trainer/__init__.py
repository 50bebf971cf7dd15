"""Training, adapters, stacking and rendering; complete without Gradio.

Nothing heavy is imported here: torch, diffusers, transformers and peft are imported inside the functions that need
them, so that `velatura --help` answers at once and a bad setting is refused before any model is touched.
"""

__version__ = "0.1.0"
