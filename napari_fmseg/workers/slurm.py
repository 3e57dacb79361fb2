"""Batch files for SLURM: a scheduler and workers of dask for work on many volumes, torchrun for training."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from napari_fmseg.core.errors import InvalidRecipe

__all__ = ["SlurmOptions", "sbatch_text"]

_TRAINING = ("train", "pretrain")


@dataclass(frozen=True)
class SlurmOptions:
    """What a batch file asks SLURM for.

    Parameters
    ----------
    workers
        Processes in all: workers for volumes, or processes that train together.
    per_node
        How many of them on one node, each with a graphics card of its own where there are any.
    gres
        What each node gives, as SLURM writes it, such as gpu:1 or gpu:a100:4.
    time
        Time limit, such as 12:00:00.
    mem
        Memory of each node, such as 64G.
    cpus
        Processor cores of each process.
    partition
        Where the site has several.
    account
        Where the site bills.
    container
        An Apptainer (Singularity) image with the program, for sites where it is not installed.
    """

    workers: int = 1
    per_node: int = 1
    gres: str | None = None
    time: str | None = None
    mem: str | None = None
    cpus: int = 4
    partition: str | None = None
    account: str | None = None
    container: str | None = None

    def __post_init__(self) -> None:
        if min(self.workers, self.per_node, self.cpus) < 1 or self.workers % self.per_node:
            raise InvalidRecipe(
                "workers, per_node and cpus are at least 1, and workers is a multiple of per_node; not "
                f"{self.workers}, {self.per_node} and {self.cpus}."
            )
        for name in ("gres", "time", "mem", "partition", "account"):
            value = getattr(self, name)
            if value is not None and (not value or any(c.isspace() for c in value)):
                raise InvalidRecipe(f"{name} is one word, as SLURM takes it, not {value!r}.")

    @property
    def nodes(self) -> int:
        """How many nodes are asked for."""
        return self.workers // self.per_node


def sbatch_text(command: Sequence[str], options: SlurmOptions, folder: str, python: str = sys.executable) -> str:
    """Return a batch file for SLURM.

    Parameters
    ----------
    command
        The words after ``fmseg``: ``["segment", "scans", "--model", ...]``.
    options
        What to ask for.
    folder
        Where the command runs; all nodes must see it.
    python
        The Python with the program; inside a container its own.
    """
    body = _training if command[0] in _TRAINING else _volumes
    return "\n".join([*_head(command, options), "", *_start(options, folder, python), "", body(command, options)])


def _head(command: Sequence[str], options: SlurmOptions) -> list[str]:
    name = f"fmseg-{command[0]}"
    asked = {
        "job-name": name,
        "nodes": options.nodes,
        "ntasks-per-node": 1 if command[0] in _TRAINING else options.per_node,
        "cpus-per-task": options.cpus * (options.per_node if command[0] in _TRAINING else 1),
        "gres": options.gres,
        "time": options.time,
        "mem": options.mem,
        "partition": options.partition,
        "account": options.account,
        "output": f"{name}-%j.log",
    }
    return [
        "#!/bin/bash",
        f"# fmseg {command[0]}, {options.workers} process(es). Submit it with sbatch; submitted again, it resumes.",
        "# Nothing is downloaded: the nodes need no internet.",
        *(f"#SBATCH --{key}={value}" for key, value in asked.items() if value is not None),
    ]


def _start(options: SlurmOptions, folder: str, python: str) -> list[str]:
    lines = ["set -euo pipefail", f"cd {shlex.quote(folder)}"]
    if options.container is None:
        lines.append(f"python=({shlex.quote(python)})")
    else:
        cards = " --nv" if options.gres else ""
        lines.append(f'python=(apptainer exec{cards} --bind "$PWD" {shlex.quote(options.container)} python)')
    lines.append(f"export OMP_NUM_THREADS={options.cpus}")
    return lines


def _volumes(command: Sequence[str], options: SlurmOptions) -> str:
    """Return the lines that start a scheduler and workers, and the command that shares its volumes out to them."""
    words = list(command)
    if words[0] == "segment" and "--resume" not in words:
        words.append("--resume")
    return _fill(_VOLUMES, {"N": options.workers, "CPUS": options.cpus, "WORDS": shlex.join(words)})


def _training(command: Sequence[str], options: SlurmOptions) -> str:
    """Return the lines that start one process per graphics card, which train together."""
    facts = {"NODES": options.nodes, "CPUS": options.cpus * options.per_node, "EACH": options.per_node}
    return _fill(_TORCHRUN, {**facts, "WORDS": shlex.join(command)})


def _fill(text: str, values: Mapping[str, object]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


_VOLUMES = r"""# Keys for this job only: whoever reached the scheduler could otherwise run programs in your name.
mask="$(umask)"; umask 077
export private="$PWD/.fmseg-$SLURM_JOB_ID"
mkdir "$private"
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$private"' EXIT
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=fmseg -days 60 \
    -keyout "$private/key.pem" -out "$private/cert.pem" 2> /dev/null
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
export DASK_DISTRIBUTED__COMM__TLS__CA_FILE="$private/cert.pem"
for part in SCHEDULER WORKER CLIENT; do
    export "DASK_DISTRIBUTED__COMM__TLS__${part}__CERT=$private/cert.pem"
    export "DASK_DISTRIBUTED__COMM__TLS__${part}__KEY=$private/key.pem"
done
umask "$mask"

# The scheduler, on the first node.
"${python[@]}" -m distributed.cli.dask_scheduler --protocol tls --port 0 --no-dashboard \
    --scheduler-file "$private/scheduler.json" 2> "$private/scheduler.log" &
scheduler=$!
until [ -s "$private/scheduler.json" ]; do
    kill -0 "$scheduler" || { cat "$private/scheduler.log"; exit 1; }
    sleep 1
done

# The workers; each takes the graphics card of its number. What they log could name files, and is not kept.
srun --ntasks=@N@ --cpus-per-task=@CPUS@ bash -c 'exec "$@" --name "$SLURM_PROCID"' worker \
    "${python[@]}" -m distributed.cli.dask_worker --scheduler-file "$private/scheduler.json" --protocol tls \
    --nthreads 2 --memory-limit 0 --no-dashboard --death-timeout 300 --local-directory "${TMPDIR:-/tmp}" \
    > /dev/null 2> "$private/workers.log" &

"${python[@]}" -m napari_fmseg @WORDS@ \
    --scheduler "$private/scheduler.json"
"""

_TORCHRUN = r"""# One process for each graphics card; they find each other through the first node.
head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
port=$((20000 + SLURM_JOB_ID % 20000))

srun --ntasks=@NODES@ --cpus-per-task=@CPUS@ "${python[@]}" -m torch.distributed.run \
    --nnodes @NODES@ --nproc-per-node @EACH@ \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$port" \
    -m napari_fmseg @WORDS@
"""
