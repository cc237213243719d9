# STUDIES
# needs:  what a study observes: metrics, snapshots, samples, features, logs
# makes:  results/studies/{study}.json .npz .svg .md

from onestep.plan import study


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
