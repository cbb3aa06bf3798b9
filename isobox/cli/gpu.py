"""`isobox gpu` and `isobox usage`: what there is, and what was used."""

import time
from contextlib import closing
from typing import Annotated

import typer

from isobox import calls, gpus
from isobox.cli.say import moment, print_table, say
from isobox.config import Config
from isobox.transport import Transport
from isobox.values import time_of

gpu_app = typer.Typer(no_args_is_help=True, help="GPUs of the server.")


@gpu_app.command()
def ls() -> None:
    """List GPUs, and what each does."""
    rows = []
    for each in gpus():
        raw = each.raw
        doing = "" if raw["utilization"] is None else f"{raw['utilization']} %"
        used = f"{raw['memory_used_mb'] or 0} of {each.memory_mb} MiB"
        heat = "" if raw["temperature"] is None else f"{raw['temperature']} °C"
        state = each.state + (f" ({each.reason})" if each.reason else "")
        rows.append((each.uuid, each.kind, state, used, doing, heat, each.sandbox or ""))
    if not rows:
        with closing(Transport(Config.find(None, None))) as transport:
            say(f"no GPU ({transport.send(calls.system('GET', '/v1/gpus'))['problem'] or 'the driver knows none'})")
        return
    print_table(("UUID", "KIND", "STATE", "MEMORY", "BUSY", "HEAT", "SANDBOX"), rows)


@gpu_app.command()
def clear(uuid: Annotated[str, typer.Argument(help="The GPU's UUID.")]) -> None:
    """Say that a quarantined GPU is well; its memory is overwritten, and it is free (with the operator's key)."""
    with closing(Transport(Config.find_operator())) as transport:
        transport.send(calls.system("POST", f"/v1/gpus/{uuid}/clear"))


def usage(hours: Annotated[float, typer.Option(help="Of the last so many hours.")] = 24.0) -> None:
    """What sandboxes used."""
    with closing(Transport(Config.find(None, None))) as transport:
        params = {"since": str(time.time() - hours * 3600)}
        found = transport.send(calls.system("GET", "/v1/usage", params=params))
    rows = [
        (
            each["sandbox"],
            each["name"] or "",
            moment(time_of(each["started_at"])),
            f"{each['seconds']:.0f} s",
            f"{each['cpu_s']:.1f} s",
            ", ".join(f"{kind} {used:.0f} s" for kind, used in each["gpu_s"].items()),
        )
        for each in found["usage"]
    ]
    total = ", ".join(f"{kind} {used:.0f} s" for kind, used in found["total_gpu_s"].items())
    rows.append(("all", "", "", "", f"{found['total_cpu_s']:.1f} s", total))
    print_table(("SANDBOX", "NAME", "STARTED", "RAN", "CPU", "GPU"), rows)
