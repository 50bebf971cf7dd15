"""`velatura serve`: pictures over HTTP with OpenAI's images API, many people's stacks in one batch on one base.

A request becomes stacks (`image_request`, `stack_of_request`), whose LoRAs are found by name or hash in what its key
may see (`lora_views`). Its pictures wait in a line that is fair over keys (`line`), while other threads read their
LoRAs (`reading`); one thread draws whatever can be one batch (`drawing`) and fits in memory (`room`). `routes` and the
modules called `*_api` are HTTP; `keys`, `quotas`, `gate` and `connection` say who may ask for what; `server` starts all
of it and ends it without losing a picture.
"""
