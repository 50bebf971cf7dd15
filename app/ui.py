"""The page: one tab per module of `tabs/`, served by Gradio's own `launch`.

Never through `gr.mount_gradio_app`: without `launch` Gradio 6.31 skips its checks of which files may be read and
served. Nothing here imports torch; that happens in the background once the page is up.
"""

from __future__ import annotations

import functools
import os
import sys
import webbrowser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Settings that send nothing out and run no code from elsewhere.
_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
}


def forget_environment() -> None:
    """Drop what the environment says to Gradio and its server: folders to serve, a tunnel, another address, and more.

    What is served is said by `velatura app`'s options and nothing else. Gradio reads some while it is imported and some
    when it is launched.
    """
    for name in list(os.environ):
        if name.startswith(("GRADIO_", "UVICORN_")) and name not in _OURS or name in _WIDENING:
            del os.environ[name]
    os.environ.update(_QUIET)


_OURS = ("GRADIO_TEMP_DIR",)  # set when a workspace is opened
# What makes Gradio trust more: other proxies' headers, and that it runs on the hub.
_WIDENING = (
    "FORWARDED_ALLOW_IPS", "SYSTEM", "SPACE_ID", "SPACE_HOST", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES",
    "OPENID_PROVIDER_URL",
)  # fmt: skip
forget_environment()  # before Gradio is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A preview beside a training: OpenMP threads that spin while they wait steal the cores from one another. Measured on
# two cores, seconds a step of two trainings side by side: 0.5 and 1.8 as GNU OpenMP comes, 0.45 each so; 0.13 and 0.15
# alone.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import gradio as gr  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402

from app import (  # noqa: E402
    control_names,
    kept_fields,
    leftovers,
    notices,
    open_in_tab,
    preset_choices,
    request_guard,
    run_grid,
    scripts,
    shortcuts,
    show_me,
    tabs,
    theme,
    viewer,
    views,
)
from app.batches import KINDS, Drawing  # noqa: E402
from app.captioning import Captioning  # noqa: E402
from app.change_polling import JobNews, News  # noqa: E402
from app.context import OWN_BASE, Context, Refresh  # noqa: E402
from app.dataset_notes import carry_triggers  # noqa: E402
from app.done_notice import DoneNotice  # noqa: E402
from app.endpoints import offering  # noqa: E402
from app.guide import Guide  # noqa: E402
from app.job_work import CAPTIONS, REHEARSAL, TRAINING, ByKind, Training  # noqa: E402
from app.jobs import JobRunner  # noqa: E402
from app.notices import warn  # noqa: E402
from app.start_here import StartHere  # noqa: E402
from trainer import model_registry, system  # noqa: E402
from trainer.errors import ConfigError, RunError  # noqa: E402

MAX_UPLOAD = "24gb"  # a checkpoint; what else comes has smaller limits of its own


def known_bases(wanted: Sequence[str]) -> tuple[str, ...]:
    """Imprimatura, the models added with `velatura models add`, and what `--base` names, paths spelled out.

    Raises: ConfigError for a base that isn't here.
    """
    bases = [OWN_BASE, *model_registry.entries()]
    for base in wanted:
        folder = Path(base).expanduser()
        if not folder.exists() and (system.looks_like_a_path(base) or not base.strip()):
            raise ConfigError(
                f"--base is {base!r}, which is no folder; allowed: a diffusers folder, a checkpoint file, or the hub "
                f"id of a model already downloaded."
            )
        bases.append(str(folder.resolve()) if folder.exists() and base != OWN_BASE else base)
    return tuple(dict.fromkeys(bases))


def open_workspace(workspace: Path, bases: Sequence[str] = ()) -> Context:
    """The context of a workspace folder, made if it isn't there; its cache is for this user only."""
    offered = known_bases(bases)

    # The folders.
    workspace = workspace.expanduser().resolve()
    try:
        for folder in (
            "bases",
            "datasets",
            "runs",
            "loras",
            "renders",
            "batches",
            "logs",
            "configs",
            "cache",
            "wildcards",
        ):
            (workspace / folder).mkdir(parents=True, exist_ok=True)
        system.let_owner_alone_read(workspace / "cache")
    except OSError as error:
        where = Path(str(error.filename or workspace)).name
        raise ConfigError(
            f"--workspace is {str(workspace)!r}, where {where} can't be a folder ({error.strerror}); allowed: one you "
            f"may write into."
        ) from None

    # The jobs, and Gradio's cache inside the workspace.
    training = Training(workspace / "runs", workspace / "configs")
    loras = (workspace / "loras", workspace / "runs")
    drawing = Drawing(workspace / "batches", workspace / "configs", loras, workspace / "wildcards")
    captioning = Captioning(workspace / "datasets", workspace / "captioners")
    works = ByKind(
        {TRAINING: training, REHEARSAL: training, CAPTIONS: captioning, **dict.fromkeys(KINDS.values(), drawing)}
    )
    context = Context(workspace, JobRunner(workspace, works, workspace / "runs"), offered)
    context.runner.grid_of = functools.partial(run_grid.batch_of, context.runs)
    context.runner.when_finished = functools.partial(show_me.keep_result, context)
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
    drawn: list[kept_fields.Drawn] = []
    with kept_fields.Page(title="Velatura", analytics_enabled=False, fill_width=True) as page:
        # What stands above the tabs.
        with gr.Row(elem_classes="top"):
            gr.HTML(theme.HEADER)
            guide, start = Guide(context), StartHere(context)
            start.draw_door()
            jobs = JobNews(context)
            notice = DoneNotice(context, jobs)
            notice.draw()
        news = News(notice.doing)
        start.draw()

        # The tabs.
        with gr.Tabs(elem_id="tabs") as all_tabs:
            for module in tabs.registry():
                name = module.__name__.rpartition(".")[2]
                with gr.Tab(module.TITLE, id=name, elem_id=f"tab-{name}") as tab:
                    refresh: Refresh | None = module.build(context)
                drawn.append(kept_fields.Drawn(name, tab, refresh))

        # What runs across tabs: kept fields, triggers, the guide, and what `Open` leads to.
        kept_fields.connect(page, context, all_tabs, drawn, _offers(context))
        carry_triggers(context, page.kept)
        guide.connect(news)
        start.connect(news, all_tabs)
        # The buttons above the tabs lead into them as those within do.
        leading = kept_fields.Drawn("start", None, Refresh(dict, [], [], opens=start.opens))
        open_in_tab.connect(page, context, all_tabs, [*drawn, leading])
        titles = [module.TITLE for module in tabs.registry()]

        # Keys, names, programs, and news of jobs.
        gr.HTML(shortcuts.dialog_html(shortcuts.of_page(titles)))
        viewer.Viewer(context).draw()
        page.load(None, js=shortcuts.script(titles))
        page.load(None, js=control_names.SCRIPT)
        page.load(None, js=notices.SCRIPT)
        page.load(None, js=f"() => {{ {scripts.read('upload_names.js')} }}")
        offering.connect(context)
        _listen(news, jobs, context, drawn)
        news.draw()

        # At last, as these go through every event that was connected.
        kept_fields.watch(page)
        _track_little(page)
        page.offers = _bases_offered(page, context)
    return page


def _listen(news: News, jobs: JobNews, context: Context, drawn: Sequence[kept_fields.Drawn]) -> None:
    """Have the page look at jobs, and be told what became of their table."""
    kinds: dict[str, tuple[Iterable[str], Path]] = {
        "train": ((TRAINING, REHEARSAL), context.runs),
        "batch": (KINDS.values(), context.batches),
        "dataset": ((CAPTIONS,), context.batches),
    }
    for drawn_tab in drawn:
        if drawn_tab.refresh and drawn_tab.refresh.look:
            of_tab, folder = kinds[drawn_tab.name]
            # Train lists the jobs of every kind in its queue.
            states = jobs.states(of_tab, of_all=drawn_tab.name == "train")
            news.listen(drawn_tab.name, states, drawn_tab.refresh.look, jobs.files(of_tab, folder), tab=True)

    def warn_of_table() -> None:
        if context.runner.table.notice:
            warn(context.runner.table.notice)

    news.listen("table", lambda _: context.runner.table.notice, Refresh(warn_of_table, [], []))


def _track_little(page: gr.Blocks) -> None:
    """Have events that show no progress track it on no component, and the others on a single component.

    Else the browser goes through every output of every event so far at each stage of each event, and looks each up in
    the whole page (Gradio 6.31): with a timer and some hundred outputs it does nothing else.
    """
    for event in page.fns.values():
        if event.show_progress_on is not None:
            continue
        if event.show_progress == "hidden":
            event.show_progress_on = []
        elif len(event.outputs) > 1:  # or all of them flicker, and what fails is stamped on each
            event.show_progress_on = [page.blocks[number] for number, _ in event.targets if number in page.blocks][:1]


def _offers(context: Context) -> dict[str, kept_fields.Offer]:
    """What the fields are chosen from that a timer fills, by `elem_id`."""

    def jobs_of(*kinds: str) -> kept_fields.Offer:
        return lambda: [(views.job_label(job), job.id) for job in context.runner.shown() if job.kind in kinds]

    return {"job": jobs_of(TRAINING), "batch-job": jobs_of(*KINDS.values())}


def _bases_offered(page: gr.Blocks, context: Context) -> dict[gr.Dropdown, kept_fields.Offer]:
    """The fields of the base, which may come while the page is open."""
    offers = {"field-base": lambda: preset_choices.base_choices(context), "stack-base": context.base_choices}
    fields = [block for block in page.blocks.values() if isinstance(block, gr.Dropdown) and block.elem_id in offers]
    return {field: offers[str(field.elem_id)] for field in fields}


def serve(
    workspace: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    open_browser: bool = False,
    bases: Sequence[str] = (),
) -> None:
    """Serve the page until interrupted; trainings go on without it.

    Raises: ConfigError, RunError before anything is opened.
    """
    # Who may come in.
    if ":" in host and host not in request_guard.EVERYWHERE:  # Starlette's host check takes no IPv6 address
        raise ConfigError(
            f"host is {host!r}, a single IPv6 address, which can't be served; allowed: 127.0.0.1, a name, or :: with "
            f"--auth."
        )
    if host not in request_guard.LOOPBACK and auth is None:
        raise ConfigError(
            f"host is {host!r}, which others can reach, and there is no --auth; allowed: 127.0.0.1, or --auth "
            f"NAME:PASSWORD."
        )

    # The workspace, for one server alone.
    context = open_workspace(workspace, bases)
    try:
        lock = FileLock(str(context.workspace / ".server.lock")).acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"another Velatura is open on {context.workspace}; use it, or choose another --workspace."
        ) from None
    with lock:
        empty = context.workspace / "cache" / "empty"  # Gradio would serve what lies in the current folder
        empty.mkdir(exist_ok=True)
        os.chdir(empty)
        leftovers.all_copies(context)

        # The page.
        page = compose(context)
        context.runner.start()
        try:
            address = launch(
                page.queue(default_concurrency_limit=4),
                server_name=host, server_port=port, auth=auth, show_error=False, ssr_mode=False,
                footer_links=["gradio", "settings"], run_history=False,
                enable_monitoring=False, max_file_size=MAX_UPLOAD, allowed_paths=[], blocked_paths=[], root_path="",
                mcp_server=False, debug=False, pwa=False, strict_cors=True,
                app_kwargs={"middleware": list(request_guard.middleware(host))}, theme=theme.theme(), css=theme.CSS,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"port {port} on {host} can't be used: {error}") from None
        sys.stdout.write(f"Velatura is at {address}\nfiles are in {context.workspace}\n")
        sys.stdout.flush()
        context.warm_up()
        if open_browser:
            webbrowser.open(address)
        page.block_thread()
        context.runner.halt()  # the jobs themselves go on


def launch(page: gr.Blocks, **settings: Any) -> str:
    """Serve the page in the background with Gradio's settings for that; its address.

    Raises: OSError if the port can't be used.
    """
    try:
        page.launch(prevent_thread_lock=True, quiet=True, share=False, **settings)
    except ValueError:
        # Gradio gives the first page 3 s, too few on a busy machine. The server runs all the same.
        if not page.is_running:
            raise
    return str(page.local_url)
