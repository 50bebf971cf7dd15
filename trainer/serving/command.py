"""`velatura serve` and `velatura serve keys`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import ConfigError
from trainer.serving import keys
from trainer.serving.replicas.wanted_replicas import Replicas, check_options, parsed
from trainer.serving.settings import ServeSettings

_WORKSPACE = Path("outputs")
_BASE = "imprimatura"
_KEYS_HELP = "The file of API keys; outputs/serve/keys.toml if left out."

app = typer.Typer(help="Serve pictures over HTTP, by OpenAI's images API.", invoke_without_command=True)
keys_app = typer.Typer(help="API keys of the server.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

KeysFile = Annotated[Path, typer.Option("--keys", metavar="FILE", help=_KEYS_HELP)]
_KEYS = _WORKSPACE / "serve" / "keys.toml"


@app.callback()
def serve(
    context: typer.Context,
    base: Annotated[
        list[str] | None,
        typer.Option(help="The base that pictures are drawn with: imprimatura; repeatable with --ray."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; another than 127.0.0.1 needs --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    workspace: Annotated[Path, typer.Option(help="Its LoRAs and saved stacks are offered.")] = _WORKSPACE,
    loras: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="More LoRAs; repeatable.")] = None,
    keys_file: Annotated[
        Path | None, typer.Option("--keys", metavar="FILE", help="Ask for an API key of this file.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="A name that the server is asked by, besides its address.")
    ] = None,
    public_url: Annotated[str, typer.Option(help="Where `url` results lie, if behind a proxy.")] = "",
    mixed_batches: Annotated[bool, typer.Option(help="Draw different stacks in one batch.")] = True,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Pictures drawn together at most.")] = 16,
    window_ms: Annotated[float, typer.Option(min=0, max=10_000, help="How long a batch waits for others.")] = 10.0,
    queue: Annotated[int, typer.Option(min=1, max=1_000_000, help="Pictures that may wait.")] = 2000,
    deadline_s: Annotated[
        float, typer.Option(min=1, max=86_400, help="A picture not drawn by then is given up.")
    ] = 600.0,
    drain_s: Annotated[float, typer.Option(min=0, max=86_400, help="To finish what is under way at the end.")] = 120.0,
    memory_gib: Annotated[float, typer.Option(min=0.01, max=4096, help="For LoRAs that are kept in memory.")] = 4.0,
    pin: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A LoRA that always stays in memory.")] = None,
    uploads: Annotated[bool, typer.Option("--uploads", help="Let keys upload LoRAs of their own.")] = False,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Draw on replicas of Ray Serve, not in this process.")] = False,
    replicas: Annotated[
        str, typer.Option(metavar="LEAST:MOST", help="Replicas of each base with --ray; 1 if left out.")
    ] = "",
    shrink_s: Annotated[
        float, typer.Option(min=1, max=86_400, help="With --ray: how long more replicas are kept than are needed.")
    ] = 300.0,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="A Ray cluster to join with --ray; else one of this machine's own.")
    ] = "",
) -> None:
    """Serve pictures over HTTP, by OpenAI's images API: many people's stacks in one batch on one base."""
    # `velatura serve keys` comes by here too.
    if context.invoked_subcommand is not None:
        return
    for folder in loras or []:
        if not folder.is_dir():
            raise ConfigError(f"--loras is {str(folder)!r}, which is no folder.")
    bases = base or [_BASE]
    check_options(ray, bases, replicas, address)
    settings = ServeSettings(
        base=bases[0], more_bases=tuple(bases[1:]), workspace=workspace, host=host, port=port,
        hosts=tuple(names or ()), public_url=public_url, keys=keys_file, mixed_batches=mixed_batches,
        batch_pictures=batch, window_s=window_ms / 1000, queue_pictures=queue, deadline_s=deadline_s, drain_s=drain_s,
        kept_bytes=int(memory_gib * (1 << 30)), pinned=tuple(pin or ()), uploads=uploads, log_prompts=log_prompts,
    )  # fmt: skip
    _serve(settings, tuple(loras or ()), parsed(replicas or "1", address, shrink_s) if ray else None)


def _serve(settings: ServeSettings, loras: tuple[Path, ...], replicas: Replicas | None) -> None:
    """Serve with an engine of this process's own, or with replicas."""
    if replicas is None:
        from trainer.serving import server

        server.serve(settings, loras)
        return
    from trainer.render.spreading import ray_access

    # What is imported below imports Ray, so whether it may be used is settled first.
    ray_access.prepare(replicas.address, "--ray", "ray.serve")
    from trainer.serving import server
    from trainer.serving.replicas.opening import on_ray

    server.serve(settings, loras, on_ray(replicas))


@keys_app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What the key is called in logs and metrics.")],
    keys_file: KeysFile = _KEYS,
    weight: Annotated[float, typer.Option(min=0.01, max=1000, help="Its share where others wait too.")] = 1.0,
    requests_per_minute: Annotated[int, typer.Option(min=1, max=1_000_000)] = 600,
    pictures_per_day: Annotated[int, typer.Option(min=0, max=1_000_000_000)] = 100_000,
    upload_mib: Annotated[int, typer.Option(min=0, max=1 << 20, help="For LoRAs of its own.")] = 1024,
    metrics: Annotated[bool, typer.Option("--metrics", help="It may read /metrics, which names all keys.")] = False,
) -> None:
    """Make a key and print it, once: the file has only its digest."""
    key = keys.Key(
        name=name,
        weight=weight,
        requests_per_minute=requests_per_minute,
        pictures_per_day=pictures_per_day,
        upload_bytes=upload_mib << 20,
        metrics=metrics,
    )
    typer.echo(keys.add(keys_file, key))


@keys_app.command("list")
def list_(keys_file: KeysFile = _KEYS) -> None:
    """Name the keys and what each may do."""
    for key in keys.read(keys_file):
        facts = (
            f"weight {key.weight:g}, {key.requests_per_minute} requests a minute, {key.pictures_per_day} pictures a day"
        )
        typer.echo(f"{key.name}: {facts}, {key.upload_bytes >> 20} MiB of LoRAs{', metrics' if key.metrics else ''}")


@keys_app.command("remove")
def remove(name: str, keys_file: KeysFile = _KEYS) -> None:
    """Have a key be valid no more, at once."""
    keys.remove(keys_file, name)
