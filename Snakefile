# From config.yaml to tables and a page; `snakemake -n` says what would run, and why.
# Where it runs stands in profiles/; what is run, in the working directory's config.yaml, or `--config experiment=FILE`.

from snakemake.utils import min_version

from onestep.config import ConfigError
from onestep.models import MODEL
from onestep.plan import Plan

min_version("9.20")

# A wrong key, name or type stops here, before any job, with its path in the file.
try:
    plan = Plan.read(config.get("experiment", "config.yaml"))
except ConfigError as error:
    raise SystemExit(str(error))


# Of every rule that does not say otherwise, and only under `--software-deployment-method apptainer`.
container: plan.site.container


wildcard_constraints:
    model=MODEL,
    run=r"[a-z0-9_]+",
    dataset=r"[a-z0-9_]+",
    teacher=r"[a-z0-9_]+",
    class_embeddings=r"[a-z0-9_]+",
    sampler=r"[a-z0-9_]+",
    features=r"[a-z0-9_]+",
    metric=r"[a-z0-9_]+",
    table=r"[a-z0-9_]+",
    seeds=r"[0-9]+-[0-9]+",


include: "workflow/rules/inputs.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/measure.smk"


rule all:
    default_target: True
    input:
        plan.tables.files,
        "results/report/index.html",
