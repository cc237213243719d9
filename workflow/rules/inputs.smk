# INPUTS AND DATA
# needs:  an installed package that ships the file, a file or folder provided by hand, or the network (no other rule does)
# makes:  results/inputs/{input}/{file}, results/data/{dataset}.zip, its card {dataset}.json and contact sheet {dataset}.png
#         latents of a dataset likewise, by results/codecs/{input}.safetensors of train.smk

from onestep.plan import inputs


rule fetch:
    """Fetch an input, verify its digest, record it."""
    input:
        # None; but offline this stops the workflow before any job if the input is absent.
        lambda wildcards: inputs.stop_if_absent_offline(plan, wildcards.input),
    output:
        results.input("{input}", "{file}"),
    log:
        "logs/fetch/{input}/{file}.log",
    benchmark:
        "benchmarks/fetch/{input}/{file}.tsv"
    localrule: True
    conda:
        "../../envs/onestep.yaml"
    container:
        None
    resources:
        fetch_jobs=1,
    params:
        source=lambda wildcards: inputs.fetched_from(plan, wildcards.input),
    message:
        "fetch input {wildcards.input}"
    shell:
        "onestep fetch --source {params.source:q} --output {output:q} 2>&1 | tee {log:q}"


rule prepare:
    """Write a dataset in EDM's archive format: the same bytes each time."""
    input:
        lambda wildcards: inputs.source_of(
            plan, plan.experiment.datasets[wildcards.dataset]
        ),
    output:
        archive=results.data("{dataset}"),
        card=results.data("{dataset}", ".json"),
        sheet=report(
            results.data("{dataset}", ".png"),
            caption="../report/dataset.rst",
            category="Data",
            labels={"dataset": "{dataset}"},
        ),
    log:
        "logs/prepare/{dataset}.log",
    benchmark:
        "benchmarks/prepare/{dataset}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime="12h",
    params:
        dataset=lambda wildcards: plan.options("datasets", wildcards.dataset),
        code=lambda wildcards: plan.code("prepare", "datasets", wildcards.dataset),
    message:
        "prepare dataset {wildcards.dataset}"
    shell:
        "onestep prepare --dataset {params.dataset:q} --source {input:q} --output {output.archive:q} > {log:q} 2>&1"


if inputs.encoded_datasets(plan):
    # With a rule of its own, the other datasets' records stay.
    workflow.ruleorder("prepare_encoded", "prepare")

    rule prepare_encoded:
        """Write the latents of a dataset in EDM2's archive format."""
        input:
            images=lambda wildcards: inputs.source_of(
                plan, plan.experiment.datasets[wildcards.dataset]
            ),
            codec=lambda wildcards: inputs.codec_of_dataset(plan, wildcards.dataset),
        output:
            archive=results.data("{dataset}"),
            card=results.data("{dataset}", ".json"),
            sheet=results.data("{dataset}", ".png"),
        log:
            "logs/prepare/{dataset}.log",
        benchmark:
            "benchmarks/prepare/{dataset}.tsv"
        wildcard_constraints:
            dataset="|".join(inputs.encoded_datasets(plan)),
        conda:
            "../../envs/onestep.yaml"
        threads: plan.threads
        resources:
            **plan.gpu,
            mem_mb=32000,
            runtime="24h",
        params:
            dataset=lambda wildcards: plan.options("datasets", wildcards.dataset),
            code=lambda wildcards: plan.code("prepare", "datasets", wildcards.dataset),
        message:
            "encode dataset {wildcards.dataset}"
        shell:
            "onestep prepare --dataset {params.dataset:q} --source {input.images:q} --codec {input.codec:q}"
            " --output {output.archive:q} > {log:q} 2>&1"
