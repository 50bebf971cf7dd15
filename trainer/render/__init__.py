"""From a stack of LoRAs to pictures: one base kept warm, weights folded in and restored bit for bit."""
