"""The page: one tab per module of `tabs/`, served by Gradio's own `launch`.

Never through `gr.mount_gradio_app`: without `launch` Gradio 6.31 skips its checks of which files may be read and served.
Nothing here imports torch; that happens in the background once the page is up.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
}


def forget_environment() -> None:
    """Take back what the environment says to Gradio and its server: folders to serve, a tunnel, another address, a mode that runs code.

    What is served is said by `velatura app`'s options and nothing else. Gradio reads some while it is imported and some when it is launched.
    """
    for name in [name for name in os.environ if name.startswith(("GRADIO_", "UVICORN_")) and name not in _OURS or name in _WIDENING]:
        del os.environ[name]
    os.environ.update(_QUIET)


_OURS = ("GRADIO_TEMP_DIR",)  # set when a workspace is opened
_WIDENING = ("FORWARDED_ALLOW_IPS", "SYSTEM", "SPACE_ID", "SPACE_HOST", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
forget_environment()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A preview beside a training: OpenMP threads that spin while they wait steal the cores from one another. Measured on
# two cores, seconds a step of two trainings side by side: 0.5 and 1.8 as GNU OpenMP comes, 0.45 each so; 0.13 and 0.15 alone.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import gradio as gr  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402

from app import guard, leftovers, tabs, theme  # noqa: E402
from app.batches import KINDS, Drawing  # noqa: E402
from app.context import OWN_BASE, Context, Refresh  # noqa: E402
from app.jobs import REHEARSAL, TRAINING, ByKind, JobRunner, Training  # noqa: E402
from app.notices import warn  # noqa: E402
from trainer import model_registry, system  # noqa: E402
from trainer.errors import ConfigError, RunError  # noqa: E402

MAX_UPLOAD = "2gb"


def known_bases(wanted: Sequence[str]) -> tuple[str, ...]:
    """Imprimatura, the models added with `velatura models add`, and what `--base` names, paths spelled out. Raises: ConfigError for one that isn't here."""
    found = [OWN_BASE, *model_registry.entries()]
    for base in wanted:
        folder = Path(base).expanduser()
        if not folder.exists() and (system.looks_like_a_path(base) or not base.strip()):
            raise ConfigError(
                f"--base is {base!r}, which is no folder; allowed: a diffusers folder, a checkpoint file, or the hub id of a model already downloaded."
            )
        found.append(str(folder.resolve()) if folder.exists() and base != OWN_BASE else base)
    return tuple(dict.fromkeys(found))


def open_workspace(workspace: Path, bases: Sequence[str] = ()) -> Context:
    """The context of a workspace folder, made if it isn't there; its cache is for this user only."""
    offered = known_bases(bases)
    workspace = workspace.expanduser().resolve()
    try:
        for folder in ("datasets", "runs", "loras", "renders", "batches", "logs", "configs", "cache"):
            (workspace / folder).mkdir(parents=True, exist_ok=True)
        system.let_owner_alone_read(workspace / "cache")
    except OSError as error:
        where = Path(str(error.filename or workspace)).name
        raise ConfigError(f"--workspace is {str(workspace)!r}, where {where} can't be a folder ({error.strerror}); allowed: one you may write into.") from None
    training = Training(workspace / "runs", workspace / "configs")
    drawing = Drawing(workspace / "batches", workspace / "configs", (workspace / "loras", workspace / "runs"))
    works = ByKind({TRAINING: training, REHEARSAL: training, **dict.fromkeys(KINDS.values(), drawing)})
    context = Context(workspace, JobRunner(workspace, works, workspace / "runs"), offered)
    context.cache.mkdir(mode=0o700, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(context.cache)
    leftovers.old(context)
    return context


def build(workspace: Path) -> gr.Blocks:
    """The page on a workspace; nothing runs yet."""
    return compose(open_workspace(workspace))


def compose(context: Context) -> gr.Blocks:
    """The page of a context."""
    forget_environment()
    with gr.Blocks(title="Velatura", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(theme.HEADER)
        with gr.Tabs():
            for module in tabs.registry():
                with gr.Tab(module.TITLE, id=module.TITLE.lower()) as tab:
                    refresh: Refresh | None = module.build(context)
                if refresh is None:
                    continue
                tab.select(refresh.handler, list(refresh.inputs), list(refresh.outputs), show_progress="hidden", api_visibility="private")
                if refresh.on_load:
                    page.load(refresh.handler, list(refresh.inputs), list(refresh.outputs), show_progress="hidden", api_visibility="private")
        said = gr.State("")

        def say_table(before: str) -> str:
            """What became of the table of jobs, warned of once in each page."""
            now = context.runner.table.said
            if now and now != before:
                warn(now)
            return now

        gr.Timer(2.0).tick(say_table, said, said, show_progress="hidden", api_visibility="private")
    return page


def serve(
    workspace: Path, host: str = "127.0.0.1", port: int = 7860, auth: tuple[str, str] | None = None, open_browser: bool = False, bases: Sequence[str] = ()
) -> None:
    """Serve the page until interrupted; trainings go on without it. Raises: ConfigError, RunError before anything is opened."""
    if ":" in host and host not in guard.EVERYWHERE:  # Starlette's host check takes no IPv6 address
        raise ConfigError(f"host is {host!r}, a single IPv6 address, which can't be served; allowed: 127.0.0.1, a name, or :: with --auth.")
    if host not in guard.LOOPBACK and auth is None:
        raise ConfigError(f"host is {host!r}, which others can reach, and there is no --auth; allowed: 127.0.0.1, or --auth NAME:PASSWORD.")
    context = open_workspace(workspace, bases)
    try:
        lock = FileLock(str(context.workspace / ".server.lock")).acquire(timeout=0)
    except Timeout:
        raise RunError(f"another Velatura is open on {context.workspace}; use it, or choose another --workspace.") from None
    with lock:
        empty = context.workspace / "cache" / "empty"  # Gradio would serve what lies in the current folder
        empty.mkdir(exist_ok=True)
        os.chdir(empty)
        leftovers.all_copies(context)
        page = compose(context)
        context.runner.start()
        try:
            _, address, _ = page.queue(default_concurrency_limit=4).launch(
                server_name=host, server_port=port, auth=auth, prevent_thread_lock=True, quiet=True, share=False, show_error=False, ssr_mode=False,
                footer_links=["gradio", "settings"], run_history=False, enable_monitoring=False, max_file_size=MAX_UPLOAD,
                allowed_paths=[], blocked_paths=[], root_path="", mcp_server=False, debug=False, pwa=False, strict_cors=True,
                app_kwargs={"middleware": list(guard.middleware(host))}, theme=theme.theme(), css=theme.CSS,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"port {port} on {host} can't be used: {error}") from None
        sys.stdout.write(f"Velatura is at {address}\nfiles are in {context.workspace}\n")
        sys.stdout.flush()
        context.warm_up()
        if open_browser:
            webbrowser.open(address)
        page.block_thread()
        context.runner.halt()
