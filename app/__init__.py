"""The web UI and its job runner; imports trainer, holds no maths."""
