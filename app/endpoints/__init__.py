"""What other programs may ask of the page: named endpoints, with plain values in and out (`docs/api.md`).

They go through the same gate, the same functions and the same queue of jobs as the tabs, so nothing can be named or
begun here that a browser could not; and behind the same login. A file for each tab; each public method of the class in
it is an endpoint.
"""
