"""A batch's chunks drawn by several processes, on this machine or on a Ray cluster: the extra `ray`.

The process that was started keeps the batch's folder, its journal and the placing of pictures (`trainer.render.batch`);
workers only draw. `routing` says who draws what, `messages` what travels, `worker` draws, `worker_files` keeps what
came, `cluster` joins or starts Ray, and `spread` hands chunks out and takes pictures in.
"""
