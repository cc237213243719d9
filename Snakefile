# From config.yaml to tables and a page; `snakemake -n` lists what would run, and why.
# Execution settings: profiles/. Experiment: config.yaml in the working directory, or `--config experiment=FILE`.

import sys

from snakemake import persistence
from snakemake.utils import min_version

from onestep.components import hide_computing
from onestep.config import ConfigError
from onestep.models import MODEL, NAME, RUN, SEEDS
from onestep.plan import Plan, groups, measured, provenance, watch
from onestep.plan.inputs import check_local_files

min_version("9.20")

# This process plans; its jobs compute.
hide_computing()

# A wrong key, name or type stops here, before any job, with its place in the file.
try:
    plan = Plan.read(config.get("experiment", "config.yaml")).asked_by(sys.argv[1:])
    check_local_files(plan)
except ConfigError as error:
    raise SystemExit(str(error))

results = plan.results

# Files of a block that are made in one process, each recorded as if a job of its own had made it.
shares_jobs = provenance.is_possible(getattr(persistence, "PersistenceBase", None))
# A job of another process has its rules among its words: `--target-jobs RULE:WILDCARD=VALUE ...`.
asked_rules = (
    None if workflow.is_main_process else {word.partition(":")[0] for word in sys.argv}
)
workflow.parent_groupids.update(groups.parents(plan))
# Only where the profile has `group-components`: how many models make a SLURM job.
group_of_block = groups.where_requested(workflow)


onstart:
    if shares_jobs:
        names = ["measure_"] + ["observe_"] * sample.stores_images(plan)
        provenance.record_each_file(
            workflow,
            together=tuple(names),
            single=[
                "measure",
                "sample_decoded",
                "sample_guided",
                "sample",
                "extract",
            ],
        )
    # As --keep-incomplete: every file is written whole or not at all, and what a failed job has published stays.
    workflow.execution_settings.keep_incomplete = True


# Of every rule that sets no other, and only under `--software-deployment-method apptainer`.
container: plan.experiment.container


wildcard_constraints:
    model=MODEL,
    run=RUN,
    dataset=NAME,
    teacher=NAME,
    class_embeddings=NAME,
    sampler=NAME,
    features=NAME,
    metric=NAME,
    table=NAME,
    study=NAME,
    seeds=SEEDS,


include: "workflow/rules/terminal.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/study.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        [results.table(name, ".md") for name in plan.experiment.tables],
        [
            results.study(name, ".md")
            for name in measured.default_studies(plan.experiment)
        ],
        watch.references(plan),
        results.report,
