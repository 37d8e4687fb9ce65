"""The command `submit`: a run on Kubernetes or RunPod from one line, and its state, log and end."""

import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat.cli.help import Group
from nanochat.cli.job import Job, takes_job
from nanochat.cli.options import ALSO_CONFIG, FLAGS, Commands, require_choice, require_terminal
from nanochat.console import log, show
from nanochat.errors import UsageError
from nanochat.train.deadline import VARIABLE as END

if TYPE_CHECKING:
    from nanochat.cloud.kubernetes import Manifest, ManifestOptions
    from nanochat.cloud.workload import Workload

app = Commands(cls=Group, help="Train on Kubernetes or on a rented GPU.\n\nFollow, stop and delete what runs there as well.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the job")]
On = Annotated[str, typer.Option("--on", metavar="k8s|runpod", help="Where the job runs")]
Namespace = Annotated[str, typer.Option(metavar="NAME", help="Kubernetes namespace; without it, kubectl's own")]
Context = Annotated[str, typer.Option("--context", metavar="NAME", help="Context of kubectl; without it, the current one")]
KeyFile = Annotated[
    str, typer.Option("--api-key-file", "--api_key_file", metavar="FILE", help="File with RunPod's API key (or RUNPOD_API_KEY)")
]


@app.command(context_settings=FLAGS, epilog=ALSO_CONFIG)
@takes_job("h100x8")
def k8s(  # long: a parameter for each option
    context: typer.Context,
    job: Job,
    nodes: Annotated[int, typer.Option(metavar="N", help="Machines; several need JobSet in the cluster")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", "--dry_run", help="Print the manifests, without asking a cluster")] = False,
    namespace: Namespace = "",
    cluster: Context = "",
    gpu_type: Annotated[str, typer.Option("--gpu-type", metavar="LABEL", help="The nodes' label nvidia.com/gpu.product")] = "",
    node_selector: Annotated[
        list[str] | None, typer.Option("--node-selector", metavar="KEY=VALUE", help="Label that the nodes must have")
    ] = None,
    queue: Annotated[str, typer.Option(metavar="NAME", help="Local queue of Kueue")] = "",
    pull_secret: Annotated[list[str] | None, typer.Option("--pull-secret", metavar="NAME", help="Secret to pull the image with")] = None,
    secret: Annotated[
        list[str] | None, typer.Option("--secret", metavar="NAME", help="Secret whose keys become environment variables")
    ] = None,
    claim: Annotated[str, typer.Option(metavar="NAME", help="Existing PersistentVolumeClaim for /data")] = "",
    storage: Annotated[str, typer.Option(metavar="SIZE", help="Size of the new claim, as in 200Gi; without it, from the plan")] = "",
    storage_class: Annotated[str, typer.Option("--storage-class", metavar="NAME", help="Storage class of the new claim")] = "",
    host_path: Annotated[
        str, typer.Option("--allow-host-path", metavar="DIR", help="Directory of the node as /data, which the restricted profile forbids")
    ] = "",
    chat: Annotated[bool, typer.Option("--chat", help="Also the chat: a Deployment and a Service")] = False,
    chat_secret: Annotated[
        str, typer.Option("--chat-secret", metavar="NAME", help="Secret with the chat's api-key; without it, NAME-chat-key")
    ] = "",
    chat_host: Annotated[
        list[str] | None, typer.Option("--chat-host", "--chat_host", metavar="HOST", help="Host name of an Ingress that leads to the chat")
    ] = None,
    cpus: Annotated[str, typer.Option(metavar="CPUS", help="CPUs of each training pod; without it, 4 to 8 per GPU")] = "",
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory of each training pod, as in 64Gi; without it, 16Gi to 32Gi per GPU")
    ] = "",
    network_policy: Annotated[
        bool, typer.Option("--network-policy/--no-network-policy", help="NetworkPolicy that limits who may connect to the pods")
    ] = True,
    patch: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file to merge into the manifests of the same kind")] = None,
) -> None:
    """Train on a Kubernetes cluster through kubectl.

    Downloads the data without a GPU first, then trains and follows the log. The same command again resumes the run.
    """
    from nanochat.cloud import kubernetes, network
    from nanochat.cloud.workload import plain_environment

    if chat_host and not chat:
        raise UsageError(f"--chat-host {chat_host[0]} needs the chat", "add --chat")
    options = kubernetes.ManifestOptions(
        namespace,
        gpu_type,
        dict(_pair(text, "--node-selector") for text in node_selector or []),
        queue,
        tuple(pull_secret or ()),
        tuple(secret or ()),
        plain_environment(job.env or []),
        claim,
        storage,
        storage_class,
        host_path,
        job.max_hours,
        chat,
        chat_secret,
        tuple(network.checked_host(host) for host in chat_host or ()),
        _quantity(cpus, "--cpus"),
        _quantity(memory, "--memory"),
        network_policy,
    )
    _apply(job.work(context.args, nodes), options, patch, None if dry_run else (namespace, cluster), not job.detach)


def _apply(work: "Workload", options: "ManifestOptions", patch: Path | None, place: tuple[str, str] | None, follow: bool) -> None:
    """Apply the patched manifests in a namespace and context, and follow the log; without a `place`, print them."""
    from nanochat.cloud import kubectl, kubernetes, manifest_patch, volumes

    if options.host_path:
        log("warning: hostPath is not allowed under the restricted pod security profile")
    made = kubernetes.manifests(work, options)
    made = manifest_patch.patched(made, patch) if patch else made
    if place is None:
        _print_manifests(work, made)
        return
    tool, name = kubectl.Kubectl(*place), work.name
    if not tool.controllers(name, "train"):  # else its volume serves its pods already
        volumes.require_shared(tool, made, options.claim)
    kubectl.submit(tool, name, made)
    log(f"submitted {name}: `nanochat submit logs {name}` follows it, `nanochat submit cancel {name}` ends it")
    if follow:
        raise typer.Exit(tool.logs(name, "train", follow=True))


@app.command(context_settings=FLAGS, epilog=ALSO_CONFIG)
@takes_job("rtx4090")
def runpod(
    context: typer.Context,
    job: Job,
    gpu: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="GPU by its id in RunPod's catalogue; several are tried in order")
    ] = None,
    cloud: Annotated[str, typer.Option(metavar="SECURE|COMMUNITY", help="RunPod's kind of cloud")] = "SECURE",
    data_center: Annotated[
        list[str] | None, typer.Option("--data-center", metavar="ID", help="Data center of the pod; several are possible")
    ] = None,
    volume: Annotated[str, typer.Option(metavar="ID", help="Network volume for /data, in the same data center")] = "",
    registry: Annotated[str, typer.Option(metavar="ID", help="Registry credentials at RunPod, for a private image")] = "",
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="VARIABLE=NAME", help="Secret of your RunPod account as an environment variable"),
    ] = None,
    min_cuda: Annotated[
        str, typer.Option("--min-cuda", metavar="VERSION", help="Oldest CUDA version of the host; without it, that of the torch here")
    ] = "",
    max_price: Annotated[
        float, typer.Option("--max-price", metavar="DOLLARS", help="Most dollars per hour for the pod; 0: no limit")
    ] = 0.0,
    max_cost: Annotated[float, typer.Option("--max-cost", metavar="DOLLARS", help="Most dollars for the whole run; 0: no limit")] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="Rent without asking")] = False,
    api_key_file: KeyFile = "",
) -> None:
    """Train on a rented GPU of RunPod.

    Shows the price, asks, rents a pod and follows its log. The pod ends itself when the run is done or a limit is reached.
    """
    from nanochat.cloud import runpod as rental
    from nanochat.cloud.runpod_api import RunPod, read_key
    from nanochat.cloud.runpod_secrets import environment

    require_choice("--cloud", cloud, ("SECURE", "COMMUNITY"))
    for option, limit in (("--max-price", max_price), ("--max-cost", max_cost), ("--max-hours", job.max_hours)):
        if limit < 0:
            raise UsageError(f"{option} {limit:g} is negative", f"{option} takes a positive number, or 0 for no limit")
    options = rental.RentalOptions(
        tuple(gpu or ()),
        cloud,
        tuple(data_center or ()),
        volume,
        registry,
        tuple(environment(job.env or [], secret or []).items()),
        min_cuda,
        max_price,
        max_cost,
        job.max_hours,
    )
    work = job.work(context.args)
    raise typer.Exit(rental.submit(RunPod(read_key(api_key_file)), work, options, lambda plan: _agreed(plan, yes), not job.detach))


def _print_manifests(work: "Workload", made: "list[Manifest]") -> None:
    """Print the manifests as YAML on stdout, and on stderr how to apply them by hand."""
    from nanochat.cloud import kubernetes
    from nanochat.cloud.absolute_end import end_of

    if end := end_of(made):
        at = datetime.datetime.fromtimestamp(int(end), datetime.UTC)
        log(f"the job ends itself at {at:%Y-%m-%d %H:%M} UTC ({END}), counted from now. If you apply it much later, print it again")
    if work.download:
        log(f"apply the training job when the job {kubernetes.name_of(work, 'download')} is complete; without --dry-run this command waits")
    for document in kubernetes.to_yaml(made):
        show(document, end="")


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"{option} {text} is not KEY=VALUE", f"write it as in {option} pool=h100")
    return key, value


def _quantity(text: str, option: str) -> str:
    """`text`, a quantity as Kubernetes writes it. Raises UsageError."""
    if text and not re.fullmatch(r"(?=.*[1-9])\d{1,9}(\.\d{1,3})?(m|[kMGTP]i?)?", text):
        raise UsageError(f"{option} {text[:40]} is not a quantity", "write it as in --cpus 8 --memory 64Gi")
    return text


def _agreed(plan: str, yes: bool) -> bool:
    """Show the plan and return whether the user agrees. Raises UsageError if stdin is not a terminal."""
    for line in plan.splitlines():
        log(line)
    if yes:
        return True
    require_terminal("pass --yes to rent without asking")
    return typer.confirm("Rent it?", err=True)


def _rented(on: str) -> bool:
    return require_choice("--on", on, ("k8s", "runpod")) == "runpod"


@app.command()
def status(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the job; on RunPod without it all pods")] = "",
    on: On = "k8s",
    namespace: Namespace = "",
    cluster: Context = "",
    api_key_file: KeyFile = "",
) -> None:
    """Show the state of a submitted job.

    With its restarts, the reason for a failure and a hint; on RunPod with the price.
    """
    if _rented(on):
        from nanochat.cloud.runpod import status_lines
        from nanochat.cloud.runpod_api import RunPod, read_key

        for line in status_lines(RunPod(read_key(api_key_file)), name):
            show(line)
        return
    from nanochat.cloud.kubectl import Kubectl

    if not name:
        raise UsageError(
            "NAME is missing: on Kubernetes one job is shown", "`nanochat submit status nanochat-h100x8` shows one of that name"
        )
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
    component: Annotated[str, typer.Option(metavar="train|download|chat", help="Part of the job (Kubernetes only)")] = "train",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Print new lines until the job has ended")] = True,
    namespace: Namespace = "",
    cluster: Context = "",
    api_key_file: KeyFile = "",
) -> None:
    """Print and follow a job's log.

    If it is followed, the exit code is the job's.
    """
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
def fetch(
    name: Name,
    run: Annotated[str, typer.Option(metavar="NAME", help="Name of the run; without it, the job's")] = "",
    image: Annotated[str, typer.Option(metavar="REF", help="Image for the copying pod; without it, the job's")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace the run here if the one there continues it")] = False,
    namespace: Namespace = "",
    cluster: Context = "",
) -> None:
    """Fetch a run from a Kubernetes volume.

    A pod without a GPU packs the run on its volume, and the run is verified here. It can be chatted with, and resumed.
    """
    from nanochat.cloud.fetch import fetch
    from nanochat.cloud.kubectl import Kubectl

    packed = fetch(Kubectl(namespace, cluster), name, run, image, replace)
    log(f"the run {packed.run} is here ({packed.describe()}), chat with it by `nanochat chat --run {packed.run}`")


@app.command()
def cancel(name: Name, namespace: Namespace = "", cluster: Context = "") -> None:
    """End a job on Kubernetes after a checkpoint.

    Its volume with the checkpoints stays.
    """
    from nanochat.cloud.kubectl import Kubectl

    Kubectl(namespace, cluster).cancel(name)


@app.command()
def stop(name: Name, api_key_file: KeyFile = "") -> None:
    """Stop a RunPod pod; its disk stays and is billed."""
    _end(name, "stop", api_key_file)


@app.command()
def terminate(name: Name, api_key_file: KeyFile = "") -> None:
    """Delete a RunPod pod and its disk.

    A network volume stays.
    """
    _end(name, "terminate", api_key_file)


def _end(name: str, action: str, api_key_file: str) -> None:
    from nanochat.cloud import runpod as rental
    from nanochat.cloud.runpod_api import RunPod, read_key
    from nanochat.cloud.runpod_watch import end

    api = RunPod(read_key(api_key_file))
    pod = rental.require(api, name)
    end(api, pod["id"], action)
    kept = f"; its disk is kept and billed until `nanochat submit terminate {name}`" if action == "stop" else ""
    log(f"pod {pod['id']}: {action} done{kept}")
