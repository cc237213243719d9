# NUMBERS, TABLES, PAGE
# needs:  results/features/...npz
# makes:  results/metrics/...json, results/selections/{model}.safetensors .json, results/tables/{table}.json .csv .md .tex .svg,
#         results/report/index.html


rule measure:
    """Compute one metric of one block of seeds."""
    input:
        generated=plan.metrics.generated,
        real=plan.metrics.real,
    output:
        "results/metrics/{model}/{sampler}/{seeds}.{metric}.json",
    log:
        "logs/measure/{model}/{sampler}/{seeds}.{metric}.log",
    benchmark:
        "benchmarks/measure/{model}/{sampler}/{seeds}.{metric}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: plan.site.threads
    resources:
        mem_mb=16000,
        runtime="2h",
    params:
        metric=plan.metrics.options,
        reference=plan.metrics.reference,
        code=plan.metrics.code,
    shell:
        "onestep measure --metric {params.metric:q} --name {wildcards.metric} --generated {input.generated:q}"
        " {params.reference} --output {output:q} > {log:q} 2>&1"


rule select:
    """Choose among a run's snapshots by one number of each; every candidate is measured, so a dry run knows all jobs."""
    input:
        snapshots=plan.choices.snapshots,
        measurements=plan.choices.measurements,
    output:
        weights="results/selections/{model}.safetensors",
        choice="results/selections/{model}.json",
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
        choice=plan.choices.options,
        code=plan.choices.code,
    shell:
        "onestep select --choice {params.choice:q} --results results --output {output.weights:q} > {log:q} 2>&1"


rule check_reference:
    """Hold a dataset's own features against its published reference: near 0 where both are of the same images.

    Asked for by name: snakemake results/references/{dataset}.{metric}.json
    """
    input:
        generated=plan.references.own,
        real=plan.references.published,
    output:
        "results/references/{dataset}.{metric}.json",
    log:
        "logs/measure/references/{dataset}.{metric}.log",
    benchmark:
        "benchmarks/measure/references/{dataset}.{metric}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: plan.site.threads
    resources:
        mem_mb=16000,
        runtime="2h",
    params:
        metric=plan.metrics.options,
        reference=lambda wildcards, input: plan.references.named(
            wildcards.dataset, metric=wildcards.metric, paths=[input.real]
        ),
        code=plan.metrics.code,
    shell:
        "onestep measure --metric {params.metric:q} --name {wildcards.metric} --generated {input.generated:q}"
        " {params.reference} --output {output:q} > {log:q} 2>&1"


rule tabulate:
    """Put numbers side by side, with what was published and what trained them."""
    input:
        metrics=plan.tables.measurements,
        summaries=plan.tables.summaries,
        choices=plan.tables.choices,
    output:
        multiext("results/tables/{table}", ".json", ".csv", ".md", ".tex", ".svg"),
    log:
        "logs/tabulate/{table}.log",
    benchmark:
        "benchmarks/tabulate/{table}.tsv"
    localrule: True
    conda:
        "../../envs/onestep.yaml"
    resources:
        login_jobs=1,
    params:
        table=plan.tables.options,
        training_code=plan.tables.training_code,
        code=plan.tables.code,
    shell:
        "onestep tabulate --table {params.table:q} --training-code {params.training_code:q} --results results"
        " --output results/tables > {log:q} 2>&1"


rule report:
    """Draw the results page: one file that opens from disk."""
    input:
        plan.page.inputs,
    output:
        "results/report/index.html",
    log:
        "logs/report.log",
    benchmark:
        "benchmarks/report.tsv"
    localrule: True
    conda:
        "../../envs/onestep.yaml"
    resources:
        login_jobs=1,
    params:
        config=plan.page.options,
        source=plan.source,
        code=plan.page.code,
    shell:
        "onestep report --config {params.source:q} --results results --benchmarks benchmarks --output {output:q} > {log:q} 2>&1"
