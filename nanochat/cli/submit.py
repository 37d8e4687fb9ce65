"""The command `submit`: a training on Kubernetes or RunPod from one line, and what happens to it afterwards."""

import datetime
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat.cli.help import Group
from nanochat.cli.options import FLAGS, Commands, Trial
from nanochat.console import log, show
from nanochat.errors import UsageError
from nanochat.train.deadline import VARIABLE as END

if TYPE_CHECKING:
    from nanochat.cloud.kubernetes import Manifest, ManifestOptions
    from nanochat.cloud.workload import Workload

app = Commands(cls=Group, help="Train on Kubernetes or RunPod; follow, stop and delete what runs there.")

Image = Annotated[str, typer.Option(help="the appliance's image, where the cluster can pull it")]
Named = Annotated[str, typer.Option(help="name of the job; without it nanochat-RUN")]
Env = Annotated[list[str] | None, typer.Option("--env", help="KEY=VALUE for the training; no secrets")]
MaxHours = Annotated[float, typer.Option("--max-hours", "--max_hours", help="ends it then; 0: twice the estimate and an hour")]
Name = Annotated[str, typer.Argument(help="the job's name")]
On = Annotated[str, typer.Option("--on", help="k8s or runpod")]
Namespace = Annotated[str, typer.Option(help="Kubernetes namespace; without it kubectl's own")]
Context = Annotated[str, typer.Option("--context", help="kubectl's context; without it the current one")]
KeyFile = Annotated[str, typer.Option("--api-key-file", "--api_key_file", help="file with RunPod's API key (or RUNPOD_API_KEY)")]

ChatHost = Annotated[list[str] | None, typer.Option("--chat-host", "--chat_host", help="host name of an Ingress that leads to the chat")]


@app.command(context_settings=FLAGS)
def k8s(
    context: typer.Context,
    image: Image,
    profile: Annotated[str, typer.Option(help="cpu, rtx4050, rtx4090, h100x8")] = "h100x8",
    trial: Trial = False,
    name: Named = "",
    nodes: Annotated[int, typer.Option(help="machines; several need JobSet in the cluster")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", "--dry_run", help="print the manifests, ask no cluster")] = False,
    namespace: Namespace = "",
    cluster: Context = "",
    gpu_type: Annotated[str, typer.Option("--gpu-type", help="the nodes' label nvidia.com/gpu.product")] = "",
    node_selector: Annotated[list[str] | None, typer.Option("--node-selector", help="KEY=VALUE of the nodes")] = None,
    queue: Annotated[str, typer.Option(help="Kueue's local queue")] = "",
    pull_secret: Annotated[list[str] | None, typer.Option("--pull-secret", help="name of a secret to pull the image with")] = None,
    secret: Annotated[list[str] | None, typer.Option("--secret", help="name of a secret whose keys become environment variables")] = None,
    env: Env = None,
    claim: Annotated[str, typer.Option(help="an existing PersistentVolumeClaim for /data")] = "",
    storage: Annotated[str, typer.Option(help="size of the new claim, as in 200Gi")] = "",
    storage_class: Annotated[str, typer.Option("--storage-class", help="of the new claim")] = "",
    host_path: Annotated[str, typer.Option("--allow-host-path", help="a node's folder as /data: not restricted any more")] = "",
    max_hours: MaxHours = 0.0,
    chat: Annotated[bool, typer.Option("--chat", help="the chat too: Deployment and Service")] = False,
    chat_secret: Annotated[str, typer.Option("--chat-secret", help="secret with the chat's `api-key`; without it NAME-chat-key")] = "",
    chat_host: ChatHost = None,
    cpus: Annotated[str, typer.Option(help="CPUs of each training pod, as request and limit; default: 4 to 8 per GPU")] = "",
    memory: Annotated[str, typer.Option(help="memory of each training pod, as in 64Gi; default: 16Gi to 32Gi per GPU")] = "",
    network_policy: Annotated[bool, typer.Option("--network-policy/--no-network-policy", help="who may connect to the pods")] = True,
    patch: Annotated[Path | None, typer.Option(help="YAML, merged into the manifests of its kind")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not follow the log")] = False,
) -> None:
    """Train on a Kubernetes cluster, by your own kubectl. Flags of `train` are passed on."""
    from nanochat.cloud import kubernetes, network
    from nanochat.cloud.workload import by_digest, plain_environment, workload

    if chat_host and not chat:
        raise UsageError("--chat-host is a host name of the chat, which is not asked for", "add --chat")
    work = workload(by_digest(image), name, profile, trial, context.args, nodes)
    options = kubernetes.ManifestOptions(
        namespace,
        gpu_type,
        dict(_pair(text, "--node-selector") for text in node_selector or []),
        queue,
        tuple(pull_secret or ()),
        tuple(secret or ()),
        plain_environment(env or []),
        claim,
        storage,
        storage_class,
        host_path,
        max_hours,
        chat,
        chat_secret,
        tuple(network.checked_host(host) for host in chat_host or ()),
        _quantity(cpus, "--cpus"),
        _quantity(memory, "--memory"),
        network_policy,
    )
    _apply(work, options, patch, None if dry_run else (namespace, cluster), not detach)


def _apply(work: "Workload", options: "ManifestOptions", patch: Path | None, place: tuple[str, str] | None, follow: bool) -> None:
    """Apply the patched manifests at a namespace and context, and follow the training's log; without a place, print them."""
    from nanochat.cloud import kubectl, kubernetes, manifest_patch

    if options.host_path:
        log("warning: hostPath is not allowed under the restricted pod security profile")
    made = kubernetes.manifests(work, options)
    made = manifest_patch.patched(made, patch) if patch else made
    if place is None:
        _print_manifests(work, made)
        return
    tool, name = kubectl.Kubectl(*place), work.name
    kubectl.submit(tool, name, made)
    log(f"submitted {name}; submit logs {name} follows it, submit cancel {name} ends it")
    if follow:
        raise typer.Exit(tool.logs(name, "train", follow=True))


@app.command(context_settings=FLAGS)
def runpod(
    context: typer.Context,
    image: Image,
    profile: Annotated[str, typer.Option(help="rtx4050, rtx4090, h100x8")] = "rtx4090",
    trial: Trial = False,
    name: Named = "",
    gpu: Annotated[list[str] | None, typer.Option(help="a card by the catalogue's id; several are tried in order")] = None,
    cloud: Annotated[str, typer.Option(help="SECURE or COMMUNITY")] = "SECURE",
    data_center: Annotated[list[str] | None, typer.Option("--data-center", help="where the pod may be")] = None,
    volume: Annotated[str, typer.Option(help="id of a network volume for /data, in the same data center")] = "",
    registry: Annotated[str, typer.Option(help="id of RunPod's registry credentials, for a private image")] = "",
    env: Env = None,
    secret: Annotated[list[str] | None, typer.Option("--secret", help="VARIABLE=NAME, or NAME: a secret of your RunPod account")] = None,
    min_cuda: Annotated[str, typer.Option("--min-cuda", help="oldest CUDA of the host; without it the installed torch's")] = "",
    max_price: Annotated[float, typer.Option("--max-price", help="dollars an hour for the pod")] = 0.0,
    max_cost: Annotated[float, typer.Option("--max-cost", help="dollars in all")] = 0.0,
    max_hours: MaxHours = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="do not follow the log")] = False,
    api_key_file: KeyFile = "",
) -> None:
    """Train on a rented card of RunPod: shows the price, asks, follows. Flags of `train` are passed on."""
    from nanochat.cloud import runpod as rental
    from nanochat.cloud.runpod_api import RunPod, read_key
    from nanochat.cloud.runpod_secrets import environment
    from nanochat.cloud.workload import by_digest, workload

    if cloud not in ("SECURE", "COMMUNITY"):
        raise UsageError(f"cloud {cloud!r} is unknown", "SECURE or COMMUNITY")
    if min(max_price, max_cost, max_hours) < 0:
        raise UsageError("a ceiling is negative", "0 means none")
    work = workload(by_digest(image), name, profile, trial, context.args)
    options = rental.RentalOptions(
        tuple(gpu or ()),
        cloud,
        tuple(data_center or ()),
        volume,
        registry,
        tuple(environment(env or [], secret or []).items()),
        min_cuda,
        max_price,
        max_cost,
        max_hours,
    )
    raise typer.Exit(rental.submit(RunPod(read_key(api_key_file)), work, options, lambda plan: _agreed(plan, yes), not detach))


def _print_manifests(work: "Workload", made: "list[Manifest]") -> None:
    """The manifests as YAML on stdout, and how to apply them by hand."""
    from nanochat.cloud import kubernetes
    from nanochat.cloud.absolute_end import end_of

    if end := end_of(made):
        at = datetime.datetime.fromtimestamp(int(end), datetime.UTC)
        log(f"the training ends itself at {at:%Y-%m-%d %H:%M} UTC ({END}), counted from now: print it again where it is applied much later")
    if work.download:
        log(f"apply the training when the job {kubernetes.name_of(work, 'download')} is complete; without --dry-run this waits")
    for document in kubernetes.to_yaml(made):
        show(document, end="")


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"{option} {text} is not KEY=VALUE", f"as in {option} pool=h100")
    return key, value


def _quantity(text: str, option: str) -> str:
    """A quantity as Kubernetes writes it. Raises UsageError."""
    if text and not re.fullmatch(r"(?=.*[1-9])\d{1,9}(\.\d{1,3})?(m|[kMGTP]i?)?", text):
        raise UsageError(f"{option} {text[:40]} is not a quantity", "as in --cpus 8 --memory 64Gi")
    return text


def _agreed(plan: str, yes: bool) -> bool:
    """Show the plan; whether the user agrees. Raises UsageError where there is nobody to ask."""
    for line in plan.splitlines():
        log(line)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to agree to the price", "--yes rents without asking")
    return typer.confirm("rent it?", err=True)


def _rented(on: str) -> bool:
    if on not in ("k8s", "runpod"):
        raise UsageError(f"--on {on} is unknown", "k8s or runpod")
    return on == "runpod"


@app.command()
def status(
    name: Annotated[str, typer.Argument(help="the job's name; on RunPod without it all pods")] = "",
    on: On = "k8s",
    namespace: Namespace = "",
    cluster: Context = "",
    api_key_file: KeyFile = "",
) -> None:
    """What runs: state, restarts; on RunPod the price."""
    if _rented(on):
        from nanochat.cloud.runpod import status_lines
        from nanochat.cloud.runpod_api import RunPod, read_key

        for line in status_lines(RunPod(read_key(api_key_file)), name):
            show(line)
        return
    from nanochat.cloud.kubectl import Kubectl

    if not name:
        raise UsageError("which training?", "submit status NAME")
    for row in Kubectl(namespace, cluster).status(name):
        show(f"{row['kind']:<22} {row['name']:<44} {row['state']:<12} {row['restarts']} restarts")
        if row["why"]:
            show(f"    {row['why']}")
        if row["hint"]:
            log(f"hint: {row['hint']}")


@app.command()
def logs(
    name: Name,
    on: On = "k8s",
    component: Annotated[str, typer.Option(help="train, download or chat (Kubernetes)")] = "train",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="until it has ended")] = True,
    namespace: Namespace = "",
    cluster: Context = "",
    api_key_file: KeyFile = "",
) -> None:
    """The training's log; followed, its exit code is the training's."""
    if _rented(on):
        from nanochat.cloud import runpod as rental
        from nanochat.cloud.runpod_api import RunPod, read_key
        from nanochat.cloud.runpod_watch import deadline, watch

        api = RunPod(read_key(api_key_file))
        pod = rental.require(api, name)
        raise typer.Exit(watch(api, pod["id"], deadline(pod)))
    from nanochat.cloud.kubectl import Kubectl

    raise typer.Exit(Kubectl(namespace, cluster).logs(name, component, follow))


@app.command()
def cancel(name: Name, namespace: Namespace = "", cluster: Context = "") -> None:
    """End a training on Kubernetes, after a checkpoint; its volume stays."""
    from nanochat.cloud.kubectl import Kubectl

    Kubectl(namespace, cluster).cancel(name)


@app.command()
def stop(name: Name, api_key_file: KeyFile = "") -> None:
    """Stop a pod of RunPod; its disk stays and is billed."""
    _end(name, "stop", api_key_file)


@app.command()
def terminate(name: Name, api_key_file: KeyFile = "") -> None:
    """Delete a pod of RunPod with its own disk; a network volume stays."""
    _end(name, "terminate", api_key_file)


def _end(name: str, action: str, api_key_file: str) -> None:
    from nanochat.cloud import runpod as rental
    from nanochat.cloud.runpod_api import RunPod, read_key
    from nanochat.cloud.runpod_watch import end

    api = RunPod(read_key(api_key_file))
    pod = rental.require(api, name)
    end(api, pod["id"], action)
    log(f"pod {pod['id']}: {action} done" + (": its disk is kept, and billed until submit terminate" if action == "stop" else ""))
