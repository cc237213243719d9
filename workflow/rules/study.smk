# STUDIES
# needs:  what a study observes: metrics, snapshots, samples, features, logs
# makes:  results/studies/{study}.json .npz .svg .md; results/work/{run}.json, what a run computes for each image

from onestep.plan import study


rule work:
    """Count what a run computes for each image, with random weights, where a study observes it."""
    input:
        data=lambda wildcards: results.data(plan.experiment.runs[wildcards.run].dataset),
    output:
        results.work("{run}"),
    log:
        "logs/work/{run}.log",
    benchmark:
        "benchmarks/work/{run}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime="1h",
    params:
        config=lambda wildcards, output: plan.source,
        recorded="config.yaml",
        options=lambda wildcards: study.work_options(plan, wildcards.run),
        code=lambda wildcards: study.work_code(plan, wildcards.run),
    message:
        "count the work of {wildcards.run}"
    shell:
        "onestep bench work --config {params.config:q} --run {wildcards.run} --data {input.data:q} --output {output:q}"
        " > {log:q} 2>&1"


rule study:
    """Answer a question of a paper: arrays, numbers, figure and verdict."""
    input:
        unpack(lambda wildcards: study.study_files(plan, wildcards.study)),
    output:
        [results.study("{study}", suffix) for suffix in (".json", ".npz")],
        [
            report(
                results.study("{study}", suffix),
                caption="../report/study.rst",
                category="Studies",
                labels={"study": "{study}", "format": suffix[1:]},
            )
            for suffix in (".svg", ".md")
        ],
    log:
        "logs/study/{study}.log",
    benchmark:
        "benchmarks/study/{study}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: plan.threads
    resources:
        **plan.gpu,
        mem_mb=32000,
        runtime="12h",
    params:
        study=lambda wildcards: plan.options("studies", wildcards.study),
        files=lambda wildcards: study.study_file_options(plan, wildcards.study),
        code=lambda wildcards: study.study_code(plan, wildcards.study),
    message:
        "run study {wildcards.study}"
    shell:
        "onestep study --study {params.study:q} --name {wildcards.study} --files {params.files:q}"
        " --output results/studies > {log:q} 2>&1"
