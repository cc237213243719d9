# METRICS AND SELECTIONS
# needs:  results/features/...npz
# makes:  results/metrics/...json, results/selections/{model}.safetensors .json, results/references/{dataset}.{metric}.json

from onestep.plan import measure

# Jobs of a group must request the same, where a site requests a GPU by a text.
gpu_of_group = plan.gpu if plan.gpu["gres"] else {}

# Several metrics of a block in one process, where several are to be computed; otherwise each in a job of its own.
for together in measure.measure_rules(plan, asked=asked_rules) if shares_jobs else []:
    workflow.ruleorder(together.name, "measure")

    rule:
        """Compute the metrics of one seed block at once."""
        name:
            together.name
        input:
            lambda wildcards, metrics=together.metrics: measure.block_files(
                plan, wildcards.block, metrics
            ),
        output:
            [results.block_metric("{block}", metric) for metric in together.metrics],
        log:
            f"logs/measure/{{block}}.{'.'.join(together.metrics)}.log",
        benchmark:
            f"benchmarks/measure/{{block}}.{'.'.join(together.metrics)}.tsv"
        wildcard_constraints:
            block=together.blocks,
        group:
            group_of_block
        conda:
            "../../envs/onestep.yaml"
        threads: plan.threads
        resources:
            **gpu_of_group,
            in_turn=1,
            mem_mb=16000,
            runtime="2h",
        params:
            metrics=lambda wildcards, metrics=together.metrics: measure.block_options(
                plan, wildcards.block, metrics
            ),
        message:
            f"measure {', '.join(together.metrics)} of {{wildcards.block}}"
        shell:
            "onestep measure --each {params.metrics:q} --output results/metrics/{wildcards.block:q} > {log:q} 2>&1"


rule measure:
    """Compute one metric of one seed block."""
    input:
        unpack(lambda wildcards: measure.metric_files(plan, *wildcards)),
    output:
        results.metric("{model}", "{sampler}", "{seeds}", "{metric}"),
    log:
        "logs/measure/{model}/{sampler}/{seeds}.{metric}.log",
    benchmark:
        "benchmarks/measure/{model}/{sampler}/{seeds}.{metric}.tsv"
    group:
        group_of_block
    conda:
        "../../envs/onestep.yaml"
    threads: plan.threads
    resources:
        **gpu_of_group,
        in_turn=1,
        mem_mb=16000,
        runtime="2h",
    params:
        metric=lambda wildcards: plan.options("metrics", wildcards.metric),
        files=lambda wildcards, input: measure.metric_file_options(
            plan, wildcards, input
        ),
        code=lambda wildcards: plan.code("measure", "metrics", wildcards.metric),
    message:
        "measure {wildcards.metric} of {wildcards.model} by {wildcards.sampler}, seeds {wildcards.seeds}"
    shell:
        "onestep measure --metric {params.metric:q} --name {wildcards.metric} {params.files}"
        " --output {output:q} > {log:q} 2>&1"


# A dataset's own features against its published reference: near 0 if both are of the same images.
# On request: snakemake results/references/{dataset}.{metric}.json
use rule measure as check_reference with:
    input:
        unpack(lambda wildcards: measure.reference_files(plan, *wildcards)),
    output:
        results.reference_check("{dataset}", "{metric}"),
    log:
        "logs/measure/references/{dataset}.{metric}.log",
    benchmark:
        "benchmarks/measure/references/{dataset}.{metric}.tsv"
    message:
        "measure {wildcards.metric} of dataset {wildcards.dataset} against its published reference"


rule select:
    """Select a run's best snapshot by one number; all candidates are measured, so a dry run lists all jobs."""
    input:
        snapshots=lambda wildcards: measure.candidates(plan, wildcards.model),
        measurements=lambda wildcards: measure.candidate_metrics(plan, wildcards.model),
    output:
        weights=results.selection("{model}"),
        choice=results.selection("{model}", ".json"),
    log:
        "logs/select/{model}.log",
    benchmark:
        "benchmarks/select/{model}.tsv"
    localrule: True
    conda:
        "../../envs/onestep.yaml"
    resources:
        login_jobs=1,
    params:
        choice=lambda wildcards: measure.selection_options(plan, wildcards.model),
        code=plan.fingerprints.of_stage("select"),
    message:
        "select the best snapshot {wildcards.model}"
    shell:
        "onestep select --choice {params.choice:q} --results results --output {output.weights:q} > {log:q} 2>&1"
