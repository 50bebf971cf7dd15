"""Before a long run: what it will take, measured by running a little of it, and memory settings under which it fits."""
