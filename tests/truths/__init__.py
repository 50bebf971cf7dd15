"""How diffusers itself trains and draws each family, one a file, named by `PIPELINE`; `tests/family_truths.py` asks
them. None of our families' code.

predict(pipe, noised, timestep, caption, size)    the prediction of its training script; `size` is height, width, top,
left and those of the cut call(pipe, stack)                                 its pipeline's own arguments, beside prompt,
steps, size and generator latents(pipe, image)                              of an image (3, H, W), where the autoencoder
is not a plain KL one; may be left out scheduler(pipe)                                   diffusers' flow-match scheduler
of this base, where its own is of another kind; may be left out load(pipe, path), weigh(pipe, factor)             a LoRA
file into the pipeline, and its weight, where it can't itself; may be left out shifted(pipe, shares, tokens)
        sigmas of evenly laid ones, where the pipeline shifts by more than diffusers' other ones; may be left out
"""
