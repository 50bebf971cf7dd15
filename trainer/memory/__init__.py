"""Fitting a run into memory, three ideas in three files, and what they arrange in the others.

`mechanics`: memory as such, what says that it ran out, gives it back and measures it. `ladder`: what a run's memory
settings may be, and which come next when memory runs out. `arranging`: a training model's parts made as those settings
say, by `attention`, `attention_probe` and `attention_trial` (how attention is computed), `compiling` (compiled
blocks), `convolving` and `fused_lora` (layers computed faster), `fetching` (weights that wait on the CPU), `frozen`,
`quantising` and `originals` (a base in fewer bits, and its weights as they are on disk).
"""
