# NUMBERS, TABLES, PAGE
# needs:  results/features/...npz
# makes:  results/metrics/...json, results/selections/{model}.safetensors .json, results/tables/{table}.json .csv .md .tex .svg,
#         results/report/index.html


rule measure:
    """Compute one metric of one block of seeds."""
    input:
        generated=plan.generated_features,
        real=plan.real_features,
    output:
        "results/metrics/{model}/{sampler}/{seeds}.{metric}.json",
    log:
        "logs/measure/{model}/{sampler}/{seeds}.{metric}.log",
    benchmark:
        "benchmarks/measure/{model}/{sampler}/{seeds}.{metric}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: plan.threads
    resources:
        mem_mb=16000,
        runtime="2h",
    params:
        metric=plan.metric_options,
        code=plan.measure_code,
    shell:
        "onestep measure --metric {params.metric:q} --name {wildcards.metric} --generated {input.generated:q}"
        " --real {input.real:q} --output {output:q} > {log:q} 2>&1"


rule select:
    """Choose among a run's snapshots by one number of each; every candidate is measured, so a dry run knows all jobs."""
    input:
        snapshots=plan.candidate_snapshots,
        measurements=plan.candidate_measurements,
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
        choice=plan.choice_options,
        code=plan.select_code,
    shell:
        "onestep select --choice {params.choice:q} --results results --output {output.weights:q} > {log:q} 2>&1"


rule check_reference:
    """Hold a dataset's own features against its published reference: near 0 where both are of the same images.

    Asked for by name: snakemake results/references/{dataset}.{metric}.json
    """
    input:
        generated=plan.dataset_features,
        real=plan.dataset_reference,
    output:
        "results/references/{dataset}.{metric}.json",
    log:
        "logs/measure/references/{dataset}.{metric}.log",
    benchmark:
        "benchmarks/measure/references/{dataset}.{metric}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: plan.threads
    resources:
        mem_mb=16000,
        runtime="2h",
    params:
        metric=plan.metric_options,
        code=plan.measure_code,
    shell:
        "onestep measure --metric {params.metric:q} --name {wildcards.metric} --generated {input.generated:q}"
        " --real {input.real:q} --output {output:q} > {log:q} 2>&1"


rule tabulate:
    """Put numbers side by side, with what was published and what trained them."""
    input:
        metrics=plan.table_metrics,
        summaries=plan.table_summaries,
        choices=plan.table_choices,
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
        table=plan.table_options,
        training_code=plan.training_codes,
        code=plan.tabulate_code,
    shell:
        "onestep tabulate --table {params.table:q} --training-code {params.training_code:q} --results results"
        " --output results/tables > {log:q} 2>&1"


rule report:
    """Draw the results page: one file that opens from disk."""
    input:
        plan.page_inputs,
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
        config=plan.page_options,
        source=plan.source,
        code=plan.report_code,
    shell:
        "onestep report --config {params.source:q} --results results --benchmarks benchmarks --output {output:q} > {log:q} 2>&1"
