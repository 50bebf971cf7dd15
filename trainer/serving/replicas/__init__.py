"""`velatura serve --ray`: the pictures of a server's line drawn by replicas on other machines, or other processes here.

The process that was started stays the server: keys, quotas, the fair line, results, metrics and the drain are its own,
and it has no base in memory. `remote` takes pictures from its line, as many as replicas can hold, and hands each on by
a `carrier`; `ray_carrier` is the one that there is, with Ray Serve. A `replica` draws with the very line, reader and
drawing thread that a server without Ray has. `messages` is what travels, `opening` starts all of it.
"""
